"""Finds the deferred task that a callback of the API is for, and wakes it, in Airflow's metadata database. Blocks."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from airflow.models.taskinstance import TaskInstance
from airflow.models.trigger import Trigger
from airflow.triggers.base import TriggerEvent
from airflow.utils.session import create_session
from airflow.utils.state import TaskInstanceState
from sqlalchemy import and_, func, select
from sqlalchemy.orm import aliased, lazyload

from airflow_provider_qwenimage.airflow_versions import KEEPS_TRIES
from airflow_provider_qwenimage.rules import callbacks

if TYPE_CHECKING:
    from airflow_provider_qwenimage.rules.callbacks import Callback

# The arguments of our trigger take less than 2,000 characters, also encrypted. A DAG's author can store any.
_MOST_CHARACTERS = 65_536
# With it, an unknown task costs the same comparison.
_NO_DIGEST = callbacks.digest_of("")


@dataclass(frozen=True)
class Wait:
    """A deferred task instance that a callback may wake.

    Attributes:
        task_instance_id: The id of its present try, as the database column has it.
        trigger_id: The id of its trigger. Each deferral has a trigger of its own.
        deferred_at: When it was deferred.
    """

    task_instance_id: Any
    trigger_id: int
    deferred_at: datetime

    @property
    def seconds(self) -> float:
        """How long it has been deferred. At least 0: the clock of another server may be ahead."""
        return max(0.0, (datetime.now(UTC) - self.deferred_at).total_seconds())


def find_wait(callback: Callback) -> Wait | None:
    """Return the deferred task that a callback is for, in one read; None if there is none, or the secret is wrong."""
    # A UUID, or its text in Airflow 3.1.
    as_stored: Any = TaskInstance.id.type.python_type
    with create_session() as session:
        row = session.execute(_statement(as_stored(callback.task_instance_id))).one_or_none()
        digest: Any = _NO_DIGEST if row is None else _digest_of(row[1])
        if not callbacks.matches(callback.secret, digest) or row is None:
            return None
        return Wait(row[0], row[1].id, row[1].created_date)


def wake(wait: Wait) -> bool:
    """Resume a task with the event None, which has it ask the API; return False if it is not in this wait any more."""
    with create_session() as session:
        instance = session.get(TaskInstance, wait.task_instance_id, with_for_update={"of": TaskInstance})
        if instance is None or instance.state != TaskInstanceState.DEFERRED or instance.trigger_id != wait.trigger_id:
            return False
        Trigger.submit_event(wait.trigger_id, TriggerEvent(None), session=session)
        return True


def _digest_of(trigger: Trigger) -> object:
    # Whoever can write the row, or has changed Airflow's Fernet key, decides what is wrong with it.
    with suppress(Exception):
        return trigger.kwargs.get("callback")
    return None


def _statement(task_instance_id: Any) -> Any:
    """Return the query for the id of the present try and the trigger of a deferred task, by the id of one of its tries.

    Each retry and each Clear gives the task a new id, and the API still calls the URL with the old one.
    """
    present = (_by_tries if KEEPS_TRIES else _by_history)(task_instance_id).subquery()
    query: Any = (
        select(TaskInstance.id, Trigger)
        .join(present, present.c.id == TaskInstance.id)
        .join(Trigger, Trigger.id == TaskInstance.trigger_id)
        .where(
            TaskInstance.state == TaskInstanceState.DEFERRED,
            Trigger.classpath == callbacks.TRIGGER,
            func.length(Trigger.encrypted_kwargs) <= _MOST_CHARACTERS,
        )
        # Airflow's relationships would be read as well, in further queries.
        .options(lazyload("*"))
        # Otherwise Airflow 3.4 would hide earlier tries; older versions ignore it.
        .execution_options(include_all_attempts=True)
    )
    return query


def _by_history(task_instance_id: Any) -> Any:
    # Airflow 3.4 has no such model.
    from airflow.models.taskinstancehistory import TaskInstanceHistory

    earlier = (
        select(TaskInstance.id)
        .join(TaskInstanceHistory, _are_of_one_task(TaskInstance, TaskInstanceHistory, "map_index"))
        .where(TaskInstanceHistory.task_instance_id == task_instance_id)
    )
    # Not one query with an OR, for which databases use neither index.
    return select(TaskInstance.id).where(TaskInstance.id == task_instance_id).union(earlier)


def _by_tries(task_instance_id: Any) -> Any:
    present: Any = aliased(TaskInstance)
    tried: Any = aliased(TaskInstance)
    return (
        select(present.id)
        .join(tried, _are_of_one_task(present, tried, "region_id", "region_index"))
        .where(tried.id == task_instance_id, present.working_set.is_(True))
    )


def _are_of_one_task(one: Any, other: Any, *names: str) -> Any:
    return and_(*(getattr(one, name) == getattr(other, name) for name in ("dag_id", "run_id", "task_id", *names)))
