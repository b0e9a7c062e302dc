"""A running Airflow on PostgreSQL whose CPU time and process starts are measured."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import requests
import sqlalchemy

from benchmarks.processes import adopting, cpu_seconds_below
from benchmarks.sandbox_process import ROOT
from benchmarks.settings import COMPILED, Settings
from scripts.local_airflow import CannotGoOnError
from tests.integration.standalone import StandaloneAirflow

_PAUSE_SECONDS = 0.2
# The API server and the scheduler need some CPU time after the last task.
_SETTLE_SECONDS = 3.0
_RUN = sqlalchemy.text("SELECT state, EXTRACT(EPOCH FROM end_date) AS ended FROM dag_run WHERE run_id = :run_id")
# The API server logs this for each task process that starts, also after a reschedule or a deferral.
_STARTS = sqlalchemy.text("SELECT count(*) FROM log WHERE event = 'running' AND run_id = :run_id")
_MISTAKEN = sqlalchemy.text("SELECT count(*) FROM log WHERE event = 'state mismatch' AND run_id = :run_id")


@dataclass(frozen=True)
class RunUsage:
    """The usage of a DAG run.

    Attributes:
        wall_seconds: From the trigger to the end of the run.
        cpu_seconds: The CPU time of all Airflow processes, including their idle usage.
        measured_seconds: The period of `cpu_seconds`.
        process_starts: The number of task processes.
        false_crashes: The number of tasks that the scheduler considered crashed by mistake, and restarted.
    """

    wall_seconds: float
    cpu_seconds: float
    measured_seconds: float
    process_starts: int
    false_crashes: int


class MeasuredAirflow(StandaloneAirflow):
    """Airflow as `airflow standalone` runs it, with the defaults of all options that affect the cost of tasks.

    Args:
        home: The AIRFLOW_HOME: an empty folder.
        database: The URL of its PostgreSQL database.
        settings: The settings for the DAG files.
    """

    def __init__(self, home: Path, database: str, settings: Settings) -> None:
        super().__init__(
            home,
            ROOT,
            {
                "AIRFLOW__CORE__PARALLELISM": "32",
                # Parsing the files again during a run would be counted as usage of that run.
                "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "3600",
                "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": database,
                "AIRFLOW__SCHEDULER__SCHEDULER_HEARTBEAT_SEC": "5",
                # Airflow's defaults; the tests set them lower, which keeps the scheduler and the supervisors busy.
                "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "1",
                "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "5",
                "AIRFLOW__TRIGGERER__JOB_HEARTBEAT_SEC": "5",
                "AIRFLOW__SCHEDULER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "30",
                "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "30",
                **COMPILED,
                **settings.to_environment(),
            },
        )
        self._engine = sqlalchemy.create_engine(database)

    def add_dags(self, names: Iterable[str]) -> None:
        """Copy DAG files of the benchmark into the dags folder."""
        for name in names:
            shutil.copy(Path(__file__).with_name("dag_files") / f"{name}.py", self.dags)

    def cpu_seconds(self) -> float:
        """Return the CPU seconds of its processes, including ended ones."""
        return cpu_seconds_below(self._processes[0].pid)

    def measure_idle(self, seconds: float) -> float:
        """Return the CPU seconds per second that it uses while nothing runs."""
        began, used = time.monotonic(), self.cpu_seconds()
        time.sleep(seconds)
        return (self.cpu_seconds() - used) / (time.monotonic() - began)

    def measure_run(self, dag_id: str, conf: Mapping[str, float], seconds: float) -> RunUsage:
        """Run a DAG, and return the usage of the run.

        Args:
            conf: The run's configuration.
            seconds: The time limit.

        Raises:
            CannotGoOnError: If the run does not succeed in time.
        """
        began, used = time.monotonic(), self.cpu_seconds()
        triggered = time.time()
        run_id = self.trigger(dag_id, dict(conf))
        while True:
            # Read from the database, because requests to Airflow's API would be measured too.
            state, ended = self._run_state(run_id)
            if state == "success" and ended is not None:
                break
            if state == "failed" or time.time() - triggered > seconds:
                raise CannotGoOnError(f"The DAG run of {dag_id} is {state} after {time.time() - triggered:.0f} s.")
            time.sleep(_PAUSE_SECONDS)
        time.sleep(_SETTLE_SECONDS)
        used, measured = self.cpu_seconds() - used, time.monotonic() - began
        with self._engine.connect() as connection:
            starts, mistaken = (
                int(connection.execute(query, {"run_id": run_id}).scalar_one()) for query in (_STARTS, _MISTAKEN)
            )
        return RunUsage(ended - triggered, used, measured, starts, mistaken)

    def stop(self) -> None:
        """Stop every process, and close the connections to the database."""
        self._engine.dispose()
        super().stop()

    def _run_state(self, run_id: str) -> tuple[str | None, float | None]:
        with self._engine.connect() as connection:
            row = connection.execute(_RUN, {"run_id": run_id}).one()
        return row.state, None if row.ended is None else float(row.ended)

    def _is_ready(self, dag_ids: tuple[str, ...]) -> bool:
        if super()._is_ready(dag_ids):
            return True
        # A DAG file that cannot be imported never becomes ready.
        with contextlib.suppress(requests.RequestException, KeyError):
            for error in self._call("GET", "importErrors")["import_errors"]:
                raise CannotGoOnError(f"Airflow cannot import a DAG file:\n{error['stack_trace']}")
        return False

    def _command(self, *module: str) -> list[str]:
        return adopting(*super()._command(*module))
