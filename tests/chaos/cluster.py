"""A running Airflow on PostgreSQL: the crash test reads its tasks, clears them and reads their logs."""

from __future__ import annotations

import contextlib
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import requests
import sqlalchemy

from tests.chaos import checkpoints
from tests.chaos.tasks import Dag, Task
from tests.integration.standalone import StandaloneAirflow

InstanceKey = tuple[str, str, int]

OVER = frozenset({"success", "failed", "upstream_failed", "skipped", "removed"})
UNKNOWN = "QwenImageSubmissionUnknownError"
# The log of a try that asks the user has one of these: also after two answers with code 500, a submission may be paid.
ASKS = (UNKNOWN, "so it is not sent again automatically")
# The log of a batch's try contains this if there are images that only a Clear submits again.
MAYBE_PAID = "may be paid and"
# The log of a try contains one of these once the image is submitted.
SUBMITTED = ("Submitted image task", "Resuming image task")

_ATTEMPT = re.compile(r"attempt=(\d+)\.log$")
_TASKS = sqlalchemy.text("SELECT dag_id, task_id, map_index, state, pid, try_number FROM task_instance")
_OPEN_RUNS = sqlalchemy.text("SELECT dag_id FROM dag_run WHERE state IN ('queued', 'running')")
# Imported before Airflow forks the task processes, which saves each of them a third of a second.
_PRELOAD = """
import aiohttp
import PIL.Image
import requests

import airflow.dag_processing.dagbag
import airflow.providers.postgres.hooks.postgres
import airflow.sdk.execution_time.task_runner

import airflow_provider_qwenimage.books.opening
"""


@dataclass(frozen=True)
class TaskRow:
    """A task instance in Airflow's database."""

    key: InstanceKey
    state: str | None
    pid: int | None
    try_number: int


class Cluster(StandaloneAirflow):
    """An Airflow with short scheduler intervals.

    Args:
        home: The AIRFLOW_HOME.
        root: The folder that contains the package and the tests.
        database: The URL of its PostgreSQL database.
        checkpoints_folder: See `checkpoints`.
    """

    def __init__(self, home: Path, root: Path, database: str, checkpoints_folder: Path) -> None:
        scratch = home / "scratch"
        scratch.mkdir()
        super().__init__(
            home,
            root,
            {
                "AIRFLOW__API__WORKERS": "1",
                "AIRFLOW__CORE__PARALLELISM": "8",
                # The DAG files never change, and parsing them again would slow down the tasks.
                "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "3600",
                "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": database,
                "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.2",
                "AIRFLOW__SCHEDULER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "4",
                "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "4",
                # A task's supervisor needs up to this many seconds to notice that its process has ended.
                "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "1",
                checkpoints.FOLDER_VARIABLE: str(checkpoints_folder),
                # A killed process leaves its temporary files here.
                "TMPDIR": str(scratch),
            },
        )
        self._engine = sqlalchemy.create_engine(database)
        self._runs: dict[str, str] = {}
        config = home / "config"
        config.mkdir()
        (config / "airflow_local_settings.py").write_text(_PRELOAD)

    def run(self, dag: Dag) -> None:
        """Start a DAG's only run."""
        self._runs[dag.dag_id] = self.trigger(dag.dag_id, {})

    def task_rows(self) -> dict[InstanceKey, TaskRow]:
        """Return every task instance."""
        with self._engine.connect() as connection:
            rows = connection.execute(_TASKS).all()
        return {
            (row.dag_id, row.task_id, row.map_index): TaskRow(
                (row.dag_id, row.task_id, row.map_index), row.state, row.pid, row.try_number
            )
            for row in rows
        }

    def has_open_runs(self) -> bool:
        """Whether any DAG run is not finished."""
        with self._engine.connect() as connection:
            return connection.execute(_OPEN_RUNS).first() is not None

    def clear_tasks(self, tasks: Iterable[Task], *, only_failed: bool) -> None:
        """Clear tasks, as a user does in the Airflow UI."""
        by_dag: dict[str, list[Task]] = defaultdict(list)
        for task in tasks:
            by_dag[task.dag_id].append(task)
        for dag_id, chosen in by_dag.items():
            self._call(
                "POST",
                f"dags/{dag_id}/clearTaskInstances",
                {
                    "dry_run": False,
                    "dag_run_id": self._runs[dag_id],
                    "only_failed": only_failed,
                    "task_ids": [
                        task.task_id if task.map_index < 0 else [task.task_id, task.map_index] for task in chosen
                    ],
                },
            )

    def mark_task_failed(self, task: Task) -> None:
        """Mark an unmapped task as failed, as a user does in the Airflow UI."""
        self.mark_failed(task.dag_id, self._runs[task.dag_id], task.task_id)

    def result(self, task: Task) -> Mapping[str, object]:
        """Return the result of a finished task, or an empty mapping."""
        try:
            value = self.returned(task.dag_id, self._runs[task.dag_id], task.task_id, task.map_index)
        except requests.HTTPError:
            return {}
        return value if isinstance(value, dict) else {}

    def tries(self, task: Task) -> list[str]:
        """Return the log of each try of a task, oldest first."""
        logs = {int(match[1]): file for file in self._logs(task) if (match := _ATTEMPT.search(file.name))}
        return [logs[number].read_text(errors="replace") for number in sorted(logs)]

    def log_of_try(self, task: Task, number: int) -> str:
        """Return the log of one try of a task, as written so far."""
        return "".join(file.read_text(errors="replace") for file in self._logs(task, str(number)))

    def _logs(self, task: Task, number: str = "*") -> Iterable[Path]:
        folder = self.home / "logs" / f"dag_id={task.dag_id}" / f"run_id={self._runs.get(task.dag_id)}"
        folder /= f"task_id={task.task_id}"
        if task.map_index >= 0:
            folder /= f"map_index={task.map_index}"
        return folder.glob(f"attempt={number}.log")

    def _is_ready(self, dag_ids: tuple[str, ...]) -> bool:
        if not super()._is_ready(dag_ids):
            # A DAG file that cannot be imported never becomes ready.
            with contextlib.suppress(requests.RequestException):
                errors = self._call("GET", "importErrors")["import_errors"]
                assert not errors, f"Airflow cannot import a DAG file:\n{errors[0]['stack_trace']}"
            return False
        return True

    def stop(self) -> None:
        """Stop every process, and close the connections to the database."""
        self._engine.dispose()
        super().stop()
