"""What every phase of the crash test works with, and how it waits for the end of tasks."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from airflow_provider_qwenimage.sandbox import Sandbox
from scripts.progress import Progress
from tests.chaos.cluster import OVER, Cluster, Place, TaskRow
from tests.chaos.drawings import Drawing
from tests.chaos.evidence import gather
from tests.chaos.judge import Evidence
from tests.chaos.tasks import Task
from tests.integration.standalone import wait_for

Look = Callable[[Mapping[Place, TaskRow]], None]

_LOOK_SECONDS = 0.1
_RUNS_SECONDS = 60.0
# A terminal's line is drawn over; a log gets a line each time.
_NEWS_SECONDS = 1.0 if sys.stdout.isatty() else 9.0


@dataclass(frozen=True)
class Scene:
    """A running Airflow and what belongs to it.

    Attributes:
        cluster: The Airflow.
        apis: The stand-ins of the API by the connections that lead to them.
        images: The folder that the tasks store to.
        stops: The folder of the checkpoints.
        progress: Where to say how far it is.
        kills: How often each task was killed.
        clears: How often each task was cleared.
        complaints: What is not as promised, so far.
    """

    cluster: Cluster
    apis: Mapping[str, Sandbox]
    images: Path
    stops: Path
    progress: Progress
    kills: Counter[Place] = field(default_factory=Counter)
    clears: Counter[Place] = field(default_factory=Counter)
    complaints: list[str] = field(default_factory=list)

    def follow(self, title: str, tasks: Sequence[Task], look: Look | None = None, *, seconds: float) -> None:
        """Wait until tasks are over.

        Args:
            title: What to show.
            tasks: The tasks.
            look: Called about ten times a second with the tasks as they stand.
            seconds: How long it may take.

        Raises:
            AssertionError: If they are not over in time.
        """
        deadline = time.monotonic() + seconds
        news = 0.0
        with self.progress.step(title):
            while True:
                rows = self.cluster.look()
                if look is not None:
                    look(rows)
                states = Counter(_state(rows, task) for task in tasks)
                done = sum(number for state, number in states.items() if state in OVER)
                if time.monotonic() >= news or done == len(tasks):
                    kills = sum(self.kills[task.place] for task in tasks)
                    self.progress.update(
                        f"{title}: {f'{kills} kills, ' if kills else ''}{done} of {len(tasks)} tasks done"
                    )
                    news = time.monotonic() + _NEWS_SECONDS
                if done == len(tasks):
                    return
                assert time.monotonic() < deadline, f"waited {seconds:.0f} s in vain for: {title}; {dict(states)}"
                time.sleep(_LOOK_SECONDS)

    def states(self, tasks: Sequence[Task]) -> set[str | None]:
        """Return the states that tasks are in."""
        rows = self.cluster.look()
        return {_state(rows, task) for task in tasks}

    def gather(self, drawings: Sequence[Drawing]) -> list[Evidence]:
        """Return what is known of tasks."""
        return gather(drawings, self.cluster, self.apis.values(), self.images, kills=self.kills, clears=self.clears)

    def clear(self, tasks: Sequence[Task], *, only_failed: bool) -> None:
        """Clear tasks of finished DAG runs, as a user does on Airflow's page."""
        # Airflow marks a run as finished a moment after its last task, and one that is cleared in between stays so.
        wait_for("the end of the DAG runs", lambda: not self.cluster.has_open_runs(), _RUNS_SECONDS)
        self.cluster.clear_tasks(tasks, only_failed=only_failed)
        self.clears.update(task.place for task in tasks)


def _state(rows: Mapping[Place, TaskRow], task: Task) -> str | None:
    row = rows.get(task.place)
    return row.state if row is not None else None
