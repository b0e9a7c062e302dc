"""Runs Airflow tasks at the same time, each in a process of its own that a test can stop, continue and kill.

As a script it is the process that the others are forked from, which saves each of them the imports of Airflow.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import Any, NoReturn, Self

import psutil

from tests.events import wait_until

log = logging.getLogger(__name__)

_ROOT = Path(__file__).parent.parent
# On a busy machine, too.
_SECONDS = 80.0
_STOPPED = (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)


@dataclass(frozen=True)
class ProcessEnd:
    """How a task ended in its process.

    Attributes:
        returned: What it returned; None if it failed.
        error: The class and the message of the exception that it ended with, or None.
        xcoms: The values it pushed.
    """

    returned: Any
    error: str | None
    xcoms: dict[str, Any]

    @property
    def value(self) -> Any:
        """What the task returned. It must have succeeded."""
        assert self.error is None, self.error
        return self.returned


class TaskProcess:
    """A task that runs, or has run, in its own process.

    Args:
        pid: The process.
        folder: The folder of its result and its log.
        go: The file that it waits for.
    """

    def __init__(self, pid: int, folder: Path, go: Path) -> None:
        self._process = psutil.Process(pid)
        self._folder = folder
        self._go = go

    def go(self) -> None:
        """Let it begin."""
        self._go.touch()

    def freeze(self) -> None:
        """Stop it as it is, as a machine that is overloaded or suspended does."""
        self._process.send_signal(signal.SIGSTOP)
        wait_until(lambda: self._process.status() in _STOPPED, "the stop of a process")

    def thaw(self) -> None:
        """Continue it after `freeze`."""
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """Kill it, as a machine that fails does. It must be running."""
        self._process.send_signal(signal.SIGKILL)
        wait_until(lambda: not self.is_running, "the end of a killed process")
        assert not self._result.exists(), "the process had ended before it was killed"

    @property
    def is_running(self) -> bool:
        """Whether the process lives."""
        return self._process.is_running()

    @property
    def log(self) -> str:
        """What it has logged so far."""
        file = self._folder / "log"
        return file.read_text() if file.exists() else ""

    def wait(self) -> ProcessEnd:
        """Wait until the task has ended, and return how."""
        wait_until(lambda: self._result.exists() or not self.is_running, "the end of a task's process", _SECONDS)
        assert self._result.exists(), f"the process ended without a result: {self.log}"
        return ProcessEnd(**json.loads(self._result.read_text()))

    @property
    def _result(self) -> Path:
        return self._folder / "result.json"


class TaskProcesses:
    """Starts tasks in processes of their own. Use it as a context manager.

    Args:
        folder: An empty folder for what they store besides their images.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers, self._dags = count(1), count(2)
        self._dag_id = "foxes_1"
        self._started: list[TaskProcess] = []

    def __enter__(self) -> Self:
        self._server = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=_ROOT,
            env=os.environ | {"PYTHONPATH": str(_ROOT)},
        )
        assert self._answer() == "ready"
        return self

    def __exit__(self, *_: object) -> None:
        self.kill_all()
        self._server.communicate()

    def kill_all(self) -> None:
        """Kill the processes that still run. Those that are started next are tasks of another DAG."""
        for process in self._started:
            if process.is_running:
                process._process.kill()
        self._started.clear()
        self._dag_id = f"foxes_{next(self._dags)}"

    def start(
        self,
        operator: str,
        arguments: Mapping[str, Any],
        *,
        run_id: str = "manual__1",
        task_id: str = "draw",
        map_index: int = -1,
        try_number: int = 1,
        host: str = "host",
        waits: bool = False,
    ) -> TaskProcess:
        """Start a task. Equal names are the same task instance, whose tries share Airflow's store for task states.

        Args:
            operator: The name of its class, which is imported from the package.
            arguments: Those of the operator; plain JSON.
            run_id: The DAG run.
            task_id: The task.
            map_index: Its map index, or -1.
            try_number: The try.
            host: The machine that it runs on, which has a folder of its own for temporary files.
            waits: Whether it begins only at `TaskProcess.go`.
        """
        folder = self._folder / str(next(self._numbers))
        folder.mkdir()
        go = folder / "go"
        if not waits:
            go.touch()
        order = {
            "operator": operator,
            "arguments": dict(arguments),
            "instance": {
                "dag_id": self._dag_id,
                "run_id": run_id,
                "task_id": task_id,
                "map_index": map_index,
                "try_number": try_number,
            },
            "states": str(self._folder / f"states-{self._dag_id}-{run_id}-{task_id}-{map_index}.json"),
            "folder": str(folder),
            "go": str(go),
            "host": str(self._folder / host),
            "connections": {name: value for name, value in os.environ.items() if name.startswith("AIRFLOW_CONN_")},
        }
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps(order) + "\n")
        self._server.stdin.flush()
        process = TaskProcess(int(self._answer()), folder, go)
        self._started.append(process)
        return process

    def _answer(self) -> str:
        assert self._server.stdout is not None
        answer = self._server.stdout.readline().strip()
        assert answer, "the process that starts tasks has ended"
        return answer


class _TaskStates:
    """Airflow's accessor of task states, in a file that the tries of a task instance share."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def _read(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(self._file.read_text()) if self._file.exists() else {}
        return content

    def _write(self, states: dict[str, Any]) -> None:
        written = self._file.with_suffix(f".{os.getpid()}")
        written.write_text(json.dumps(states, allow_nan=False))
        written.replace(self._file)

    def get(self, key: str, default: Any = None) -> Any:
        return self._read().get(key, default)

    def set(self, key: str, value: Any, *, retention: timedelta | None = None) -> None:
        if value is None:
            raise ValueError("Cannot set value as None")
        self._write(self._read() | {key: value})

    def delete(self, key: str) -> None:
        states = self._read()
        states.pop(key, None)
        self._write(states)

    def clear(self) -> None:
        self._write({})


@dataclass
class _TaskInstance:
    """The attributes of a task instance in a worker."""

    dag_id: str
    run_id: str
    task_id: str
    map_index: int
    try_number: int
    task: Any = None
    max_tries: int = 2
    hostname: str = "worker"
    state: str = "running"
    start_date: datetime = field(default_factory=lambda: datetime.now(UTC))
    xcoms: dict[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        return str(uuid.uuid5(uuid.NAMESPACE_OID, f"{self.dag_id} {self.run_id} {self.task_id} {self.map_index}"))

    def xcom_push(self, key: str, value: Any, **_: Any) -> None:
        self.xcoms[key] = json.loads(json.dumps(value))

    def xcom_pull(self, task_ids: Any = None, key: str = "return_value", map_indexes: Any = None, **_: Any) -> Any:
        return self.xcoms.get(key)


def _run(order: Mapping[str, Any]) -> NoReturn:
    import airflow_provider_qwenimage
    from tests.airflows import HAS_TASK_STATES

    folder = Path(order["folder"])
    written = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(written, 1)
    os.dup2(written, 2)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, force=True)
    os.environ.update(order["connections"])
    tempfile.tempdir = os.environ["TMPDIR"] = order["host"]
    Path(order["host"]).mkdir(exist_ok=True)
    go = Path(order["go"])
    wait_until(go.exists, "the start of the task")
    instance = _TaskInstance(**order["instance"])
    returned, error = None, None
    try:
        operator = getattr(airflow_provider_qwenimage, order["operator"])(
            task_id=instance.task_id, **order["arguments"]
        )
        instance.task = operator
        context: dict[str, Any] = {"ti": instance, "task_instance": instance, "task": operator}
        context |= {"run_id": instance.run_id}
        if HAS_TASK_STATES:
            context["task_state_store"] = _TaskStates(Path(order["states"]))
        returned = operator.execute(context)
    except BaseException as raised:
        log.exception("The task failed.")
        error = f"{type(raised).__name__}: {raised}"
    result = folder / "unfinished.json"
    result.write_text(json.dumps({"returned": returned, "error": error, "xcoms": instance.xcoms}))
    result.rename(folder / "result.json")
    os._exit(0)


def _serve() -> None:
    # What every task needs is imported before the forks.
    import airflow_provider_qwenimage.batch.task
    import airflow_provider_qwenimage.tasks.drawing  # noqa: F401

    # Ended processes leave no zombies.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    answers.write("ready\n")
    answers.flush()
    for line in sys.stdin:
        order = json.loads(line)
        if order["arguments"]["output_path"].startswith("s3:"):
            # Otherwise each of the tasks that are to run at once would import it.
            import_module("s3fs")
        if any("books_conn_id" in connection for connection in order["connections"].values()):
            import_module("airflow_provider_qwenimage.books.opening")
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _run(order)
        answers.write(f"{pid}\n")
        answers.flush()


if __name__ == "__main__":
    _serve()
