"""The databases of tests that need a server, and what is stored in the books there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sa

from airflow_provider_qwenimage.books.schema import BUDGETS, SUBMISSIONS
from tests.databases.server import Database

on_servers = pytest.mark.parametrize(
    "database", ["postgres", pytest.param("mariadb", marks=pytest.mark.mariadb)], indirect=True
)


@contextmanager
def connected(database: Database) -> Iterator[Any]:
    """Connect as somebody else does, in a transaction."""
    engine = sa.create_engine(database.url, poolclass=sa.pool.NullPool)
    with engine.begin() as connection:
        yield connection


def rows_in(database: Database) -> list[Mapping[str, Any]]:
    """Return the rows of all submissions."""
    with connected(database) as connection:
        return [row._mapping for row in connection.execute(sa.select(SUBMISSIONS))]


def used_in(database: Database) -> dict[tuple[str, str], float]:
    """Return what counts against each budget, by its account and period."""
    with connected(database) as connection:
        return {(row.account, row.period): float(row.credits) for row in connection.execute(sa.select(BUDGETS))}


def counted_in(database: Database) -> dict[tuple[str, str], float]:
    """Return what should count against each budget: the sum over the rows."""
    sums: dict[tuple[str, str], float] = {}
    for row in rows_in(database):
        counted = row["credits_reserved"]
        if row["status"] == "withdrawn":
            counted = 0
        elif row["status"] in {"done", "failed"} and row["credits_consumed"] is not None:
            counted = row["credits_consumed"]
        for period in (f"{row['reserved_at']:%Y-%m-%d}", f"{row['reserved_at']:%Y-%m}"):
            key = row["account"], period
            sums[key] = sums.get(key, 0) + float(counted)
    return sums


def deadlocks_in(database: Database) -> int:
    """Return how many deadlocks the server has ended."""
    if database.url.startswith("sqlite"):
        return 0
    if database.url.startswith("postgresql"):
        return int((database.server.folder / "log").read_text().count("deadlock detected"))  # type: ignore[attr-defined]
    with connected(database) as connection:
        return int(connection.exec_driver_sql("SHOW GLOBAL STATUS LIKE 'Innodb_deadlocks'").one()[1])
