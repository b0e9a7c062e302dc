"""Whatever becomes of the database, a submission has one row, and budgets are the sum of what the rows count for."""

from __future__ import annotations

import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from airflow_provider_qwenimage.books import keeping
from airflow_provider_qwenimage.books.keeping import Books
from airflow_provider_qwenimage.books.opening import open_books
from airflow_provider_qwenimage.books.schema import BUDGETS
from airflow_provider_qwenimage.exceptions import QwenImageBudgetError, QwenImageConnectionError
from airflow_provider_qwenimage.rules.book_rows import BookStatus, Change
from airflow_provider_qwenimage.rules.budgets import BooksOptions, Budgets
from airflow_provider_qwenimage.tasks import bookkeeping
from airflow_provider_qwenimage.tasks.bookkeeping import TaskBooks
from tests.books.databases import connected, counted_in, on_servers, rows_in, used_in
from tests.books.keepers import ACCOUNT, reservation
from tests.books.losing_proxy import LosingProxy
from tests.databases.server import Database
from tests.events import wait_until

OpenBooks = Callable[..., Books]


@pytest.fixture
def open_(database: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenBooks]:
    """Open the books of the database, or those of another connection to it; they are closed at the end."""
    monkeypatch.setattr(keeping, "_FIRST_PAUSE", 0.1)
    monkeypatch.setattr(keeping, "_LONGEST_PAUSE", 0.2)
    opened: list[Books] = []

    def open_books_of(connection: str | None = None, **budgets: float) -> Books:
        monkeypatch.setenv("AIRFLOW_CONN_BOOKS", connection or database.connection_json())
        opened.append(open_books(BooksOptions("books", Budgets(**budgets)), ACCOUNT, is_batch=True))
        return opened[-1]

    yield open_books_of
    database.start()
    for books in opened:
        assert books.close(60)


@pytest.fixture
def books(open_: OpenBooks) -> Books:
    """Books that have been used."""
    books = open_()
    use(books)
    return books


def use(books: Books) -> None:
    """Do a first submission, which costs nothing."""
    one = reservation()
    books.reserve(one)
    assert books.settle(Change(status=BookStatus.WITHDRAWN, submission_id=one.submission_id), 60)


def statuses_in(database: Database) -> list[str]:
    return sorted(row["status"] for row in rows_in(database))


def assert_exact(database: Database) -> None:
    counted = counted_in(database)
    assert {key: used for key, used in used_in(database).items() if used} == {key: n for key, n in counted.items() if n}


# The answer to a COMMIT is lost.


@on_servers
@pytest.mark.parametrize("how", ["loses", "delays"])
def test_a_submission_whose_commit_was_not_answered_has_one_row(database: Database, open_: OpenBooks, how: str) -> None:
    with LosingProxy(database) as proxy:
        books = open_(proxy.connection_json)
        use(books)
        setattr(proxy, how, True)
        one = reservation()
        with ThreadPoolExecutor() as pool:
            reserving = pool.submit(books.reserve, one)
            wait_until(lambda: proxy.broken, "the loss of an answer")
            # The next attempt finds no row yet, and meets it when it writes its own.
            time.sleep(0.4 if how == "delays" else 0)
            proxy.release()
            reserving.result(60)
        assert proxy.broken == 1
        books.note(Change(status=BookStatus.DONE, submission_id=one.submission_id, credits_consumed=7.0))
        assert books.close(60)

    assert statuses_in(database) == ["done", "withdrawn"]
    assert set(used_in(database).values()) == {7}


@on_servers
def test_what_was_reserved_without_an_answer_is_kept_when_others_meet_a_spent_budget(
    database: Database, open_: OpenBooks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "_FIRST_PAUSE", 1.0)
    with LosingProxy(database) as proxy:
        books = open_(proxy.connection_json, per_day=10)
        use(books)
        proxy.loses = True
        with ThreadPoolExecutor() as pool:
            first = [pool.submit(books.reserve, reservation()) for _ in range(2)]
            wait_until(lambda: proxy.broken, "the loss of an answer")
            later = [pool.submit(books.reserve, reservation()) for _ in range(3)]
            assert [one.exception(60) for one in first] == [None, None]
            assert {type(one.exception(60)) for one in later} == {QwenImageBudgetError}
        assert books.close(60)

    assert statuses_in(database) == ["reserved", "reserved", "withdrawn"]
    assert set(used_in(database).values()) == {10}


@on_servers
def test_a_settlement_whose_commit_was_not_answered_counts_once(database: Database, open_: OpenBooks) -> None:
    with LosingProxy(database) as proxy:
        books = open_(proxy.connection_json)
        use(books)
        one = reservation()
        books.reserve(one)
        proxy.loses = True
        change = Change(status=BookStatus.DONE, submission_id=one.submission_id, credits_consumed=7.0)
        assert books.settle(change, 60)
        assert proxy.broken == 1
        assert books.close(60)

    assert set(used_in(database).values()) == {7}


# The server is killed and comes back.


@on_servers
def test_a_server_that_is_killed_while_threads_reserve_and_settle_loses_and_doubles_nothing(
    database: Database, books: Books
) -> None:
    threads, each = 50, 5
    written = threading.Semaphore(0)

    def draw(_: int) -> None:
        for _ in range(each):
            one = reservation()
            books.reserve(one)
            books.note(
                Change(status=BookStatus.SUBMITTED, submission_id=one.submission_id, image_task_id=one.submission_id)
            )
            # While the server is known to be away, nobody waits for it.
            books.settle(Change(status=BookStatus.DONE, submission_id=one.submission_id, credits_consumed=6.0), 60)
            written.release()

    with ThreadPoolExecutor(threads) as pool:
        drawing = pool.map(draw, range(threads))
        for share in (40, 60):
            for _ in range(share):
                assert written.acquire(timeout=60)
            database.kill()
            database.start()
        assert len(list(drawing)) == threads
    assert books.flush(60)

    assert statuses_in(database) == ["done"] * threads * each + ["withdrawn"]
    assert set(used_in(database).values()) == {6 * threads * each}


def test_books_that_stay_away_end_the_wait_and_have_reserved_nothing_when_they_are_back(
    database: Database, books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "AWAY_SECONDS", 0.5)
    database.kill()
    with ThreadPoolExecutor() as pool:
        errors = [pool.submit(books.reserve, reservation()).exception(60) for _ in range(3)]
    assert all(isinstance(error, QwenImageConnectionError) for error in errors)
    assert "cannot be reached" in str(errors[0])
    assert "Nothing was submitted" in str(errors[0])
    database.start()
    one = reservation()
    books.reserve(one)
    assert books.flush(60)
    assert [row["submission_id"] for row in rows_in(database) if row["status"] == "reserved"] == [one.submission_id]
    assert set(used_in(database).values()) == {5}


@on_servers
def test_books_that_stay_away_after_a_commit_without_an_answer_give_the_credits_back(
    database: Database, open_: OpenBooks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "AWAY_SECONDS", 0.0)
    with LosingProxy(database) as proxy:
        books = open_(proxy.connection_json)
        use(books)
        proxy.loses = True
        with pytest.raises(QwenImageConnectionError, match="Nothing was submitted"):
            books.reserve(reservation())
        assert books.close(60)
    assert statuses_in(database) == ["withdrawn", "withdrawn"]
    assert set(used_in(database).values()) == {0}


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_file_that_was_replaced_by_a_copy_is_opened_again(database: Database, books: Books) -> None:
    file = Path(database.connection["host"])
    copy = file.with_suffix(".copy")
    shutil.copy(file, copy)
    copy.replace(file)
    books.reserve(reservation())
    assert statuses_in(database) == ["reserved", "withdrawn"]


# Nobody waits for a reservation any more.


class Interruption(BaseException):
    """What a signal raises."""


@contextmanager
def locked(database: Database) -> Iterator[None]:
    """Hold a lock that every reservation has to wait for."""
    if database.url.startswith("sqlite"):
        engine = sa.create_engine(database.url, poolclass=sa.pool.NullPool)
        with engine.connect() as connection:
            connection.exec_driver_sql("BEGIN EXCLUSIVE")
            yield
            connection.exec_driver_sql("ROLLBACK")
        return
    with connected(database) as connection:
        connection.execute(sa.select(BUDGETS).with_for_update())
        yield


def test_a_reservation_waits_for_somebodys_lock(database: Database, books: Books) -> None:
    with ThreadPoolExecutor() as pool:
        with locked(database):
            reserving = pool.submit(books.reserve, reservation())
            time.sleep(0.5)
            assert not reserving.done()
        reserving.result(60)
    assert set(used_in(database).values()) == {5}


@pytest.mark.parametrize("how", ["interrupted", "stopped"])
def test_a_reservation_that_nobody_waits_for_gives_its_credits_back(
    database: Database, books: Books, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    wait, waits = vars(keeping)["wait"], 0

    def interrupt(*arguments: Any) -> Any:
        nonlocal waits
        waits += 1
        if waits > 1 and how == "interrupted":
            raise Interruption
        return wait(*arguments)

    with locked(database):
        monkeypatch.setattr(keeping, "wait", interrupt)
        threading.Timer(0.4, books.stop if how == "stopped" else int).start()
        with pytest.raises(Interruption if how == "interrupted" else QwenImageConnectionError):
            books.reserve(reservation())
    assert books.close(60)

    assert set(statuses_in(database)) == {"withdrawn"}
    assert set(used_in(database).values()) == {0}


@on_servers
def test_a_reservation_that_is_interrupted_between_two_attempts_gives_its_credits_back(
    database: Database, open_: OpenBooks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "_FIRST_PAUSE", 2.0)
    with LosingProxy(database) as proxy:
        books = open_(proxy.connection_json)
        use(books)
        wait = vars(keeping)["wait"]

        def interrupt(*arguments: Any) -> Any:
            if proxy.broken:
                raise Interruption
            return wait(*arguments)

        monkeypatch.setattr(keeping, "wait", interrupt)
        proxy.loses = True
        with pytest.raises(Interruption):
            books.reserve(reservation())
        assert books.close(60)
    assert statuses_in(database) == ["withdrawn", "withdrawn"]
    assert set(used_in(database).values()) == {0}


# A server that hangs.


@on_servers
def test_a_server_that_hangs_holds_a_task_up_for_a_bounded_time_only(
    database: Database, open_: OpenBooks, monkeypatch: pytest.MonkeyPatch
) -> None:
    books = open_()
    use(books)
    monkeypatch.setattr(keeping, "_HANGING_SECONDS", 0.5)
    with database.frozen():
        began = time.monotonic()
        with pytest.raises(QwenImageConnectionError, match=r"did not answer within 0\.5 s.* Nothing was submitted"):
            books.reserve(reservation())
        assert not books.settle(Change(status=BookStatus.DONE, submission_id=uuid.uuid4().hex), 0.5)
        assert not books.close(0.5)
        assert time.monotonic() - began < 5
    wait_until(lambda: statuses_in(database) == ["withdrawn", "withdrawn"], "the withdrawal by the thread")
    assert set(used_in(database).values()) == {0}


# The end of an image.


@pytest.mark.parametrize("is_batch", [True, False])
def test_records_are_removed_when_the_row_is_written_and_a_batch_does_not_wait_for_that(
    database: Database, books: Books, monkeypatch: pytest.MonkeyPatch, is_batch: bool
) -> None:
    monkeypatch.setattr(bookkeeping, "_SETTLE_SECONDS", 1.0)
    task = TaskBooks(books, {}, 1, is_batch=is_batch)
    one = reservation()
    books.reserve(one)
    removed: list[str] = []
    change = Change(status=BookStatus.DONE, submission_id=one.submission_id, credits_consumed=7.0)
    with locked(database):
        began = time.monotonic()
        task.settle(change, lambda: removed.append("records"))
        assert (time.monotonic() - began < 0.9) == is_batch
        assert removed == []
    assert books.flush(60)
    assert removed == []
    task.settle(Change(status=BookStatus.DONE, submission_id=uuid.uuid4().hex), lambda: removed.append("next"))
    if is_batch:
        assert removed == ["records"]
    task.close()
    assert sorted(removed) == ["next", "records"]


def test_credits_that_are_given_back_are_there_for_the_next_image_before_that_is_written(open_: OpenBooks) -> None:
    books = open_(per_day=5)
    one = reservation()
    books.reserve(one)
    books.note(Change(status=BookStatus.WITHDRAWN, submission_id=one.submission_id))
    books.reserve(reservation())
    with pytest.raises(QwenImageBudgetError):
        books.reserve(reservation())


# Who has recorded an intent does not wait.


@on_servers
def test_a_reservation_that_does_not_wait_is_refused_at_once_and_taken_back(database: Database, books: Books) -> None:
    database.kill()
    began = time.monotonic()
    assert not books.reserve(reservation(), waits=False)
    assert time.monotonic() - began < keeping.AWAY_SECONDS / 2
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(books.await_database)
        time.sleep(0.5)
        assert not waiting.done()
        database.start()
        waiting.result(60)
    assert books.reserve(reservation(), waits=False)
    assert books.close(60)
    assert statuses_in(database) == ["reserved", "withdrawn"]
    assert_exact(database)
