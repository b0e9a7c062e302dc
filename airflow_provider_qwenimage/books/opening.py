"""Opens the books that a connection names, in a worker."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow_provider_qwenimage.books.database import BooksDatabase
from airflow_provider_qwenimage.books.keeping import Books
from airflow_provider_qwenimage.client.connection_lookup import ConnectionNotDefinedError, look_up_connection
from airflow_provider_qwenimage.client.counters import count

if TYPE_CHECKING:
    from airflow_provider_qwenimage.rules.budgets import BooksOptions

_NEARLY_SPENT = "qwenimage.budget_nearly_spent"


def open_books(options: BooksOptions, conn_id: str, *, is_batch: bool = False) -> Books:
    """Return the books of a connection. Nothing is read or written yet.

    Args:
        options: What the connection says about its books.
        conn_id: Its id.
        is_batch: Whether many images are submitted at once.

    Raises:
        ValueError: If the books' own connection is not usable.
        QwenImageConnectionError: If Airflow cannot look it up for the moment.
    """
    return Books(
        open_database(options, conn_id),
        conn_id,
        options.budgets,
        is_batch=is_batch,
        note_nearly_spent=lambda option: _count_nearly_spent(conn_id, option),
    )


def open_database(options: BooksOptions, conn_id: str) -> BooksDatabase:
    """Return the database of the books of a connection, without connecting to it.

    Args:
        options: What the connection says about its books.
        conn_id: Its id.

    Raises:
        ValueError: If the books' own connection is not usable.
        QwenImageConnectionError: If Airflow cannot look it up for the moment.
    """
    books_conn_id = str(options.conn_id)
    try:
        connection = look_up_connection(books_conn_id)
    except ConnectionNotDefinedError:
        raise ValueError(
            f"books_conn_id in the extra of connection {conn_id!r} is {books_conn_id!r}, which is not defined; it must "
            "be the id of an Airflow connection to an SQL database."
        ) from None
    return BooksDatabase.of_connection(books_conn_id, connection)


def _count_nearly_spent(conn_id: str, option: str) -> None:
    """Count a budget that is nearly spent: as a metric of its own, and with tags."""
    count(_NEARLY_SPENT, tags={"connection": conn_id, "budget": option})
    # Plain StatsD has no tags.
    count(f"{_NEARLY_SPENT}.{option}")
