"""Read tasks, and the workers and triggerers that run them, from Airflow's metadata database."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy

from tests.chaos.cluster import InstanceKey

_TASKS = sqlalchemy.text(
    "SELECT dag_id, task_id, map_index, run_id, state, try_number, start_date, end_date FROM task_instance"
)
_RUNNING_ON = sqlalchemy.text("SELECT count(*) FROM task_instance WHERE state = 'running' AND hostname = :hostname")
_HELD_BY = sqlalchemy.text(
    "SELECT count(*) FROM trigger JOIN job ON job.id = trigger.triggerer_id "
    "WHERE job.hostname = :hostname AND job.state = 'running'"
)
_UNFINISHED = sqlalchemy.text(
    "SELECT count(*) FROM task_instance WHERE state IN ('scheduled', 'queued', 'running', 'deferred', 'up_for_retry')"
)


@dataclass(frozen=True)
class TaskRow:
    """A task instance in Airflow's database."""

    key: InstanceKey
    run_id: str
    state: str | None
    try_number: int
    start_date: datetime | None
    end_date: datetime | None


class Metadata:
    """The metadata database of a composition; `url` is for SQLAlchemy."""

    def __init__(self, url: str) -> None:
        self._engine = sqlalchemy.create_engine(url)

    def tasks(self) -> dict[InstanceKey, TaskRow]:
        """Return every task instance."""
        with self._engine.connect() as connection:
            rows = connection.execute(_TASKS).all()
        return {
            (row.dag_id, row.task_id, row.map_index): TaskRow(
                (row.dag_id, row.task_id, row.map_index),
                row.run_id,
                row.state,
                row.try_number,
                row.start_date,
                row.end_date,
            )
            for row in rows
        }

    def running_on(self, hostname: str) -> int:
        """Return how many tasks are running on a worker."""
        return self._count(_RUNNING_ON, hostname=hostname)

    def held_by(self, hostname: str) -> int:
        """Return how many triggers are assigned to a triggerer."""
        return self._count(_HELD_BY, hostname=hostname)

    def unfinished(self) -> int:
        """Return how many task instances are not finished."""
        return self._count(_UNFINISHED)

    def close(self) -> None:
        """Close the connections to the database."""
        self._engine.dispose()

    def _count(self, query: sqlalchemy.TextClause, **values: str) -> int:
        with self._engine.connect() as connection:
            return int(connection.execute(query, values).scalar_one())


def states(rows: Mapping[InstanceKey, TaskRow], dag_id: str, task_id: str) -> Counter[str | None]:
    """Return how many instances of a mapped task are in each state."""
    return Counter(row.state for key, row in rows.items() if key[:2] == (dag_id, task_id) and key[2] >= 0)
