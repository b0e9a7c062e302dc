"""Two API servers with the route of callbacks on one PostgreSQL database, and task instances in it that wait."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import requests
import sqlalchemy as sa
from cryptography.fernet import Fernet
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from airflow_provider_qwenimage.airflow_versions import KEEPS_TRIES
from airflow_provider_qwenimage.rules import callbacks
from airflow_provider_qwenimage.rules.callbacks import digest_of, new_secret
from airflow_provider_qwenimage.triggers import QwenImageStatusTrigger
from tests.databases.server import Database
from tests.events import wait_until
from tests.ports import free_ports

_ROOT = Path(__file__).parents[2]
_PREPARE = "from airflow.utils.db import initdb; initdb()"


class ApiServer:
    """`airflow api-server` in a process of its own.

    Attributes:
        url: Airflow's base URL, with the path that it has behind a proxy.
        output: Everything that it writes.
    """

    def __init__(self, environment: Mapping[str, str], folder: Path, path: str = "") -> None:
        (port,) = free_ports(1)
        folder.mkdir()
        self.url = f"http://127.0.0.1:{port}{path}"
        self._output = folder / "server.out"
        settings = {
            "AIRFLOW_HOME": str(folder),
            "AIRFLOW__API__BASE_URL": self.url,
            "AIRFLOW__QWENIMAGE__CALLBACK_BASE_URL": self.url,
        }
        command = [sys.executable, "-m", "airflow", "api-server", "--host", "127.0.0.1", "--port", str(port)]
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                [*command, "--workers", "1"],
                env={**environment, **settings},
                stdout=output,
                stderr=output,
                cwd=_ROOT,
            )

    @property
    def output(self) -> str:
        return self._output.read_text(errors="replace")

    def await_start(self) -> None:
        wait_until(self._answers, "the API server", seconds=300)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()

    def terminate(self) -> None:
        """End it as a deployment does, and wait for that."""
        self._process.terminate()
        self._process.wait(60)

    def call(self, wait: Waiting, secret: str | None = None, **arguments: Any) -> requests.Response:
        """Call a task instance back, with its own secret or another one."""
        url = callbacks.callback_url(self.url, wait.rung_id, secret or wait.secret)
        return requests.post(url, timeout=100, **({"json": {"task_id": "n43", "status": "SUCCESS"}} | arguments))

    def _answers(self) -> bool:
        assert self._process.poll() is None, self.output[-3000:]
        try:
            return requests.get(f"{self.url}/api/v2/monitor/health", timeout=100).status_code == 200
        except requests.ConnectionError:
            return False


@dataclass
class Waiting:
    """A task instance, and the secret of its submission.

    Attributes:
        id: The id of its present try.
        rung_id: The id in its callback URL.
    """

    id: uuid.UUID
    rung_id: uuid.UUID
    secret: str


class Rows:
    """Task instances in the database, as Airflow stores them.

    Args:
        url: The database's URL.
        fernet_key: The key that Airflow encrypts the arguments of triggers with; None for that of this process.
    """

    def __init__(self, url: str, fernet_key: bytes | None = None) -> None:
        self._engine = sa.create_engine(url, poolclass=NullPool)
        self._fernet = None if fernet_key is None else Fernet(fernet_key)

    def add(
        self,
        *,
        state: str = "deferred",
        seconds: float = 3600,
        kwargs: Mapping[str, Any] | None = None,
        classpath: str = callbacks.TRIGGER,
        stored: str | None = None,
        earlier_tries: int = 0,
    ) -> Waiting:
        """Add a task instance.

        Args:
            state: Its state.
            seconds: How long it has been deferred.
            kwargs: The arguments of its trigger; by default those of the operator.
            classpath: Its trigger's.
            stored: The arguments as stored.
            earlier_tries: How many tries it had before; the callback URL is of the first.
        """
        secret = new_secret()
        tries = [uuid.uuid4() for _ in range(earlier_tries + 1)]
        with Session(self._engine) as session:
            trigger_id = self._add_trigger(session, kwargs or self._kwargs(secret), classpath, stored, seconds)
            self._add_tries(session, tries, state, trigger_id)
            session.commit()
        return Waiting(tries[-1], tries[0], secret)

    def defer_again(self, waiting: Waiting, seconds: float = 3600) -> None:
        """Defer a task again, with the same secret."""
        table = self._instances
        with Session(self._engine) as session:
            trigger_id = self._add_trigger(session, self._kwargs(waiting.secret), callbacks.TRIGGER, None, seconds)
            session.execute(
                sa.update(table)
                .where(table.c.id == self._as_stored(waiting.id))
                .values(state="deferred", trigger_id=trigger_id, next_kwargs={"kept": 1})
            )
            session.commit()

    def set_state(self, waiting: Waiting, state: str) -> None:
        table = self._instances
        with self._engine.begin() as connection:
            connection.execute(
                sa.update(table).where(table.c.id == self._as_stored(waiting.id)).values(state=state, trigger_id=None)
            )

    def look(self, waiting: Waiting) -> tuple[str, bool, Any]:
        """Return the state of a task instance, whether it has a trigger, and what it is resumed with."""
        table = self._instances
        with self._engine.connect() as connection:
            query = sa.select(table.c.state, table.c.trigger_id, sa.cast(table.c.next_kwargs, sa.Text))
            row = connection.execute(query.where(table.c.id == self._as_stored(waiting.id))).one()
        return str(row[0]), row[1] is not None, json.loads(row[2] or "null")

    def is_woken(self, waiting: Waiting) -> bool:
        """Whether a task instance is about to be resumed with the event None."""
        state, has_trigger, next_kwargs = self.look(waiting)
        if state == "deferred":
            assert has_trigger
            assert "event" not in str(next_kwargs)
            return False
        plain = next_kwargs.get("__var", next_kwargs)
        assert (state, has_trigger) == ("scheduled", False)
        return "event" in plain and plain["event"] is None and plain["kept"] == 1

    @property
    def _instances(self) -> Any:
        from airflow.models.taskinstance import TaskInstance

        return TaskInstance.__table__

    @staticmethod
    def _as_stored(identity: uuid.UUID) -> Any:
        from airflow.models.taskinstance import TaskInstance

        as_stored: Any = TaskInstance.id.type.python_type
        return as_stored(str(identity))

    @staticmethod
    def _kwargs(secret: str) -> dict[str, Any]:
        return QwenImageStatusTrigger("n43", callback=digest_of(secret)).serialize()[1]

    def _add_trigger(
        self, session: Session, kwargs: Mapping[str, Any], classpath: str, stored: str | None, seconds: float
    ) -> int:
        from airflow.models.trigger import Trigger

        created = datetime.now(UTC) - timedelta(seconds=seconds)
        trigger = Trigger(classpath=classpath, kwargs=dict(kwargs), created_date=created)
        if stored is None and self._fernet is not None:
            # This process has no key, so they are plain text.
            stored = self._fernet.encrypt(trigger.encrypted_kwargs.encode()).decode()
        if stored is not None:
            trigger.encrypted_kwargs = stored
        session.add(trigger)
        session.flush()
        return int(trigger.id)

    def _add_tries(self, session: Session, tries: list[uuid.UUID], state: str, trigger_id: int) -> None:
        from airflow.models.dagrun import DagRun

        run_id = f"manual__{uuid.uuid4()}"
        names = {"dag_id": "foxes", "run_id": run_id, "task_id": "draw"}
        now = datetime.now(UTC)
        run = {
            "dag_id": "foxes",
            "run_id": run_id,
            "run_type": "manual",
            "state": "running",
            "run_after": now,
            "logical_date": now,
            "log_template_id": None,
        }
        _insert(session, DagRun.__table__, run)
        common = {**names, "pool": "default_pool", "pool_slots": 1, "span_status": "not_started"}
        present = {"id": self._as_stored(tries[-1]), "try_number": len(tries), "state": state, "trigger_id": trigger_id}
        # The columns that Airflow's model fills have to be given to the table itself.
        present |= {"max_tries": 9, "next_method": "execute_complete", "executor_config": None, "priority_weight": 1}
        present |= {"next_kwargs": {"kept": 1}}
        _insert(session, self._instances, common | present)
        for number, earlier in enumerate(tries[:-1], start=1):
            values = {"try_number": number, "state": "failed", "executor_config": None}
            if KEEPS_TRIES:
                archived = {"id": self._as_stored(earlier), "working_set": None, "max_tries": 9}
                _insert(session, self._instances, common | values | archived)
            else:
                from airflow.models.taskinstancehistory import TaskInstanceHistory

                history = {"task_instance_id": self._as_stored(earlier)}
                _insert(session, TaskInstanceHistory.__table__, common | values | history)


def _insert(session: Session, table: Any, values: Mapping[str, Any]) -> None:
    # Airflow's versions differ in some columns.
    session.execute(sa.insert(table).values({name: value for name, value in values.items() if name in table.c}))


@dataclass
class Servers:
    """Two API servers on one database.

    Attributes:
        one: Its base URL is the root of its host.
        other: Its base URL has a path.
        rows: The task instances in the database.
        database: The database.
    """

    one: ApiServer
    other: ApiServer
    rows: Rows
    database: Database


@contextmanager
def serving_callbacks(database: Database, folder: Path, fernet_key: bytes) -> Iterator[Servers]:
    """Serve until the block ends.

    Args:
        database: An empty database.
        folder: A folder for the servers' files.
        fernet_key: The key that Airflow encrypts the arguments of triggers with.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
    environment |= {
        "AIRFLOW_HOME": str(folder / "home"),
        "AIRFLOW__CORE__FERNET_KEY": fernet_key.decode(),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": database.url,
        # A callback within 3 seconds of the deferral is early.
        "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "0",
        "PYTHONPATH": str(_ROOT),
    }
    with ExitStack() as stack:
        subprocess.run([sys.executable, "-c", _PREPARE], env=environment, check=True, capture_output=True, timeout=300)
        servers = []
        for name, path in (("one", ""), ("other", "/airflow")):
            servers.append(ApiServer(environment, folder / name, path))
            stack.callback(servers[-1].stop)
        for server in servers:
            server.await_start()
        yield Servers(*servers, Rows(database.url, fernet_key), database)


def wait_for_wake(rows: Rows, waiting: Waiting) -> float:
    """Wait until a task is woken; return how many seconds that took."""
    started = time.monotonic()
    wait_until(lambda: rows.is_woken(waiting), "the end of the wait")
    return time.monotonic() - started
