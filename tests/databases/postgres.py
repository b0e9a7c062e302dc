"""A temporary PostgreSQL server."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from scripts.local_airflow import run_to_the_end
from tests.databases.server import START_SECONDS, USER, Database, ServerMissingError, ServerProcess, new_name

# Its own user on Debian and other systems.
USERS = ("postgres",)
_MISSING = 2


class Postgres(ServerProcess):
    """A PostgreSQL server, whose user is a superuser.

    Raises:
        ServerMissingError: If the server programs are not found.
    """

    name = "PostgreSQL"
    conn_type = "postgres"
    ready = b"ready to accept connections"
    # It then does not wait for clients.
    stops_at = signal.SIGINT
    users = USERS

    def __init__(self) -> None:
        self._programs = find_programs()
        super().__init__()

    @property
    def url(self) -> str:
        """The URL for SQLAlchemy of the database that the server begins with."""
        return self._named("postgres").url

    def new_database(self) -> Database:
        database = new_name()
        engine = create_engine(self.url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
        with engine.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {database}"))
        return self._named(database)

    def _named(self, name: str) -> Database:
        return self._database(name, "postgresql+psycopg2")

    def _create(self) -> None:
        initialize(self._programs, self.folder / "data", USER, self.password, self.identity)

    def _command(self) -> Sequence[str | Path]:
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": "",
            "max_connections": "200",
            "fsync": "off",
            "full_page_writes": "off",
        }
        arguments = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        return [self._programs / "postgres", "-D", self.folder / "data", *arguments]


def run_on_postgres(run: Callable[[Postgres], None]) -> int:
    """Run a program that needs a server until it ends, fails or is interrupted.

    Args:
        run: The program, which starts the server.

    Returns:
        The exit code; 2 if the server programs are missing.
    """
    try:
        postgres = Postgres()
    except ServerMissingError as error:
        sys.stderr.write(f"{error}\n")
        return _MISSING
    return run_to_the_end(lambda: run(postgres))


def initialize(programs: Path, data: Path, user: str, password: str, identity: Mapping[str, Any]) -> None:
    """Create the data folder of a server.

    Args:
        programs: The folder of the server programs.
        data: The folder to fill; a file with the password is written next to it.
        user: The server's superuser.
        password: That user's password.
        identity: The system user that runs the server, as arguments of `subprocess.Popen`; empty for this user.
    """
    data.mkdir(exist_ok=True)
    file = data.with_suffix(".password")
    file.write_text(password)
    if identity:
        for path in (data, file):
            os.chown(path, identity["user"], identity["group"])
    subprocess.run(
        [
            *(programs / "initdb", "--pgdata", data, "--username", user),
            *("--pwfile", file, "--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C", "--no-sync"),
        ],
        cwd=data.parent,
        check=True,
        capture_output=True,
        timeout=START_SECONDS,
        **identity,
    )


def find_programs() -> Path:
    """Return the folder of the server programs, which is not on the PATH on Debian and other systems."""
    folders = [Path(found).resolve().parent for found in (shutil.which("initdb"),) if found]
    for pattern in ("usr/lib/postgresql/*/bin", "usr/pgsql-*/bin", "opt/homebrew/opt/postgresql*/bin"):
        folders += sorted(Path("/").glob(pattern), reverse=True)
    for folder in folders:
        if (folder / "initdb").exists() and (folder / "postgres").exists():
            return folder
    raise ServerMissingError(
        "This needs a temporary PostgreSQL server, and the server programs (initdb, postgres) are not installed. "
        "Install them (Debian and Ubuntu: apt-get install postgresql), then run this again."
    )
