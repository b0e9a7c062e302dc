"""Reads the books for the page Credits, within limits of time, and caches for some seconds what it has read."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

from airflow_provider_qwenimage.plugin.credit_values import AccountBudget, Details, Overview
from airflow_provider_qwenimage.plugin.fresh_values import FreshValues
from airflow_provider_qwenimage.plugin.storage_access import RefusedError, log_problem
from airflow_provider_qwenimage.plugin.time_limits import TimeLimitedReads
from airflow_provider_qwenimage.rules.book_rows import account_column

if TYPE_CHECKING:
    from airflow_provider_qwenimage.books.database import BooksDatabase
    from airflow_provider_qwenimage.plugin.credit_accounts import Account

Value = TypeVar("Value")

MOST_ROWS_OF_A_LIST = 50
# A page that a hundred people reload reads the books once in this time.
_FRESH_SECONDS = 10.0
_MOST_CACHED_ROWS = 100_000
_MOST_CACHED_VALUES = 200

# Separate from the reads of storage: if one of them hangs, the other goes on.
READS = TimeLimitedReads(6, most_of_dag=16, most_of_storage=4, most=16)
_ALL_DAGS = "(all)"
_SLOW = "did not respond in time. Reload the page later, and check their database if this stays so."


class UnreadableBooksError(Exception):
    """The books cannot be read now; the message continues the sentence "The books … " and quotes nothing."""


class BooksReader:
    """Reads books, and caches what it has read."""

    def __init__(self) -> None:
        self._cache = FreshValues(_FRESH_SECONDS, most_weight=_MOST_CACHED_ROWS, most_values=_MOST_CACHED_VALUES)

    def overview(
        self, conn_id: str, accounts: Collection[Account], since: datetime, now: datetime, deadline: float
    ) -> Overview:
        """Return the budgets of accounts, and which DAGs spend credits.

        Args:
            conn_id: The connection to the books.
            accounts: The accounts with these books.
            since: The beginning of what the page shows.
            now: The time.
            deadline: When all reads of the page must have ended, by `time.monotonic`.

        Raises:
            UnreadableBooksError: If they cannot be read.
        """
        key = ("overview", conn_id, tuple((one.conn_id, one.options) for one in accounts), since)
        return self._get(
            key, conn_id, lambda one: _read_overview(one, accounts, since, now), lambda one: one.weight, deadline
        )

    def details(self, conn_id: str, dag_ids: Collection[str], since: datetime, deadline: float) -> Details:
        """Return what some DAGs have spent.

        Args:
            conn_id: The connection to the books.
            dag_ids: The DAGs.
            since: The beginning of what the page shows.
            deadline: When all reads of the page must have ended, by `time.monotonic`.

        Raises:
            UnreadableBooksError: If they cannot be read.
        """
        key = ("details", conn_id, frozenset(dag_ids), since)
        return self._get(key, conn_id, lambda one: _read_details(one, dag_ids, since), lambda one: one.weight, deadline)

    def clear(self) -> None:
        """Drop what it has read."""
        self._cache.clear()

    def _get(
        self,
        key: object,
        conn_id: str,
        read: Callable[[BooksDatabase], Value],
        weigh: Callable[[Value], int],
        deadline: float,
    ) -> Value:
        try:
            return self._cache.get(key, lambda: _read(conn_id, read, deadline), weigh, deadline)
        except TimeoutError:
            raise UnreadableBooksError(_SLOW) from None


BOOKS = BooksReader()


def _read(conn_id: str, read: Callable[[BooksDatabase], Value], deadline: float) -> Value:
    def opened() -> Value:
        with _opened(conn_id) as books:
            return read(books)

    try:
        return READS.run(_ALL_DAGS, f"the books (connection {conn_id!r})", opened, deadline)
    except UnreadableBooksError:
        raise
    except RefusedError:
        raise UnreadableBooksError(_SLOW) from None
    except Exception as error:  # noqa: BLE001  each database and each secrets backend has its own classes
        log_problem(f"read the books of connection {conn_id} for the page Credits", error)
        raise UnreadableBooksError(
            f"cannot be read ({type(error).__name__}). The API server's log has details."
        ) from None


@contextlib.contextmanager
def _opened(conn_id: str) -> Iterator[BooksDatabase]:
    # Only imported if a connection names its books.
    from airflow_provider_qwenimage.books.database import BooksDatabase

    books = BooksDatabase.of_connection(conn_id)
    try:
        if books.version() is None:
            raise UnreadableBooksError("have no tables yet. Run `airflow qwenimage books init`, or a task.")
        yield books
    finally:
        books.close()


def _read_overview(books: BooksDatabase, accounts: Collection[Account], since: datetime, now: datetime) -> Overview:
    from airflow_provider_qwenimage.books.accounting import period_begin
    from airflow_provider_qwenimage.books.reports import MOST_GROUPS, budget_states, spending

    def read(connection: Any) -> Overview:
        budgets = []
        for account in accounts:
            for state in budget_states(connection, account.conn_id, account.options.budgets, now):
                begin = period_begin(state.period).replace(tzinfo=UTC)
                spent = spending(connection, since=begin, by=("dag",), accounts=[account.conn_id])
                spenders = {one.key[0]: one.credits + one.at_risk for one in spent}
                budgets.append(AccountBudget(account.conn_id, state, spenders, len(spent) >= MOST_GROUPS))
        found = spending(connection, since=since, by=("account", "dag"))
        dag_ids: dict[str, set[str]] = {}
        for one in found:
            dag_ids.setdefault(one.key[0], set()).add(one.key[1])
        by_account = {account.conn_id: dag_ids.get(account_column(account.conn_id), set()) for account in accounts}
        return Overview(
            {name: frozenset(ids) for name, ids in (dag_ids | by_account).items()},
            tuple(budgets),
            is_cut=len(found) >= MOST_GROUPS,
        )

    return books.read(read)


def _read_details(books: BooksDatabase, dag_ids: Collection[str], since: datetime) -> Details:
    from airflow_provider_qwenimage.books.reports import MOST_GROUPS, at_risk_rows, costly_failures, spending

    def read(connection: Any) -> Details:
        found = spending(connection, since=since, by=("day", "dag"), dag_ids=dag_ids)
        # One more than is shown, to see whether there are more.
        most = MOST_ROWS_OF_A_LIST + 1
        return Details(
            spending=tuple(found),
            at_risk=tuple(at_risk_rows(connection, since=since, dag_ids=dag_ids, most=most)),
            failures=tuple(costly_failures(connection, since=since, dag_ids=dag_ids, most=most)),
            is_cut=len(found) >= MOST_GROUPS,
        )

    return books.read(read)
