"""Reading the books beside those who write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from airflow_provider_qwenimage.books.database import BooksDatabase
from airflow_provider_qwenimage.books.schema import BUDGETS, VERSION
from tests.databases.server import Database

_ROW = {"account": "images", "period": "2026-11", "credits": 5}


def opened(path: Path) -> BooksDatabase:
    return BooksDatabase("books", sa.create_engine(f"sqlite:///{path}"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    opened(tmp_path / "books.db").create()
    return tmp_path / "books.db"


def count(connection: Any) -> int:
    return int(connection.execute(sa.select(sa.func.count()).select_from(BUDGETS)).scalar())


def test_reading_makes_no_tables(tmp_path: Path) -> None:
    books = opened(tmp_path / "books.db")
    assert books.version() is None
    assert books.read(lambda one: sa.inspect(one).get_table_names()) == []
    books.create()
    assert books.version() == VERSION


def test_what_a_reader_writes_is_lost(path: Path) -> None:
    books = opened(path)
    books.read(lambda one: one.execute(BUDGETS.insert().values(_ROW)))
    assert books.read(count) == 0


def test_a_reader_sees_one_state_and_holds_no_writer_up(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_BOOKS", database.connection_json())
    reader, writer = (BooksDatabase.of_connection("books") for _ in range(2))
    writer.create()
    if writer.dialect == "sqlite":
        # With write-ahead logging a reader and a writer do not wait for each other.
        path = json.loads(database.connection_json())["host"]
        with sa.create_engine(f"sqlite:///{path}").connect() as connection:
            connection.exec_driver_sql("PRAGMA journal_mode=WAL")

    def read(connection: Any) -> tuple[int, int]:
        before = count(connection)
        writer.transact(lambda one: one.execute(BUDGETS.insert().values(_ROW)))
        return before, count(connection)

    assert reader.read(read) == (0, 0)
    assert reader.read(count) == 1
    reader.close()
    writer.close()


def test_a_reader_does_not_wait_for_a_writer(path: Path) -> None:
    def write(connection: Any) -> int:
        connection.execute(BUDGETS.insert().values(_ROW))
        return opened(path).read(count)

    assert opened(path).transact(write) == 0
