"""Finds the accounts: the Airflow connections of type qwenimage that the API server sees."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import Any

from airflow.models.connection import Connection
from airflow.secrets.environment_variables import CONN_ENV_PREFIX, EnvironmentVariablesBackend
from airflow.utils.session import create_session
from sqlalchemy import select

from airflow_provider_qwenimage.plugin.storage_access import log_problem
from airflow_provider_qwenimage.rules.budgets import NO_BOOKS, BooksOptions, read_books_options
from airflow_provider_qwenimage.rules.connection_extra import read_extra
from airflow_provider_qwenimage.text.messages import printable

log = logging.getLogger(__name__)

_TYPE = "qwenimage"
MOST_ACCOUNTS = 200


@dataclass(frozen=True)
class Account:
    """A connection of type qwenimage.

    Attributes:
        conn_id: Its id.
        options: What its extra says about books and budgets.
        problem: Why its extra cannot be used, continuing the sentence "Connection … "; it may quote a value.
    """

    conn_id: str
    options: BooksOptions = NO_BOOKS
    problem: str | None = None


def find_accounts() -> list[Account]:
    """Return the accounts in environment variables and in Airflow's database, in the order of their ids.

    A secrets backend cannot be asked which connections it has.
    """
    found = _in_database() | _in_environment()
    return [found[conn_id] for conn_id in sorted(found)[:MOST_ACCOUNTS]]


def _in_environment() -> dict[str, Account]:
    found = {}
    backend = EnvironmentVariablesBackend()
    for name, value in os.environ.items():
        # The others are not even parsed.
        if name.startswith(CONN_ENV_PREFIX) and _TYPE in value:
            conn_id = name.removeprefix(CONN_ENV_PREFIX).lower()
            try:
                connection: Any = backend.get_connection(conn_id)
            except Exception as error:  # noqa: BLE001  Airflow's errors differ between versions and formats
                log.warning("Cannot read %s for the page Credits (%s).", printable(name), type(error).__name__)
                continue
            if connection is not None and connection.conn_type == _TYPE:
                found[conn_id] = _account(conn_id, connection)
    return found


def _in_database() -> dict[str, Account]:
    found = {}
    query = select(Connection).where(Connection.conn_type == _TYPE).order_by(Connection.conn_id).limit(MOST_ACCOUNTS)
    with create_session(scoped=False) as session:
        for connection in session.scalars(query):
            conn_id = str(connection.conn_id)
            found[conn_id] = _account(conn_id, connection)
    return found


def _account(conn_id: str, connection: Any) -> Account:
    try:
        return Account(conn_id, read_books_options(read_extra(connection.extra)))
    except ValueError as error:
        return Account(conn_id, problem=str(error))
    except Exception as error:  # noqa: BLE001  Airflow cannot decrypt it, for example
        log_problem(f"read the extra of connection {conn_id} for the page Credits", error)
        return Account(conn_id, problem=f"has an extra that Airflow cannot read ({type(error).__name__}).")
