"""Checks the books of a connection: whether their database answers, has the tables, and has room in the budgets."""

from __future__ import annotations

from contextlib import closing
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from airflow_provider_qwenimage.cli.doctor.findings import OK, SKIPPED, WARNING, Finding
from airflow_provider_qwenimage.rules.prices import assumed_price
from airflow_provider_qwenimage.text.messages import shown_credits

if TYPE_CHECKING:
    from airflow_provider_qwenimage.client.connection import ConnectionSettings


def check_books(settings: ConnectionSettings | None, conn_id: str) -> Finding:
    """Check the books; nothing is written.

    Args:
        settings: The settings of the connection; None if it cannot be used.
        conn_id: Its id.
    """
    if settings is None:
        return Finding(SKIPPED, "The connection cannot be used.")
    books_conn_id, budgets = settings.books.conn_id, settings.books.budgets
    if books_conn_id is None:
        return Finding(SKIPPED, "The connection names no books (books_conn_id in its extra).")
    from airflow_provider_qwenimage.books.opening import open_database
    from airflow_provider_qwenimage.books.reports import budget_states

    with closing(open_database(settings.books, conn_id)) as database:
        version = database.version()
        if version is None:
            return Finding(
                WARNING,
                f"Connection {books_conn_id!r} answers, but has no books yet. The first task makes their tables if its "
                f"user may; if not, run `airflow qwenimage books init --conn-id {conn_id}` with one who may.",
            )
        states = database.read(lambda one: budget_states(one, conn_id, budgets, datetime.now(UTC)))
    left = ", ".join(
        f"{shown_credits(state.left)} of {shown_credits(state.limit)} credits are left of {state.period.option}"
        for state in states
    )
    message = f"Connection {books_conn_id!r} has books of version {version}{f'; {left}' if left else ''}."
    if any(state.left < assumed_price(None) for state in states):
        return Finding(WARNING, f"{message} Nothing more is submitted until the budget resets, or is raised.")
    return Finding(OK, message)
