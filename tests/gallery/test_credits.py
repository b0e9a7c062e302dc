"""The page Credits in a real API server: what it reads, and that it shows nothing of DAGs that a user may not read."""

from __future__ import annotations

import json
import re
import socket
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from airflow.providers.common.compat.sdk import DAG

from airflow_provider_qwenimage.books import accounting
from airflow_provider_qwenimage.books.database import BooksDatabase
from airflow_provider_qwenimage.plugin import credit_books, credits_routes
from airflow_provider_qwenimage.plugin.credit_accounts import find_accounts
from airflow_provider_qwenimage.rules.book_rows import BookStatus, Change, Reservation
from airflow_provider_qwenimage.rules.budgets import Budgets
from airflow_provider_qwenimage.testing.dag_test import make_known
from tests.gallery.airflow_server import Server
from tests.gallery.conftest import Shown
from tests.integration.dag_runs import TestDag, dag_that_draws

FOXES, HARES = "credits_foxes", "credits_hares"
NOT_SHOWN = "not shown: DAGs that you may not read spend from it too"


class Books:
    """Books that a test writes into."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.database = BooksDatabase("books", sa.create_engine(f"sqlite:///{path}"))

    @property
    def connection(self) -> str:
        return json.dumps({"conn_type": "sqlite", "host": str(self.path)})

    def add(
        self,
        dag_id: str,
        credits_reserved: float,
        status: str = "done",
        *,
        account: str = "images",
        days_ago: int = 0,
        consumed: float | None = None,
        **fields: Any,
    ) -> None:
        """Write the row of a submission."""
        row = Reservation(
            submission_id=uuid.uuid4().hex,
            account=account,
            credits=credits_reserved,
            fingerprint="f",
            dag_id=dag_id,
            **{"run_id": f"run_of_{dag_id}", "task_id": "draw", **fields},
        )
        at = datetime.now(UTC) - timedelta(days=days_ago)

        def write(connection: Any) -> None:
            accounting.add_periods(connection, account, at)
            accounting.reserve(connection, [row], Budgets(), at)
            if status != "reserved":
                change = Change(status=BookStatus(status), submission_id=row.submission_id, credits_consumed=consumed)
                accounting.settle(connection, [change], account, at)

        self.database.transact(write)
        forget()


def forget() -> None:
    """Drop what the pages have read."""
    credit_books.BOOKS.clear()
    credits_routes._XCOMS.clear()
    credits_routes._ACCOUNTS.clear()


def account(monkeypatch: pytest.MonkeyPatch, name: str, **extra: Any) -> None:
    value = json.dumps({"conn_type": "qwenimage", "password": "sk-credits-1", "extra": extra})
    monkeypatch.setenv(f"AIRFLOW_CONN_{name.upper()}", value)
    forget()


@pytest.fixture(scope="module")
def dags(server: Server) -> None:
    """Two DAGs that Airflow knows."""
    for dag_id in (FOXES, HARES):
        make_known(DAG(dag_id, schedule=None))


@pytest.fixture
def books(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dags: None) -> Iterator[Books]:
    """The books of the account `images`, of which there may be 100 credits a day and 1,000 a month."""
    books = Books(tmp_path / "books.db")
    books.database.create()
    monkeypatch.setenv("AIRFLOW_CONN_BOOKS", books.connection)
    account(monkeypatch, "images", books_conn_id="books", credits_per_day=100, credits_per_month=1000)
    yield books
    books.database.close()
    forget()


def page_of(server: Server, user: str) -> str:
    answer = server.get("/qwenimage/credits", user=user)
    assert answer.status_code == 200, answer.text
    return answer.text


def rows_of(html: str, heading: str) -> list[list[str]]:
    """Return the texts of the cells of the table below a heading."""
    found = re.search(rf'<section aria-labelledby="{heading}">(.*?)</section>', html, re.DOTALL)
    if found is None:
        return []
    rows = re.findall(r"<tr>(.*?)</tr>", found[1], re.DOTALL)
    cells = [re.findall(r"<td.*?>(.*?)</td>", row, re.DOTALL) for row in rows]
    return [[" ".join(re.sub(r"<.*?>", "", cell).split()) for cell in row] for row in cells if row]


def test_it_shows_what_was_spent_what_is_left_and_what_is_at_risk(server: Server, books: Books) -> None:
    books.add(FOXES, 5, consumed=4)
    books.add(FOXES, 5, "failed", consumed=3, task_id="wait")
    books.add(HARES, 5, "unknown", map_index=2)
    books.add(HARES, 80, days_ago=29, consumed=80)
    books.add(HARES, 5, days_ago=31, consumed=999)
    html = page_of(server, "*")
    assert rows_of(html, "dags") == [
        [HARES, "2", "1", "80", "5", "0", "0"],
        [FOXES, "2", "1", "7", "0", "1", "3"],
    ]
    (today, first) = rows_of(html, "days")
    assert today[1:] == ["5", "7", "12"]
    assert first[1:] == ["80", "", "80"]
    day, month = rows_of(html, "budgets")
    assert day[:5] == ["images", "day", "100", "12", "88"]
    assert month[:3] == ["images", "month", "1,000"]
    ((dag_id, run_id, task, conn_id, status, _, credits_reserved),) = rows_of(html, "at-risk")
    assert [dag_id, run_id, task, conn_id, status, credits_reserved] == [
        HARES, f"run_of_{HARES}", "draw[2]", "images", "unknown", "5",
    ]  # fmt: skip
    assert f'href="/dags/{HARES}/runs/run_of_{HARES}/tasks/draw/mapped/2"' in html
    ((dag_id, _, task, *_, consumed),) = rows_of(html, "failures")
    assert (dag_id, task, consumed) == (FOXES, "wait", "3")
    assert html.count("<rect ") == 3


def test_a_page_does_not_depend_on_dags_that_its_user_may_not_read(
    server: Server, books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    account(monkeypatch, "prints", books_conn_id="books", credits_per_day=7000)
    books.add(FOXES, 5, consumed=4)
    books.add(FOXES, 5, "unknown")

    def shown() -> str:
        html = re.sub(r"until \d{4}-\d\d-\d\d \d\d:\d\d UTC", "until now", page_of(server, FOXES))
        # The only part that may differ: what is used of a budget.
        return re.sub(
            r'<td class="number">9</td>\s*<td class="number">\d+</td>\s*<td><progress.*?</td>',
            f'<td colspan="3" class="quiet">{NOT_SHOWN}</td>',
            html,
            flags=re.DOTALL,
        )

    alone = shown()
    assert alone.count(NOT_SHOWN) == 2
    for number in range(60):
        books.add(HARES, 777, "failed" if number % 2 else "unknown", consumed=777 if number % 2 else None)
    books.add(HARES, 4321, account="prints", consumed=4321)
    books.add("", 5, days_ago=1, consumed=1234)
    books.add("gone", 5, "unknown")
    assert shown() == alone
    assert "prints" not in alone
    assert NOT_SHOWN in page_of(server, FOXES)
    assert "prints" in page_of(server, "*")


def test_a_user_who_may_read_a_dag_and_not_its_xcoms_does_not_see_its_credits(server: Server, books: Books) -> None:
    books.add(HARES, 5, consumed=777)
    assert "777" in page_of(server, f"{FOXES},{HARES}")
    for user in (f"{FOXES},-{HARES}", f"*,-{HARES}"):
        html = page_of(server, user)
        assert "777" not in html
        assert HARES not in html


def test_what_was_spent_outside_dags_is_shown_to_those_who_may_read_every_dag(server: Server, books: Books) -> None:
    books.add(FOXES, 5, consumed=5)
    books.add("", 5, consumed=6)
    assert rows_of(page_of(server, "*"), "dags")[0][:4] == ["not from a task", "1", "1", "6"]
    assert rows_of(page_of(server, "*"), "budgets")[0][3] == "11"
    assert rows_of(page_of(server, FOXES), "budgets")[0][3] == NOT_SHOWN


def test_what_others_wrote_into_the_books_is_only_text(server: Server, books: Books) -> None:
    evil = "<script>alert(1)</script>"
    books.add(evil, 5, "unknown", run_id=f'"{evil}', task_id="../../../logout")
    html = page_of(server, "*")
    assert evil not in html
    assert html.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 4
    (href,) = re.findall(r'<a href="([^"]*)" target="_top"', html)
    assert href.endswith("/tasks/..%2F..%2F..%2Flogout")
    assert "evil" not in page_of(server, FOXES)


def test_books_that_cannot_be_read_hide_no_others(
    server: Server, books: Books, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    books.add(FOXES, 5, consumed=4)
    (tmp_path / "empty.db").touch()
    monkeypatch.setenv("AIRFLOW_CONN_EMPTY", json.dumps({"conn_type": "sqlite", "host": f"{tmp_path}/empty.db"}))
    monkeypatch.setenv("AIRFLOW_CONN_WEB", json.dumps({"conn_type": "http", "host": "secret.example"}))
    account(monkeypatch, "new", books_conn_id="empty")
    account(monkeypatch, "wrong", books_conn_id="web")
    account(monkeypatch, "missing", books_conn_id="nowhere")
    account(monkeypatch, "bad", books_conn_id="books", credits_per_day="a-secret")
    account(monkeypatch, "none")
    html = page_of(server, "*")
    notes = {row[0]: row[1] for row in rows_of(html, "budgets") if len(row) == 2}
    assert "airflow qwenimage books init" in notes["new"]
    assert "log has details" in notes["wrong"]
    assert "log has details" in notes["missing"]
    assert notes["bad"] == "This connection has an extra that cannot be used."
    assert notes["none"].startswith("No books")
    assert rows_of(html, "dags") == [[FOXES, "1", "1", "4", "0", "0", "0"]]
    assert "a-secret" not in html
    assert "secret.example" not in html
    assert BooksDatabase("books", sa.create_engine(f"sqlite:///{tmp_path}/empty.db")).version() is None
    # Somebody with fewer rights sees that something is missing, but not what.
    html = page_of(server, FOXES)
    assert "Some books cannot be read now" in html
    assert [row[0] for row in rows_of(html, "budgets")] == ["images", "images"]
    assert rows_of(html, "dags") == [[FOXES, "1", "1", "4", "0", "0", "0"]]


def test_a_database_that_never_responds_does_not_hold_the_page_up(
    server: Server, books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("psycopg2")
    books.add(FOXES, 5, consumed=4)
    page_of(server, "*")
    # What was just read is still used, however busy the machine is.
    monkeypatch.setattr(credit_books.READS, "seconds", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        monkeypatch.setenv("AIRFLOW_CONN_SILENT", f"postgres://user:password@127.0.0.1:{port}/books")
        connection = {"conn_type": "qwenimage", "extra": {"books_conn_id": "silent"}}
        monkeypatch.setenv("AIRFLOW_CONN_SLOW", json.dumps(connection))
        credits_routes._ACCOUNTS.clear()
        html = page_of(server, "*")
    assert "Its books did not respond in time." in dict(row[:2] for row in rows_of(html, "budgets"))["slow"]
    assert rows_of(html, "dags") == [[FOXES, "1", "1", "4", "0", "0", "0"]]


def test_connections_of_airflows_database_are_accounts_too(books: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow.models.connection import Connection
    from airflow.utils.session import create_session

    stored = [
        Connection("stored", "qwenimage", extra={"books_conn_id": "books", "credits_per_day": 5}),
        Connection("images", "qwenimage", extra={"books_conn_id": "others"}),
        Connection("broken", "qwenimage", extra={"credits_per_day": 5}),
        Connection("other", "http"),
    ]
    monkeypatch.setenv("AIRFLOW_CONN_UNREADABLE", "qwenimage is no URI")
    with create_session() as session:
        session.add_all(stored)
    try:
        found = {one.conn_id: one for one in find_accounts()}
    finally:
        with create_session() as session:
            for one in session.scalars(sa.select(Connection)):
                session.delete(one)
    assert [*found] == ["broken", "images", "stored"]
    assert found["stored"].options.budgets == Budgets(per_day=5)
    assert "no books_conn_id" in str(found["broken"].problem)
    # As in Airflow, the environment has precedence.
    assert found["images"].options.conn_id == "books"


def test_without_books_it_shows_the_xcoms_of_readable_dags(
    server: Server, show: Callable[[TestDag], Shown], tmp_path: Path, dags: None
) -> None:
    shown = show(dag_that_draws(output_path=str(tmp_path), prompt="A fox with no books", seed=1))
    forget()
    html = page_of(server, shown.dag_id)
    assert rows_of(html, "dags") == [[shown.dag_id, "5"]]
    assert [row[1:] for row in rows_of(html, "days")] == [["5", "5"]]
    assert "from the XComs of runs that Airflow still has" in html
    assert "<rect " not in page_of(server, FOXES)
