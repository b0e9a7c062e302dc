"""The page about budgets and books is correct: its tables, messages, queries, command and DAG."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from airflow_provider_qwenimage.airflow_versions import HAS_RETRY_POLICIES
from airflow_provider_qwenimage.books import accounting
from airflow_provider_qwenimage.books.schema import BOOKS, BUDGETS, SUBMISSIONS
from airflow_provider_qwenimage.rules.book_rows import BookStatus, Change
from airflow_provider_qwenimage.rules.budgets import (
    Budgets,
    BudgetState,
    Refusal,
    budget_error,
    nearly_spent,
    periods_of,
)
from tests.books.writing import WrittenBooks
from tests.databases.server import Database
from tests.test_documentation import PAGES, blocks, table

PAGE = PAGES["docs/budgets-and-books.md"]
NOW = datetime.now(UTC)
LAST_MONTH = NOW.replace(day=1) - timedelta(days=1)
LONG_AGO = NOW - timedelta(days=40)


def queries(dialect: str) -> list[str]:
    """Return the queries, with the expressions that the page names for this database."""
    (heads, *differences) = [[cell.strip("`") for cell in row] for row in table(PAGE, "PostgreSQL")]
    column = [{"mysql": "mariadb"}.get(dialect, dialect) in head.lower() for head in heads].index(True)
    found = blocks(PAGE, "sql")
    for difference in differences:
        assert any(difference[0] in query for query in found), f"no query has {difference[0]}"
        found = [query.replace(difference[0], difference[column]) for query in found]
    return found


@pytest.fixture
def books(database: Database) -> Iterator[WrittenBooks]:
    with WrittenBooks.at(database.url) as books:
        yield books


def submit(books: WrittenBooks, dag_id: str, status: str, *, at: datetime = NOW, **change: Any) -> None:
    """Write the row of a submission of 5 credits."""
    submission_id = books.submit(dag_id=dag_id, at=at)
    end = Change(submission_id=submission_id, status=BookStatus(status), **change)
    books.do(accounting.settle, [end], "qwen", at)


def answer(books: WrittenBooks, number: int) -> list[dict[str, Any]]:
    """Run one of the page's queries."""
    query = sa.text(queries(books.database.dialect)[number])
    rows: list[dict[str, Any]] = books.do(lambda one: [dict(row._mapping) for row in one.execute(query)])
    return rows


def chosen(rows: list[dict[str, Any]], *names: str) -> list[tuple[Any, ...]]:
    return [
        tuple(value if isinstance(value := row[name], str | None) else float(value) for name in names) for row in rows
    ]


def test_the_first_query_counts_what_each_dag_spent_and_risks_in_each_month(books: WrittenBooks) -> None:
    submit(books, "foxes", "done", at=LAST_MONTH, credits_consumed=4)
    submit(books, "foxes", "done", credits_consumed=4)
    submit(books, "foxes", "failed", credits_consumed=2)
    submit(books, "foxes", "submitted")
    submit(books, "foxes", "withdrawn")
    # The API did not report the cost.
    submit(books, "owls", "done")
    submit(books, "owls", "unknown")
    submit(books, "doves", "withdrawn")
    assert chosen(answer(books, 0), "month", "account", "dag_id", "credits", "at_risk") == [
        (f"{LAST_MONTH:%Y-%m}", "qwen", "foxes", 4, 0),
        (f"{NOW:%Y-%m}", "qwen", "foxes", 6, 5),
        (f"{NOW:%Y-%m}", "qwen", "owls", 5, 5),
    ]


def test_the_second_query_divides_all_that_was_charged_by_the_images_that_are_stored(books: WrittenBooks) -> None:
    submit(books, "foxes", "done", credits_consumed=5, path="s3://images/1.png")
    submit(books, "foxes", "done", credits_consumed=5, path="s3://images/2.png")
    submit(books, "foxes", "done", credits_consumed=5)
    submit(books, "foxes", "failed", credits_consumed=3)
    submit(books, "foxes", "submitted")
    submit(books, "foxes", "done", at=LONG_AGO, credits_consumed=5, path="s3://images/6.png")
    submit(books, "owls", "failed", credits_consumed=2)
    names = ("dag_id", "stored_images", "without_image", "credits", "credits_per_stored_image")
    assert chosen(answer(books, 1), *names) == [("foxes", 2, 2, 18, 9), ("owls", 0, 1, 2, None)]


def test_the_third_query_lists_what_is_at_risk_the_oldest_first(books: WrittenBooks) -> None:
    submit(books, "foxes", "submitted", image_task_id="t-1")
    submit(books, "owls", "unknown", at=LONG_AGO)
    for status in ("done", "failed", "withdrawn"):
        submit(books, "foxes", status)
    assert chosen(answer(books, 2), "dag_id", "status", "image_task_id", "credits_reserved", "at_risk_in_total") == [
        ("owls", "unknown", None, 5, 10),
        ("foxes", "submitted", "t-1", 5, 10),
    ]


def test_each_column_is_described_with_its_type() -> None:
    tables = re.findall(r"^`(qwenimage_\w+)` has (?:.+\n)+\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    described = {
        name: [[cell.strip("` ") for cell in line.strip("|").split(" | ")][:2] for line in text.splitlines()[2:]]
        for name, text in tables
    }
    assert described == {
        one.name: [[column.name, _type_of(column)] for column in one.columns] for one in (SUBMISSIONS, BUDGETS, BOOKS)
    }


def _type_of(column: Any) -> str:
    kind = str(column.type).replace("DATETIME", "TIMESTAMP")
    if column.primary_key:
        return f"{kind}, primary key"
    return f"{kind} or NULL" if column.nullable else kind


def test_each_status_is_described() -> None:
    assert [row[0].strip("`") for row in table(PAGE, "status")[1:]] == list(BookStatus)


def test_the_messages_shown_are_those_of_a_task() -> None:
    now = datetime(2026, 11, 27, 15, 30, tzinfo=UTC)
    day = periods_of(now)[0]
    spenders = [("catalogue", 420.0), ("daily_fox", 77.0)]
    error = budget_error("qwenimage_default", Refusal(day, 500, 497, 5), spenders, now)
    assert [block.strip() for block in blocks(PAGE, "text")] == [
        str(error),
        nearly_spent("qwenimage_default", BudgetState(day, 500, 400)),
    ]


def test_the_command_shown_adds_a_connection_with_books_and_budgets(monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow_provider_qwenimage.hooks import QwenImageHook

    (command,) = [line for line in blocks(PAGE, "console")[0].splitlines() if "--conn-extra" in line]
    words = shlex.split(command)
    fields = {"conn_type": "qwenimage", "password": "sk-YOUR-KEY", "extra": words[words.index("--conn-extra") + 1]}
    monkeypatch.setenv("AIRFLOW_CONN_QWENIMAGE_DEFAULT", json.dumps(fields))
    settings = QwenImageHook().settings
    assert (settings.books.conn_id, settings.books.budgets) == ("qwenimage_books", Budgets(500, 10000))
    assert not settings.ignored


@pytest.mark.skipif(not HAS_RETRY_POLICIES, reason="this Airflow has no retry policies")
def test_the_dag_shown_waits_for_the_budget_of_the_next_month() -> None:
    names: dict[str, Any] = {}
    exec(blocks(PAGE, "python")[0], names)  # noqa: S102  the code is the page's
    task = names["dag"].get_task("draw")
    month = periods_of(NOW)[1]
    first = datetime.fromisoformat(f"{month.key}-01").replace(tzinfo=UTC)
    error = budget_error("qwenimage_default", Refusal(month, 10000, 9999, 5), [], first)
    decision = task.retry_policy.evaluate(error, 1, task.retries)
    assert month.ends - first <= decision.retry_delay <= timedelta(days=31)
