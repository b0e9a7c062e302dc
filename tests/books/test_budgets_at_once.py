"""A budget holds for all processes that share it, and is the sum of what its rows count for."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy as sa

from airflow_provider_qwenimage.books import accounting
from airflow_provider_qwenimage.books.database import BooksDatabase
from airflow_provider_qwenimage.rules.book_rows import BookStatus, Change, Reservation
from airflow_provider_qwenimage.rules.budgets import Budgets
from tests.books.databases import counted_in, deadlocks_in, on_servers, rows_in, used_in
from tests.books.keepers import Work, at_once
from tests.books.writing import EVENING, WrittenBooks
from tests.databases.server import Database

PROCESSES = 8


def test_an_end_that_several_report_at_once_is_counted_once(database: Database) -> None:
    with WrittenBooks.at(database.url) as books:
        ids = sorted(books.submit(at=EVENING) for _ in range(10))

    def settle(consumed: float) -> int:
        changes = [
            Change(status=BookStatus.DONE, submission_id=submission_id, credits_consumed=consumed)
            for submission_id in ids
        ]
        with WrittenBooks.at(database.url) as books:
            barrier.wait(60)
            return int(books.do(accounting.settle, changes, "qwen", EVENING))

    reporters = 8
    barrier = threading.Barrier(reporters)
    with ThreadPoolExecutor(reporters) as pool:
        list(pool.map(settle, map(float, range(6, 6 + reporters))))
    assert used_in(database) == counted_in(database)


@on_servers
@pytest.mark.parametrize("budgets", [Budgets(), Budgets(per_day=10), Budgets(per_month=10)])
def test_a_period_that_another_process_begins_at_the_same_moment_refuses_nothing(
    database: Database, budgets: Budgets
) -> None:
    engine = sa.create_engine(database.url, poolclass=sa.pool.QueuePool)
    begun: list[str] = []

    @sa.event.listens_for(engine, "after_cursor_execute")
    def begin_periods(_: Any, cursor: Any, statement: str, *_rest: object) -> None:
        if statement.startswith("UPDATE") and cursor.rowcount == 0 and not begun:
            begun.append(statement)
            with WrittenBooks.at(database.url) as others:
                others.submit()

    books = WrittenBooks(BooksDatabase("books", engine))
    reservation = Reservation(submission_id="mine", account="qwen", credits=5, fingerprint="f")
    try:
        books.do(accounting.reserve, [reservation], budgets, EVENING)
    except accounting.PeriodMissingError:
        # As the keeper does.
        books.do(accounting.add_periods, "qwen", EVENING)
        books.do(accounting.reserve, [reservation], budgets, EVENING)
    books.database.close()

    assert begun
    assert set(used_in(database).values()) == {10}


def test_processes_reserve_exactly_what_the_budget_allows_and_one_reports_that_it_is_nearly_spent(
    database: Database,
) -> None:
    found = at_once(database, Work(Budgets(per_day=400), settles=False), PROCESSES)

    assert found == {"reserved": 80, "refused": 192 - 80, "nearly spent": 1, "written": PROCESSES}
    rows = rows_in(database)
    assert [row["status"] for row in rows] == ["reserved"] * 80
    assert set(used_in(database).values()) == {400}


def test_reservations_and_settlements_of_processes_lose_no_update_and_lock_nobody_out(database: Database) -> None:
    before = deadlocks_in(database)
    found = at_once(database, Work(Budgets(), settles=True), PROCESSES)

    assert +found == {"reserved": 192, "written": PROCESSES}
    rows = rows_in(database)
    assert Counter((row["status"], row["credits_consumed"]) for row in rows) == {
        ("done", 5): 48,
        ("done", 7): 48,
        ("failed", 0): 48,
        ("withdrawn", None): 48,
    }
    assert used_in(database) == counted_in(database)
    assert deadlocks_in(database) == before
