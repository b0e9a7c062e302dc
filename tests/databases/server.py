"""A temporary database server: on a free port, in a temporary folder that is removed at the end."""

from __future__ import annotations

import json
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

import psutil

from scripts.local_airflow import CannotGoOnError
from tests.events import wait_until
from tests.ports import free_ports

START_SECONDS = 300
USER = "airflow"
_STOP_SECONDS = 20


class ServerMissingError(CannotGoOnError):
    """The programs of a database server are not installed; the message names the package to install."""


@dataclass(frozen=True)
class Database:
    """A database of a server.

    Attributes:
        url: Its URL for SQLAlchemy.
        connection: The fields of an Airflow connection to it.
    """

    server: Server
    url: str
    connection: Mapping[str, Any]

    def connection_json(self) -> str:
        """Return the Airflow connection to it, as the value of an ``AIRFLOW_CONN_…`` variable."""
        return json.dumps(self.connection)

    def kill(self) -> None:
        """Kill its server, as a crash does; other databases of this server are gone too."""
        self.server.kill()

    def start(self) -> None:
        """Start its server again after `kill`."""
        self.server.start()

    def frozen(self) -> AbstractContextManager[None]:
        """Have its server answer nobody during a block, without closing a connection."""
        return self.server.frozen()


class Server(ABC):
    """A server with databases, from `__enter__` to `__exit__`."""

    conn_type: ClassVar[str]

    @abstractmethod
    def __enter__(self) -> Self: ...

    @abstractmethod
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    @abstractmethod
    def new_database(self) -> Database:
        """Create an empty database."""

    @abstractmethod
    def kill(self) -> None:
        """Kill the server, as a crash does: what was committed is still stored."""

    @abstractmethod
    def start(self) -> None:
        """Start the server again after `kill`, on the same port; do nothing if it runs."""

    def frozen(self) -> AbstractContextManager[None]:
        """Have the server answer nobody during a block, without closing a connection."""
        raise NotImplementedError(f"{type(self).__name__} has no processes")


class ServerProcess(Server):
    """A server on a port of 127.0.0.1. It refuses to run as root, so for root it runs as an unprivileged user."""

    name: ClassVar[str]
    ready: ClassVar[bytes]
    stops_at: ClassVar[signal.Signals]
    users: ClassVar[Sequence[str]]

    def __init__(self) -> None:
        (self.port,) = free_ports(1)
        self.password = secrets.token_hex(16)
        self.identity = unprivileged_user(*self.users) if os.geteuid() == 0 else {}
        self.folder = Path()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.folder = Path(tempfile.mkdtemp(prefix=f"qwenimage-{self.conn_type}-"))
        try:
            if self.identity:
                os.chown(self.folder, self.identity["user"], self.identity["group"])
            self._create()
            self.start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop()

    @abstractmethod
    def _create(self) -> None:
        """Create the data folder, with the user `USER`."""

    @abstractmethod
    def _command(self) -> Sequence[str | Path]:
        """Return the command that serves the data folder. Data need not survive a power cut, only a crash."""

    def start(self) -> None:
        if self._process is not None and self._process.poll() is None:
            return
        log = self.folder / "log"
        with log.open("wb") as output:
            process = self._process = subprocess.Popen(
                self._command(),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # Ctrl-C must not reach the server; `_stop` stops it.
                start_new_session=True,
                **self.identity,
            )

        def answers() -> bool:
            assert process.poll() is None, f"{self.name} did not start:\n{log.read_text()}"
            return self.ready in log.read_bytes()

        wait_until(answers, f"the start of {self.name}", START_SECONDS)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        family = self._suspended()
        try:
            yield
        finally:
            for member in family:
                with suppress(psutil.NoSuchProcess):
                    member.resume()

    def _suspended(self) -> list[psutil.Process]:
        """Stop the server's processes, and return them."""
        assert self._process is not None
        main = psutil.Process(self._process.pid)
        # It starts no other process while it is stopped.
        main.suspend()
        family = [main, *main.children(recursive=True)]
        for member in family:
            with suppress(psutil.NoSuchProcess):
                member.suspend()
        return family

    def kill(self) -> None:
        if self._process is None or self._process.poll() is not None:
            return
        family = self._suspended()
        for member in family:
            with suppress(psutil.NoSuchProcess):
                member.kill()
        self._process.wait()
        wait_until(lambda: not any(map(_is_alive, family)), f"the end of {self.name}", _STOP_SECONDS)

    def _stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(self.stops_at)
            try:
                self._process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _database(self, name: str, dialect: str) -> Database:
        connection = {
            "conn_type": self.conn_type,
            "host": "127.0.0.1",
            "port": self.port,
            "login": USER,
            "password": self.password,
            "schema": name,
        }
        return Database(self, f"{dialect}://{USER}:{self.password}@127.0.0.1:{self.port}/{name}", connection)


def _is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def new_name() -> str:
    """Return a name that no other database has."""
    return f"books_{secrets.token_hex(6)}"


def unprivileged_user(*names: str) -> dict[str, Any]:
    """Return the first of these users that exists, or ``nobody``, as arguments of `subprocess.Popen`."""
    for name in (*names, "nobody"):
        try:
            user = pwd.getpwnam(name)
        except KeyError:
            continue
        return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    raise ServerMissingError(
        f"A database server refuses to run as root, and none of the users {', '.join(names)} and nobody exists. Run "
        f"this as another user, or create the user {names[0]}."
    )
