"""The databases that books are tested on."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TypeAlias

import pytest

from tests.databases.mariadb import MariaDb
from tests.databases.postgres import Postgres
from tests.databases.server import Database, Server, ServerMissingError
from tests.databases.sqlite import Sqlite

StartServer: TypeAlias = Callable[[str], Server]

# The environment of `make test-mariadb`.
_MUST_HAVE_MARIADB = Path(sys.prefix).name == "mariadb"


@pytest.fixture(scope="session")
def start_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartServer]:
    """Start a server by its name, once for all tests; all are stopped at the end."""
    kinds: dict[str, Callable[[], Server]] = {
        "sqlite": lambda: Sqlite(tmp_path_factory.mktemp("books")),
        "postgres": Postgres,
        "mariadb": MariaDb,
    }
    with ExitStack() as servers:
        yield cache(lambda name: servers.enter_context(kinds[name]()))


@pytest.fixture(params=["sqlite", "postgres", pytest.param("mariadb", marks=pytest.mark.mariadb)])
def database(request: pytest.FixtureRequest, start_server: StartServer) -> Database:
    """An empty database of this test only, on SQLite, PostgreSQL and MariaDB in turn."""
    required = request.param == "mariadb" and _MUST_HAVE_MARIADB
    if request.param == "mariadb" and not required and find_spec("MySQLdb") is None:
        pytest.skip("MySQLdb, the driver for MariaDB, is not installed; make test-mariadb runs this")
    try:
        server = start_server(request.param)
    except ServerMissingError as error:
        if required:
            raise
        pytest.skip(str(error))
    # The last test may have failed while it was down.
    server.start()
    return server.new_database()
