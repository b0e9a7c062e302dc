"""A running Airflow on PostgreSQL whose CPU time and process starts are counted."""

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

_LOOK_SECONDS = 0.2
# What is still to do after the last task: the API server's and the scheduler's books.
_SETTLE_SECONDS = 3.0
_RUN = sqlalchemy.text("SELECT state, EXTRACT(EPOCH FROM end_date) AS ended FROM dag_run WHERE run_id = :run_id")
# The API server writes it for each task process that reports for work: after a reschedule or a deferral again.
_STARTS = sqlalchemy.text("SELECT count(*) FROM log WHERE event = 'running' AND run_id = :run_id")
_MISTAKEN = sqlalchemy.text("SELECT count(*) FROM log WHERE event = 'state mismatch' AND run_id = :run_id")


@dataclass(frozen=True)
class RunUsage:
    """What a DAG run has used.

    Attributes:
        wall_seconds: From the trigger to the end of the run.
        cpu_seconds: Of all of Airflow's processes, what they use while nothing runs included.
        measured_seconds: The time in which they used that.
        process_starts: How many task processes were started and reported for work.
        mistaken_crashes: How many tasks the scheduler took for crashed by mistake, and let start again.
    """

    wall_seconds: float
    cpu_seconds: float
    measured_seconds: float
    process_starts: int
    mistaken_crashes: int


class MeasuredAirflow(StandaloneAirflow):
    """Airflow with its own defaults for what tasks cost, as `airflow standalone` runs it.

    Args:
        home: The AIRFLOW_HOME: an empty folder.
        database: The URL of its PostgreSQL.
        settings: What the DAG files are told.
    """

    def __init__(self, home: Path, database: str, settings: Settings) -> None:
        super().__init__(
            home,
            ROOT,
            {
                "AIRFLOW__CORE__PARALLELISM": "32",
                # Parsed anew each half minute, the files would be counted for whoever draws at that moment.
                "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "3600",
                "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": database,
                "AIRFLOW__SCHEDULER__SCHEDULER_HEARTBEAT_SEC": "5",
                "AIRFLOW__TRIGGERER__JOB_HEARTBEAT_SEC": "5",
                "AIRFLOW__SCHEDULER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "30",
                "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "30",
                **COMPILED,
                **settings.to_environment(),
            },
        )
        self._engine = sqlalchemy.create_engine(database)

    def add_dags(self, names: Iterable[str]) -> None:
        """Put DAG files of the benchmark into the dags folder."""
        for name in names:
            shutil.copy(Path(__file__).with_name("dag_files") / f"{name}.py", self.dags)

    def cpu_seconds(self) -> float:
        """Return the CPU seconds that its processes have used, those that have ended as well."""
        return cpu_seconds_below(self._processes[0].pid)

    def measure_idle(self, seconds: float) -> float:
        """Return the CPU seconds that it uses in a second while nothing runs."""
        began, used = time.monotonic(), self.cpu_seconds()
        time.sleep(seconds)
        return (self.cpu_seconds() - used) / (time.monotonic() - began)

    def measure_run(self, dag_id: str, conf: Mapping[str, float], seconds: float) -> RunUsage:
        """Run a DAG and return what that has used.

        Args:
            dag_id: The DAG.
            conf: The run's configuration.
            seconds: How long it may take.

        Raises:
            CannotGoOnError: If it does not succeed in time.
        """
        began, used = time.monotonic(), self.cpu_seconds()
        triggered = time.time()
        run_id = self.trigger(dag_id, dict(conf))
        while True:
            # In the database: Airflow's API would answer at the cost of what is measured.
            state, ended = self._look(run_id)
            if state == "success" and ended is not None:
                break
            if state == "failed" or time.time() - triggered > seconds:
                raise CannotGoOnError(f"The DAG run of {dag_id} is {state} after {time.time() - triggered:.0f} s.")
            time.sleep(_LOOK_SECONDS)
        time.sleep(_SETTLE_SECONDS)
        used, measured = self.cpu_seconds() - used, time.monotonic() - began
        with self._engine.connect() as connection:
            starts, mistaken = (
                int(connection.execute(query, {"run_id": run_id}).scalar_one()) for query in (_STARTS, _MISTAKEN)
            )
        return RunUsage(ended - triggered, used, measured, starts, mistaken)

    def stop(self) -> None:
        """Stop every process, and let the database go."""
        self._engine.dispose()
        super().stop()

    def _look(self, run_id: str) -> tuple[str | None, float | None]:
        with self._engine.connect() as connection:
            row = connection.execute(_RUN, {"run_id": run_id}).one()
        return row.state, None if row.ended is None else float(row.ended)

    def _is_ready(self, dag_ids: tuple[str, ...]) -> bool:
        if super()._is_ready(dag_ids):
            return True
        # A DAG file that cannot be imported would be waited for in vain.
        with contextlib.suppress(requests.RequestException, KeyError):
            for error in self._call("GET", "importErrors")["import_errors"]:
                raise CannotGoOnError(f"Airflow cannot import a DAG file:\n{error['stack_trace']}")
        return False

    def _command(self, *module: str) -> list[str]:
        return adopting(*super()._command(*module))
