"""A temporary PostgreSQL server: on a free port, in a temporary folder that is removed at the end."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from scripts.local_airflow import CannotGoOnError, run_to_the_end
from tests.integration.standalone import wait_for
from tests.ports import free_ports

_START_SECONDS = 300
_STOP_SECONDS = 20
_USER = "airflow"
_MISSING = 2


class PostgresMissingError(CannotGoOnError):
    """The PostgreSQL server programs are not installed; the message names the package to install."""


class Postgres:
    """A server with an empty database, from `__enter__` to `__exit__`.

    PostgreSQL refuses to run as root, so for root it runs as the user ``postgres`` or ``nobody``.

    Raises:
        PostgresMissingError: If the server programs are not found.
    """

    def __init__(self) -> None:
        self._programs = find_programs()
        (self._port,) = free_ports(1)
        self._password = secrets.token_hex(16)
        self._identity = unprivileged_user() if os.geteuid() == 0 else {}
        self._server: subprocess.Popen[bytes] | None = None
        self._folder = Path()

    @property
    def url(self) -> str:
        """The database's URL for SQLAlchemy."""
        return f"postgresql+psycopg2://{_USER}:{self._password}@127.0.0.1:{self._port}/postgres"

    def __enter__(self) -> Self:
        self._folder = Path(tempfile.mkdtemp(prefix="qwenimage-chaos-postgres-"))
        try:
            self._initialize()
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop()

    def _initialize(self) -> None:
        if self._identity:
            os.chown(self._folder, self._identity["user"], self._identity["group"])
        initialize(self._programs, self._folder / "data", _USER, self._password, self._identity)

    def _start(self) -> None:
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self._port),
            "unix_socket_directories": "",
            "max_connections": "200",
            # The data is removed at the end, so it need not survive a power cut.
            "fsync": "off",
            "synchronous_commit": "off",
            "full_page_writes": "off",
        }
        arguments = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        log = self._folder / "log"
        with log.open("wb") as output:
            self._server = subprocess.Popen(
                [self._programs / "postgres", "-D", self._folder / "data", *arguments],
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # Ctrl-C must not reach the server; `_stop` stops it.
                start_new_session=True,
                **self._identity,
            )
        server = self._server

        def answers() -> bool:
            assert server.poll() is None, f"PostgreSQL did not start:\n{log.read_text()}"
            return b"ready to accept connections" in log.read_bytes()

        wait_for("PostgreSQL", answers, _START_SECONDS)

    def _stop(self) -> None:
        if self._server is not None and self._server.poll() is None:
            # SIGINT: a fast shutdown, which does not wait for clients.
            self._server.send_signal(signal.SIGINT)
            try:
                self._server.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(self._server.pid, signal.SIGKILL)
                self._server.wait()
        shutil.rmtree(self._folder, ignore_errors=True)


def run_on_postgres(run: Callable[[Postgres], None]) -> int:
    """Run a program that needs a server until it ends, fails or is interrupted.

    Args:
        run: The program, which starts the server.

    Returns:
        The exit code; 2 if the server programs are missing.
    """
    try:
        postgres = Postgres()
    except PostgresMissingError as error:
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
        timeout=_START_SECONDS,
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
    raise PostgresMissingError(
        "This needs a temporary PostgreSQL server for Airflow, and the server programs (initdb, postgres) are not "
        "installed. Install them (Debian and Ubuntu: apt-get install postgresql), then run this again."
    )


def unprivileged_user() -> dict[str, Any]:
    for name in ("postgres", "nobody"):
        try:
            user = pwd.getpwnam(name)
        except KeyError:
            continue
        return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    raise PostgresMissingError(
        "PostgreSQL refuses to run as root, and neither of the users postgres and nobody exists. Run this as another "
        "user, or create the user postgres."
    )
