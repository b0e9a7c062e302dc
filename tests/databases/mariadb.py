"""A temporary MariaDB server."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.databases.server import START_SECONDS, USER, Database, ServerMissingError, ServerProcess, new_name

# Few pages and a small log are created sooner.
_SMALL = ("--innodb-buffer-pool-size=16M", "--innodb-log-file-size=8M", "--skip-log-bin")


class MariaDb(ServerProcess):
    """A MariaDB server, whose user has all rights.

    Raises:
        ServerMissingError: If the server programs are not found.
    """

    name = "MariaDB"
    conn_type = "mysql"
    ready = b"ready for connections"
    stops_at = signal.SIGTERM
    users = ("mysql",)

    def __init__(self) -> None:
        self._server, self._install, self._client = map(_find, ("mariadbd", "mariadb-install-db", "mariadb"))
        super().__init__()

    def new_database(self) -> Database:
        database = new_name()
        subprocess.run(
            [self._client, "--no-defaults", "--host=127.0.0.1", f"--port={self.port}", f"--user={USER}"],
            input=f"CREATE DATABASE {database};\n",
            text=True,
            env={"MYSQL_PWD": self.password},
            check=True,
            capture_output=True,
            timeout=START_SECONDS,
        )
        return self._database(database, "mysql+mysqldb")

    def _create(self) -> None:
        subprocess.run(
            [
                *(self._install, "--no-defaults", f"--datadir={self.folder / 'data'}", "--skip-test-db"),
                *("--auth-root-authentication-method=normal", "--skip-name-resolve", *_SMALL),
            ],
            cwd=self.folder,
            check=True,
            capture_output=True,
            timeout=START_SECONDS,
            **self.identity,
        )
        # Root has no password, and the port is open to everybody on this machine.
        users = self.folder / "users.sql"
        statements = [
            "DELETE FROM mysql.global_priv WHERE User = 'root'",
            "FLUSH PRIVILEGES",
            f"CREATE OR REPLACE USER '{USER}'@'127.0.0.1' IDENTIFIED BY '{self.password}'",
            f"GRANT ALL ON *.* TO '{USER}'@'127.0.0.1' WITH GRANT OPTION",
        ]
        users.write_text("".join(f"{statement};\n" for statement in statements))
        users.chmod(0o600)
        if self.identity:
            os.chown(users, self.identity["user"], self.identity["group"])

    def _command(self) -> Sequence[str | Path]:
        return [
            *(self._server, "--no-defaults", f"--datadir={self.folder / 'data'}"),
            *(f"--socket={self.folder / 'socket'}", f"--pid-file={self.folder / 'pid'}"),
            *("--bind-address=127.0.0.1", f"--port={self.port}", "--skip-name-resolve", "--max-connections=200"),
            *(f"--init-file={self.folder / 'users.sql'}", "--character-set-server=utf8mb4"),
            # Each commit is written to the file at once, and to the disk when the system does so.
            *("--innodb-flush-log-at-trx-commit=2", "--innodb-flush-method=nosync", *_SMALL),
        ]


def _find(program: str) -> Path:
    found = shutil.which(program) or shutil.which(program, path="/usr/sbin:/usr/local/sbin:/opt/homebrew/bin")
    if found is None:
        raise ServerMissingError(
            f"This needs a temporary MariaDB server, and its program {program} is not installed. Install it (Debian "
            "and Ubuntu: apt-get install mariadb-server), then run this again."
        )
    return Path(found)
