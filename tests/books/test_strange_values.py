"""Values from outside, and rows that somebody changed, neither stop the books nor make them wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from airflow_provider_qwenimage.books import accounting
from airflow_provider_qwenimage.books.keeping import Books
from airflow_provider_qwenimage.books.opening import open_books
from airflow_provider_qwenimage.books.schema import BUDGETS, SUBMISSIONS
from airflow_provider_qwenimage.exceptions import QwenImageBudgetError
from airflow_provider_qwenimage.rules.book_rows import BookStatus, Change
from airflow_provider_qwenimage.rules.budgets import BooksOptions, Budgets
from tests.books.databases import connected, counted_in, rows_in, used_in
from tests.books.keepers import reservation
from tests.books.writing import WrittenBooks
from tests.databases.server import Database

OpenBooks = Callable[..., Books]


@pytest.fixture
def open_(database: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenBooks]:
    monkeypatch.setenv("AIRFLOW_CONN_BOOKS", database.connection_json())
    opened: list[Books] = []

    def open_books_of(account: str = "qwen", **budgets: float) -> Books:
        opened.append(open_books(BooksOptions("books", Budgets(**budgets)), account))
        return opened[-1]

    yield open_books_of
    for books in opened:
        assert books.close(30)


def done(submission_id: str, consumed: float | None = 5.0, **known: Any) -> Change:
    return Change(status=BookStatus.DONE, submission_id=submission_id, credits_consumed=consumed, **known)


@pytest.mark.parametrize(
    ("name", "stored"),
    [
        ("\N{FOX FACE} 'fox\"; --", "\N{FOX FACE} 'fox\"; --"),
        ("a\x00b\ud800c", "a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}c"),
        ("\N{FOX FACE}" * 1000, "\N{FOX FACE}" * 250),
        ("%s :name %(x)s", "%s :name %(x)s"),
        ("", ""),
    ],
    ids=["emoji and quotes", "NUL and a surrogate", "1000 characters", "placeholders", "empty"],
)
def test_each_name_is_stored_as_it_is_if_the_database_can_store_it(
    database: Database, open_: OpenBooks, name: str, stored: str
) -> None:
    books = open_(account=name, per_day=5)
    one = reservation(account=name, dag_id=name, run_id=name, task_id=name)
    books.reserve(one)
    assert books.settle(done(one.submission_id, path=f"/{name * 20}", image_task_id=name * 20, sha256=name * 99), 30)
    (row,) = rows_in(database)
    assert {row[column] for column in ("account", "dag_id", "run_id", "task_id")} == {stored}
    assert row["path"].startswith(f"/{stored}")
    assert used_in(database) == counted_in(database)
    with pytest.raises(QwenImageBudgetError):
        books.reserve(reservation(account=name))


def test_accounts_that_differ_in_case_only_have_a_budget_each(database: Database, open_: OpenBooks) -> None:
    for account in ("A", "a"):
        open_(account, per_day=5).reserve(reservation(account=account))
    assert {account: used for (account, _), used in used_in(database).items()} == {"A": 5, "a": 5}


@pytest.mark.parametrize(
    ("credits_", "counted"), [(1e300, 1e9), (float("inf"), 1e9), (float("nan"), 0), (-3.0, 0), (4.1234567, 4.123457)]
)
def test_odd_numbers_of_credits_are_stored_as_the_nearest_that_can_be(
    database: Database, open_: OpenBooks, credits_: float, counted: float
) -> None:
    books = open_(per_month=1e300)
    ids = []
    for _ in range(3):
        one = reservation()
        books.reserve(one)
        ids.append(one.submission_id)
    for submission_id in ids:
        assert books.settle(done(submission_id, credits_), 30)
    assert {float(row["credits_consumed"]) for row in rows_in(database)} == {counted}
    assert list(used_in(database).values()) == [pytest.approx(3 * counted, abs=1e-5)] * 2


def test_image_tasks_with_long_ids_are_told_apart_and_found(database: Database, open_: OpenBooks) -> None:
    books = open_()
    ids = ["x" * 499 + last for last in "ab"] + ["a", "a ", "A"]
    for image_task_id in ids:
        one = reservation()
        books.reserve(one)
        books.note(Change(status=BookStatus.SUBMITTED, submission_id=one.submission_id, image_task_id=image_task_id))
    for consumed, image_task_id in enumerate(ids, 1):
        assert books.settle(
            Change(status=BookStatus.DONE, image_task_id=image_task_id, credits_consumed=float(consumed)), 30
        )
    assert {row["image_task_id"]: row["credits_consumed"] for row in rows_in(database)} == {
        image_task_id: consumed for consumed, image_task_id in enumerate(ids, 1)
    }


@pytest.mark.parametrize("status", ["x", "", "DONE", "\N{FOX FACE}"])
def test_a_status_that_somebody_wrote_stays_and_counts_as_reserved(
    database: Database, open_: OpenBooks, status: str
) -> None:
    books = open_()
    odd, other = reservation(), reservation()
    for one in (odd, other):
        books.reserve(one)
    with connected(database) as connection:
        connection.execute(
            sa.update(SUBMISSIONS).where(SUBMISSIONS.c.submission_id == odd.submission_id).values(status=status)
        )
    for one in (odd, other):
        assert books.settle(done(one.submission_id, 7.0), 30)
    assert {row["submission_id"]: row["status"] for row in rows_in(database)} == {
        odd.submission_id: status,
        other.submission_id: "done",
    }
    assert set(used_in(database).values()) == {12}


@pytest.mark.parametrize("table", [SUBMISSIONS, BUDGETS], ids=str)
def test_rows_that_somebody_deletes_stop_nothing(database: Database, open_: OpenBooks, table: sa.Table) -> None:
    books = open_(per_day=100)
    one = reservation()
    books.reserve(one)
    with connected(database) as connection:
        connection.execute(table.delete())
    assert books.settle(done(one.submission_id, 4.0), 30)
    books.reserve(reservation())
    # A budget that begins anew counts the rows; a row that is gone stays counted.
    assert set(used_in(database).values()) == {9 if table is BUDGETS else 10}


def test_a_submission_counts_in_the_day_and_month_in_which_it_was_reserved(database: Database) -> None:
    evening, morning = (datetime(2026, 11, 30, 23, 59, 59, tzinfo=UTC) + timedelta(seconds=s) for s in (0, 1))
    with WrittenBooks.at(database.url) as books:
        first = books.submit(at=evening)
        books.submit(at=morning)
        assert books.do(accounting.settle, [done(first, 7.0)], "qwen", morning) == 1
    assert {period: used for (_, period), used in used_in(database).items()} == {
        "2026-11-30": 7,
        "2026-11": 7,
        "2026-12-01": 5,
        "2026-12": 5,
    }
    assert used_in(database) == counted_in(database)
