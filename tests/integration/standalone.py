"""A real Airflow 3 with its own home, scheduler, triggerer, API server and worker processes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import psutil
import requests

from tests.ports import free_ports

# No event takes this long on an idle machine: these only end a test whose event never happens.
_START_SECONDS = 600
_PATIENCE_SECONDS = 600
_ANSWER_SECONDS = 60
_LOOK_SECONDS = 0.2
_CONFLICT = 409

_PREPARE = """
import json, sys
from airflow.models.connection import Connection
from airflow.utils.db import initdb
from airflow.utils.session import create_session

initdb()
with create_session() as session:
    for conn_id, fields in json.load(sys.stdin).items():
        session.add(Connection(conn_id, **fields))
"""


class StandaloneAirflow:
    """Runs `airflow standalone` until `stop`.

    Args:
        home: The AIRFLOW_HOME: an empty folder. DAG files go into its ``dags``.
        root: The folder that contains the package, for the import path.
        settings: Additional environment variables, which take precedence.
        is_called_back: Whether the API is to call its API server.
    """

    def __init__(
        self, home: Path, root: Path, settings: Mapping[str, str] | None = None, *, is_called_back: bool = False
    ) -> None:
        self.home = home
        self.dags = home / "dags"
        self.dags.mkdir()
        self.database = home / "airflow.db"
        self.output = home / "standalone.out"
        api, worker_logs, trigger_logs = free_ports(3)
        self.url = f"http://127.0.0.1:{api}"
        search = [str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
        self._environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW_", "_AIRFLOW_"))
        } | {
            "PYTHONPATH": os.pathsep.join(search),
            # `airflow standalone` starts its components through the command `airflow`.
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "AIRFLOW_HOME": str(home),
            "AIRFLOW__API__BASE_URL": self.url,
            "AIRFLOW__API__HOST": "127.0.0.1",
            "AIRFLOW__API__PORT": str(api),
            "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
            "AIRFLOW__CORE__DAGS_FOLDER": str(self.dags),
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{self.url}/execution/",
            "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__PARALLELISM": "10",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
            # Everything is written before the start, and parsing takes time from the tasks.
            "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "3600",
            # On a busy machine, a process may lock the file for longer than the default 5 seconds.
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{self.database}?timeout=60",
            "AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT": str(trigger_logs),
            "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(worker_logs),
            "AIRFLOW__SCHEDULER__SCHEDULER_HEARTBEAT_SEC": "1",
            "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.2",
            "AIRFLOW__TRIGGERER__JOB_HEARTBEAT_SEC": "1",
            "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "5",
            "AIRFLOW__SCHEDULER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "5",
            "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
            # A supervisor notices a change of its task this soon; a trigger needs 3 seconds more.
            "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "1",
            # On a busy machine, a worker whose request takes 5 seconds would fail its task before it begins.
            "AIRFLOW__WORKERS__EXECUTION_API_TIMEOUT": "60",
            **({"AIRFLOW__QWENIMAGE__CALLBACK_BASE_URL": self.url} if is_called_back else {}),
            **(settings or {}),
        }
        self._processes: list[subprocess.Popen[bytes]] = []
        self._session = requests.Session()

    @property
    def environment(self) -> Mapping[str, str]:
        """The environment of its processes, for a command of Airflow's."""
        return self._environment

    def prepare(self, connections: str) -> None:
        """Create the metadata database and store connections: a JSON object of fields by connection id."""
        subprocess.run(
            [sys.executable, "-c", _PREPARE],
            env=self._environment,
            input=connections.encode(),
            capture_output=True,
            check=True,
            timeout=_START_SECONDS,
        )

    def start(self, *dag_ids: str) -> None:
        """Start Airflow, and return when every component is healthy and the DAGs are parsed."""
        self._run("standalone")
        wait_for("a healthy Airflow", lambda: self._is_ready(dag_ids), _START_SECONDS)

    def stop(self) -> None:
        """Kill every process, including those that left the process group."""
        while family := self._family():
            for process in family:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            psutil.wait_procs(family, timeout=1)
        for started in self._processes:
            started.wait()

    def kill_triggerer(self) -> None:
        """Kill the triggerer, as a crash does."""
        pids = self._pids("triggerer")
        assert pids, "no triggerer runs"
        self._kill(pids)
        wait_for("the end of the triggerer", lambda: not self._pids("triggerer"))

    def end_triggerer(self) -> None:
        """Terminate the triggerer, as a deployment does, with time to clean up."""
        for pid in self._pids("triggerer"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        wait_for("the end of the triggerer", lambda: not self._pids("triggerer"))

    def start_triggerer(self) -> None:
        self._run("triggerer")

    def kill_api_server(self) -> None:
        """Kill the API server, as a crash does."""
        self._kill([process.pid for process in self._family() if self._listens(process)])
        wait_for("the end of the API server", lambda: not any(self._listens(process) for process in self._family()))

    def start_api_server(self) -> None:
        """Start it again, and return when it answers."""
        self._run("api-server")
        wait_for("the API server", self._answers)

    def _listens(self, process: psutil.Process) -> bool:
        port = int(self.url.rpartition(":")[2])
        with contextlib.suppress(psutil.Error):
            return any(
                entry.status == psutil.CONN_LISTEN and entry.laddr.port == port for entry in process.net_connections()
            )
        return False

    def _answers(self) -> bool:
        with contextlib.suppress(requests.RequestException):
            return bool(self._call("GET", "monitor/health"))
        return False

    def trigger(self, dag_id: str, conf: dict[str, Any]) -> str:
        """Start a DAG run and return its id."""
        return str(self._call("POST", f"dags/{dag_id}/dagRuns", {"logical_date": None, "conf": conf})["dag_run_id"])

    def add_connection(self, conn_id: str, conn_type: str, **fields: Any) -> None:
        """Store a connection, unless one with that id exists."""
        body = {"connection_id": conn_id, "conn_type": conn_type, **fields}
        answer = self._session.post(f"{self.url}/api/v2/connections", json=body, timeout=_ANSWER_SECONDS)
        if answer.status_code != _CONFLICT:
            answer.raise_for_status()

    def links(self, dag_id: str, run_id: str, task_id: str, map_index: int = -1) -> dict[str, str | None]:
        """Return the links of a task instance, by name."""
        path = f"dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/links?map_index={map_index}"
        return dict(self._call("GET", path)["extra_links"])

    def extra_of(self, conn_id: str) -> Any:
        """Return the extra of a stored connection."""
        return json.loads(self._call("GET", f"connections/{conn_id}")["extra"])

    def clear(self, dag_id: str, run_id: str) -> None:
        """Clear every task of a run, including running tasks."""
        body = {"dry_run": False, "only_failed": False, "dag_run_id": run_id}
        self._call("POST", f"dags/{dag_id}/clearTaskInstances", body)

    def mistaken_crashes(self, dag_id: str, run_id: str, task_id: str) -> int:
        """Return how often the scheduler mistook a task for crashed because it read an old message late."""
        # The id of a run has a plus sign, which means a space in a query.
        query = urlencode({"dag_id": dag_id, "run_id": run_id, "task_id": task_id, "event": "state mismatch"})
        return int(self._call("GET", f"eventLogs?{query}")["total_entries"])

    def mark_failed(self, dag_id: str, run_id: str, task_id: str) -> None:
        path = f"dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}"
        self._call("PATCH", path, {"new_state": "failed"})

    def mark_run_succeeded(self, dag_id: str, run_id: str) -> None:
        self._call("PATCH", f"dags/{dag_id}/dagRuns/{run_id}", {"state": "success"})

    def run_state(self, dag_id: str, run_id: str) -> str:
        return str(self._call("GET", f"dags/{dag_id}/dagRuns/{run_id}")["state"])

    def wait_for_run(self, dag_id: str, run_id: str, seconds: float = _PATIENCE_SECONDS) -> None:
        def is_over() -> bool:
            return self.run_state(dag_id, run_id) in {"success", "failed"}

        try:
            wait_for(f"the end of {dag_id}", is_over, seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}: {self.states(dag_id, run_id)}") from error

    def tasks(self, dag_id: str, run_id: str) -> dict[tuple[str, int], dict[str, Any]]:
        """Return the task instances of a run."""
        found = self._call("GET", f"dags/{dag_id}/dagRuns/{run_id}/taskInstances?limit=100")["task_instances"]
        return {(task["task_id"], task["map_index"]): task for task in found}

    def states(self, dag_id: str, run_id: str) -> dict[tuple[str, int], str]:
        return {key: task["state"] for key, task in self.tasks(dag_id, run_id).items()}

    def returned(self, dag_id: str, run_id: str, task_id: str, map_index: int = -1) -> Any:
        """Return the return value of a task."""
        path = f"dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/xcomEntries/return_value"
        return self._call("GET", f"{path}?map_index={map_index}&deserialize=true")["value"]

    def pushed(self, dag_id: str, run_id: str, task_id: str, key: str) -> Any:
        """Return an XCom of a task that is not mapped."""
        path = f"dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/xcomEntries/{key}"
        return self._call("GET", f"{path}?map_index=-1&deserialize=true")["value"]

    def hitl_detail(self, dag_id: str, run_id: str, task_id: str) -> dict[str, Any]:
        """Return what a task that is not mapped asks people."""
        return self._call("GET", f"dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/-1/hitlDetails")

    def answer(self, dag_id: str, run_id: str, task_id: str, body: dict[str, Any], token: str | None = None) -> int:
        """Answer a task that is not mapped, as another user if a token is given, and return the HTTP status."""
        url = f"{self.url}/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/-1/hitlDetails"
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        return self._session.patch(url, json=body, headers=headers, timeout=_ANSWER_SECONDS).status_code

    def use_token(self, token: str) -> None:
        """Send this token with each request; without one, that of an Airflow in which all users are administrators."""
        self._session.headers["Authorization"] = f"Bearer {token}"

    def pool(self) -> dict[str, Any]:
        """Return the slots of the default pool."""
        return self._call("GET", "pools/default_pool")

    def log(self, dag_id: str, run_id: str, task_id: str) -> str:
        """Return the text of every log file of a task."""
        folder = self.home / "logs" / f"dag_id={dag_id}" / f"run_id={run_id}" / f"task_id={task_id}"
        return "".join(file.read_text() for file in sorted(folder.rglob("*.log*")))

    def rows(self) -> Iterator[tuple[str, str, Any]]:
        """Return every value in the metadata database, with its table and column."""
        with contextlib.closing(sqlite3.connect(f"file:{self.database}?mode=ro", uri=True)) as database:
            database.text_factory = bytes
            tables = [
                name.decode() for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            ]
            for table in tables:
                cursor = database.execute(f'SELECT * FROM "{table}"')  # noqa: S608  names of tables
                columns = [str(column[0]) for column in cursor.description]
                for row in cursor:
                    for column, value in zip(columns, row, strict=True):
                        yield table, column, value

    def _command(self, *module: str) -> list[str]:
        """Return the command line that starts one of Airflow's programs."""
        return [sys.executable, "-m", *module]

    def _run(self, command: str) -> None:
        with self.output.open("ab") as output:
            self._processes.append(
                subprocess.Popen(
                    self._command("airflow", command),
                    env=self._environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    cwd=self.home,
                    start_new_session=True,
                )
            )

    def _is_ready(self, dag_ids: tuple[str, ...]) -> bool:
        assert self._processes[0].poll() is None, self.output.read_text()[-4000:]
        try:
            health = self._call("GET", "monitor/health")
            known = {dag["dag_id"] for dag in self._call("GET", "dags")["dags"]}
        except (requests.RequestException, KeyError):
            return False
        parts = ("metadatabase", "scheduler", "triggerer", "dag_processor")
        return all(health[part]["status"] == "healthy" for part in parts) and known >= set(dag_ids)

    def _call(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        if "Authorization" not in self._session.headers:
            token = self._session.get(f"{self.url}/auth/token", timeout=_ANSWER_SECONDS).json()["access_token"]
            self._session.headers["Authorization"] = f"Bearer {token}"
        answer = self._session.request(method, f"{self.url}/api/v2/{path}", json=body, timeout=_ANSWER_SECONDS)
        answer.raise_for_status()
        decoded: dict[str, Any] = answer.json()
        return decoded

    def _pids(self, word: str = "") -> list[int]:
        """Return the ids of this Airflow's processes, found by its home, whose command line contains a word."""
        mark = f"AIRFLOW_HOME={self.home}".encode()
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                ours = mark in (entry / "environ").read_bytes().split(b"\0")
                if ours and word.encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
        return found

    def _family(self) -> set[psutil.Process]:
        """Return every living process of this Airflow."""
        sessions = {process.pid for process in self._processes}
        marked, found = self._pids(), set()
        for process in psutil.process_iter():
            with contextlib.suppress(OSError, psutil.Error):
                # A process that sets its own title overwrites its environment.
                if process.pid in marked or os.getsid(process.pid) in sessions:
                    found |= {process, *process.children(recursive=True)}
        return {process for process in found if _is_alive(process)}

    @staticmethod
    def _kill(pids: list[int]) -> None:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def wait_for(what: str, condition: Callable[[], object], seconds: float = _PATIENCE_SECONDS) -> None:
    """Wait until a condition holds; fail the test if it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}, which did not happen"
        time.sleep(_LOOK_SECONDS)


def _is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False
