"""The running Airflow of the crash test, its sandboxes and its counters, shared by all parts."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from airflow_provider_qwenimage.sandbox import Sandbox
from scripts.progress import Progress
from tests.chaos.books_evidence import gather_books
from tests.chaos.cluster import OVER, Cluster, InstanceKey, TaskRow
from tests.chaos.drawings import Drawing
from tests.chaos.evidence import gather
from tests.chaos.judge import Evidence
from tests.chaos.outages import Outages
from tests.chaos.settling import settle_books
from tests.chaos.tables import table
from tests.chaos.tasks import Task
from tests.databases.server import Database
from tests.integration.standalone import wait_for

OnRows = Callable[[Mapping[InstanceKey, TaskRow]], None]

_PAUSE_SECONDS = 0.1
_RUNS_SECONDS = 60.0
# A terminal's line is overwritten; a log gets a new line each time.
_UPDATE_SECONDS = 1.0 if sys.stdout.isatty() else 9.0


@dataclass(frozen=True)
class Scene:
    """A running Airflow and everything around it.

    Attributes:
        cluster: The running Airflow.
        apis: The sandboxes by connection id.
        images: The folder in which the tasks store images.
        checkpoints: The folder of the checkpoints.
        books: The database of the books of all connections.
        outages: Its outages.
        kills: How often each task was killed.
        clears: How often each task was cleared.
        complaints: Everything that is wrong so far.
    """

    cluster: Cluster
    apis: Mapping[str, Sandbox]
    images: Path
    checkpoints: Path
    books: Database
    outages: Outages
    progress: Progress
    kills: Counter[InstanceKey] = field(default_factory=Counter)
    clears: Counter[InstanceKey] = field(default_factory=Counter)
    complaints: list[str] = field(default_factory=list)

    def wait_for_end(self, title: str, tasks: Sequence[Task], on_rows: OnRows | None = None, *, seconds: float) -> None:
        """Wait until tasks are finished.

        Args:
            title: The text of the progress line.
            on_rows: Called about ten times a second with the current rows of all tasks.
            seconds: The time limit.

        Raises:
            AssertionError: If the tasks are not finished in time.
        """
        deadline = time.monotonic() + seconds
        next_update = 0.0
        with self.progress.step(title):
            while True:
                rows = self.cluster.task_rows()
                if on_rows is not None:
                    on_rows(rows)
                states = Counter(_state(rows, task) for task in tasks)
                done = sum(number for state, number in states.items() if state in OVER)
                if time.monotonic() >= next_update or done == len(tasks):
                    kills = sum(self.kills[task.instance_key] for task in tasks)
                    self.progress.update(
                        f"{title}: {f'{kills} kills, ' if kills else ''}{done} of {len(tasks)} tasks done"
                    )
                    next_update = time.monotonic() + _UPDATE_SECONDS
                if done == len(tasks):
                    return
                assert time.monotonic() < deadline, f"not finished after {seconds:.0f} s: {title}; {dict(states)}"
                time.sleep(_PAUSE_SECONDS)

    def states(self, tasks: Sequence[Task]) -> set[str | None]:
        """Return the set of the states of tasks."""
        rows = self.cluster.task_rows()
        return {_state(rows, task) for task in tasks}

    def gather(self, drawings: Sequence[Drawing]) -> list[Evidence]:
        """Return the evidence on tasks."""
        return gather(drawings, self.cluster, self.apis.values(), self.images, kills=self.kills, clears=self.clears)

    def settle_books(self) -> str:
        """End the outages, settle the books, and compare them with what was charged. Return the table to print."""
        with self.progress.step("Settling the books"):
            self.outages.stop()
            folders = [self.images, *(folder for folder in self.images.iterdir() if folder.is_dir())]
            for api in self.apis.values():
                # Each question about an image task gets its answer.
                api.configure(fault_paths=("image",))
            settle_books(self.cluster.environment, self.apis, folders)
            charged = {
                conn_id: {submission.task_id: submission.charged for submission in api.submissions}
                for conn_id, api in self.apis.items()
            }
            evidence = gather_books(self.books.url, charged, self.images)
        self.complaints.extend(evidence.complaints())
        return table(("books", "number"), [("outages of their database", self.outages.made), *evidence.cells()])

    def clear(self, tasks: Sequence[Task], *, only_failed: bool) -> None:
        """Clear tasks of finished DAG runs, as a user does in the Airflow UI."""
        # Airflow marks a run as finished a moment after its last task; a run cleared before that would stay finished.
        wait_for("the end of the DAG runs", lambda: not self.cluster.has_open_runs(), _RUNS_SECONDS)
        self.cluster.clear_tasks(tasks, only_failed=only_failed)
        self.clears.update(task.instance_key for task in tasks)


def _state(rows: Mapping[InstanceKey, TaskRow], task: Task) -> str | None:
    row = rows.get(task.instance_key)
    return row.state if row is not None else None
