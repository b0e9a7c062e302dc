"""The tables are created once, by whoever comes first, and whoever may not use them is told what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from airflow_provider_qwenimage.books import keeping
from airflow_provider_qwenimage.books.opening import open_books
from airflow_provider_qwenimage.books.schema import BOOKS, VERSION
from airflow_provider_qwenimage.exceptions import QwenImageConnectionError
from airflow_provider_qwenimage.rules.budgets import BooksOptions, Budgets
from tests.books.databases import connected, on_servers, used_in
from tests.books.keepers import ACCOUNT, Work, at_once, reservation
from tests.databases.server import Database

on_sqlite = pytest.mark.parametrize("database", ["sqlite"], indirect=True)
_USER, _PASSWORD = "reader", "secret"


@pytest.fixture
def reserve(database: Database, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Reserve once through the connection to the database, with some of its fields changed."""
    monkeypatch.setattr(keeping, "AWAY_SECONDS", 0.2)
    monkeypatch.setattr(keeping, "_FIRST_PAUSE", 0.1)

    def reserve_once(**fields: Any) -> None:
        monkeypatch.setenv("AIRFLOW_CONN_BOOKS", json.dumps({**database.connection, **fields}))
        books = open_books(BooksOptions("books", Budgets()), ACCOUNT)
        try:
            books.reserve(reservation())
        finally:
            books.close(5)

    return reserve_once


def test_processes_that_use_an_empty_database_at_the_same_moment_create_the_tables_once(database: Database) -> None:
    found = at_once(database, Work(Budgets(), settles=False, threads=1, wanted=1), 8)
    assert +found == {"reserved": 8, "written": 8}
    with connected(database) as connection:
        assert connection.execute(sa.select(BOOKS.c.version)).scalars().all() == [VERSION]
    assert set(used_in(database).values()) == {40}


def test_tables_of_a_later_version_are_not_touched(database: Database, reserve: Callable[..., None]) -> None:
    reserve()
    with connected(database) as connection:
        connection.execute(BOOKS.insert().values(version=VERSION + 1))
    with pytest.raises(ValueError, match="have version 2, and this package knows version 1. Upgrade"):
        reserve()
    assert set(used_in(database).values()) == {5}


@on_servers
@pytest.mark.parametrize("may_read", [False, True])
def test_a_user_without_rights_is_told_to_have_the_tables_created(
    database: Database, reserve: Callable[..., None], may_read: bool
) -> None:
    is_postgres = database.url.startswith("postgresql")
    if may_read:
        reserve()
    with connected(database) as connection:
        if is_postgres:
            connection.exec_driver_sql(f"DROP ROLE IF EXISTS {_USER}")
            connection.exec_driver_sql(f"CREATE ROLE {_USER} LOGIN PASSWORD '{_PASSWORD}'")
            if may_read:
                connection.exec_driver_sql(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {_USER}")
        else:
            connection.exec_driver_sql(f"CREATE OR REPLACE USER {_USER}@127.0.0.1 IDENTIFIED BY '{_PASSWORD}'")
            connection.exec_driver_sql(f"GRANT SELECT ON {database.connection['schema']}.* TO {_USER}@127.0.0.1")
    try:
        with pytest.raises(ValueError, match="airflow qwenimage books init.* grant SELECT, INSERT and UPDATE"):
            reserve(login=_USER, password=_PASSWORD)
    finally:
        with connected(database) as connection:
            if is_postgres:
                connection.exec_driver_sql(f"DROP OWNED BY {_USER}")
            connection.exec_driver_sql(f"DROP USER {_USER}{'' if is_postgres else '@127.0.0.1'}")


@on_servers
@pytest.mark.parametrize("fields", [{"password": "wrong"}, {"schema": "nowhere"}])
def test_a_wrong_connection_says_what_the_server_said_without_the_password(
    reserve: Callable[..., None], fields: dict[str, str]
) -> None:
    with pytest.raises(QwenImageConnectionError, match="Check that the database runs and that the connection") as error:
        reserve(**fields)
    assert "nowhere" in str(error.value) or "airflow" in str(error.value)
    assert "wrong" not in str(error.value)


@on_sqlite
def test_a_file_in_a_folder_that_does_not_exist_is_waited_for(reserve: Callable[..., None], tmp_path: Path) -> None:
    with pytest.raises(QwenImageConnectionError, match="unable to open database file"):
        reserve(host=str(tmp_path / "nowhere" / "books.db"))


@on_sqlite
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"conn_type": "qwenimage"}, "must be one to PostgreSQL, MariaDB, MySQL or SQLite"),
        ({"conn_type": "fax"}, "must be a connection to PostgreSQL, MariaDB, MySQL or SQLite"),
        ({"conn_type": "postgres", "host": "x", "extra": "[1]"}, "books_conn_id is 'books'"),
    ],
)
def test_a_connection_that_is_none_to_an_sql_database_is_refused(
    reserve: Callable[..., None], fields: dict[str, str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        reserve(**fields)
