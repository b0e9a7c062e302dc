"""The databases of these tests are real ones, which Airflow's hooks connect to and which survive a crash."""

from __future__ import annotations

import pytest
from airflow.providers.common.compat.sdk import BaseHook
from airflow.providers.common.sql.hooks.sql import DbApiHook
from sqlalchemy import create_engine, text
from sqlalchemy.engine import Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from tests.databases.server import Database


@pytest.fixture
def hook(database: Database, monkeypatch: pytest.MonkeyPatch) -> DbApiHook:
    monkeypatch.setenv("AIRFLOW_CONN_BOOKS", database.connection_json())
    hook = BaseHook.get_hook("books")
    assert isinstance(hook, DbApiHook)
    return hook


@pytest.fixture
def engine(hook: DbApiHook) -> Engine:
    return hook.get_sqlalchemy_engine({"poolclass": NullPool})


def test_the_hook_of_the_connection_reads_and_writes_the_database(
    database: Database, hook: DbApiHook, engine: Engine
) -> None:
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE payments (credits VARCHAR(20))"))
        connection.execute(text("INSERT INTO payments VALUES ('5 €')"))
    with create_engine(database.url, poolclass=NullPool).begin() as connection:
        assert connection.execute(text("SELECT credits FROM payments")).scalars().all() == ["5 €"]
    assert hook.get_first("SELECT credits FROM payments") == ("5 €",)


def test_what_was_committed_survives_a_kill(database: Database, engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE payments (credits INTEGER)"))
    for number in range(20):
        with engine.begin() as connection:
            connection.execute(text("INSERT INTO payments VALUES (:credits)"), {"credits": number})
    database.kill()
    with pytest.raises(DBAPIError), engine.connect():
        pass
    database.start()
    with engine.connect() as connection:
        assert connection.execute(text("SELECT COUNT(*) FROM payments")).scalar_one() == 20


def test_a_database_shares_no_tables_with_another(database: Database) -> None:
    for each in (database, database.server.new_database()):
        with create_engine(each.url, poolclass=NullPool).begin() as connection:
            connection.execute(text("CREATE TABLE payments (credits INTEGER)"))
