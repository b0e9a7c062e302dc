"""SQLite, with the interface of a database server."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self

from tests.databases.server import Database, Server, new_name


class Sqlite(Server):
    """A folder of SQLite files.

    A file cannot crash. `kill` takes the folder away, as a share that is no longer mounted, and `start` puts it back.
    """

    conn_type = "sqlite"

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "sqlite"
        self._away = folder / "sqlite.away"

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.start()

    def new_database(self) -> Database:
        file = self._folder / f"{new_name()}.db"
        return Database(self, f"sqlite:///{file}", {"conn_type": self.conn_type, "host": str(file)})

    def kill(self) -> None:
        if self._folder.exists():
            self._folder.rename(self._away)

    def start(self) -> None:
        if self._away.exists():
            self._away.rename(self._folder)
