"""Reads task instances and their XComs from Airflow's metadata database."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime
from importlib import import_module
from typing import TYPE_CHECKING, Any

from airflow.models.dagrun import DagRun
from airflow.models.taskinstance import TaskInstance as AirflowTaskInstance
from airflow.models.xcom import XComModel
from sqlalchemy import Text, and_, case, cast, func, null, or_, select

from airflow_provider_qwenimage.airflow_versions import HAS_LOOPS
from airflow_provider_qwenimage.plugin.image_records import WAITING_FOR_INPUT, TaskInstance
from airflow_provider_qwenimage.plugin.task_kinds import OPERATORS, XCOM_KEYS, XCOM_KEYS_OF_OPERATORS
from airflow_provider_qwenimage.plugin.xcom_values import LARGE_KEYS, MOST_BYTES, MOST_BYTES_OF_LARGE
from airflow_provider_qwenimage.rules.made_by import Region

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

# The limit for all XComs of a run that are read at once: those of some 30,000 tasks.
_MOST_CHARACTERS = 64 * 1024 * 1024
# Old versions of SQLite accept about a thousand values in a statement.
_TASKS_PER_QUERY = 400
_ROWS_AT_ONCE = 100
# Longer than any number of credits as JSON.
_MOST_DIGITS = 40
# Every run with images has at least one of these XComs.
_KEYS_OF_A_RUN = ("request", "task_id", "progress")

# A task id, with the map index, or since Airflow 3.4 with the id of the task instance.
TaskKey = tuple[str, object]
# XComs by key, as JSON; None for a value that is too large to read.
StoredXComs = dict[str, "str | None"]


def run_state(session: Session, dag_id: str, run_id: str) -> str:
    """Return the state of a DAG run; "None" if it does not exist."""
    return str(session.scalar(select(DagRun.state).where(DagRun.dag_id == dag_id, DagRun.run_id == run_id)))


def run_version(session: Session, dag_id: str, run_id: str, state: str) -> object:
    """Return a value that changes whenever a task instance of the run does.

    None while a task runs: it may push XComs at any moment, which changes nothing else in the database.
    """
    model = AirflowTaskInstance
    number, changed_at, running = session.execute(
        select(func.count(), func.max(model.updated_at), func.sum(case((model.state == "running", 1), else_=0))).where(
            model.dag_id == dag_id, model.run_id == run_id
        )
    ).one()
    return None if running else (number, str(changed_at), state)


def task_instances(session: Session, dag_id: str, run_id: str) -> list[tuple[TaskKey, TaskInstance, object]]:
    """Return the task instances of a run that may have images, each with a value that changes whenever it does."""
    positions = _positions_in_loops(session, dag_id, run_id) if HAS_LOOPS else {}
    model = AirflowTaskInstance
    # Operators that are derived from ours have names of their own.
    with_xcoms = select(XComModel.task_id).where(
        XComModel.dag_id == dag_id, XComModel.run_id == run_id, XComModel.key.in_(XCOM_KEYS_OF_OPERATORS)
    )
    columns = (
        model.task_id,
        model.map_index,
        model.state,
        model.operator,
        model.try_number,
        model.start_date,
        model.end_date,
        model.next_method,
        # After a wrong answer a task asks again, in the state that it was in.
        case((model.state.in_(WAITING_FOR_INPUT), model.updated_at), else_=null()),
        *((model.id, model.region_id) if HAS_LOOPS else (model.map_index, null())),
    )
    query = (
        select(*columns)
        .where(model.dag_id == dag_id, model.run_id == run_id)
        .where(or_(model.operator.in_(OPERATORS), model.task_id.in_(with_xcoms)))
        .order_by(model.task_id, model.map_index)
    )
    found: list[tuple[TaskKey, TaskInstance, object]] = []
    for task_id, index, state, operator, try_number, start, end, *moves, own, region_id in session.execute(query):
        changed_at = end or start
        map_index, region, iteration = _position(task_id, index, region_id, positions)
        instance = TaskInstance(
            dag_id=dag_id,
            run_id=run_id,
            task_id=task_id,
            map_index=map_index,
            state=None if state is None else str(state),
            operator=operator,
            try_number=try_number,
            changed_at=changed_at.isoformat() if changed_at else None,
            region=region,
            iteration=iteration,
        )
        found.append(((task_id, own), instance, (own, instance, str(start), *map(str, moves))))
    return found


def _positions_in_loops(session: Session, dag_id: str, run_id: str) -> dict[Any, tuple[str, int | None]]:
    """Return by its id, of each region of a run, the id of its task or loop and the iteration that it is in, if any."""
    model: Any = import_module("airflow.models.dynamic_region").DynamicRegion
    query = select(model.id, model.node_id, model.parent_region_index).where(
        model.dag_id == dag_id, model.run_id == run_id
    )
    return {region_id: (node_id, iteration) for region_id, node_id, iteration in session.execute(query)}


def _position(
    task_id: str, index: int, region_id: Any, positions: Mapping[Any, tuple[str, int | None]]
) -> tuple[int, Region | None, int | None]:
    """Return the map index, the region and the iteration of a task instance, as Airflow's pages address it.

    Args:
        index: Its index in its region: the map index of a mapped task, the iteration of another one in a loop.
    """
    if region_id not in positions:
        return index, None, None
    node_id, iteration = positions[region_id]
    if node_id != task_id:
        return -1, Region(str(region_id), index), index
    # A mapped task has a region of its own, outside loops as well.
    return index, None if iteration is None else Region(str(region_id), index), iteration


def xcoms_of(session: Session, dag_id: str, run_id: str, tasks: Collection[TaskKey]) -> dict[TaskKey, StoredXComs]:
    """Return the XComs of task instances, as JSON; an empty dict for those that pushed none.

    A value that is larger than the limit is None: the database measures it and does not send it. When all values
    together exceed their limit, the remaining ones are None. Values are read as text, because the database driver may
    fail to parse a forged one.
    """
    xcoms: dict[TaskKey, StoredXComs] = {task: {} for task in tasks}
    value = cast(XComModel.value, Text)
    limited = case(
        (func.length(value) <= MOST_BYTES, value),
        (and_(XComModel.key.in_(LARGE_KEYS), func.length(value) <= MOST_BYTES_OF_LARGE), value),
        else_=None,
    )
    columns = (XComModel.task_id, _instance_of_xcom(), XComModel.key)
    remaining = _MOST_CHARACTERS
    for condition in _conditions(dag_id, run_id, tasks):
        if remaining > 0:
            query = select(*columns, limited).where(*condition).execution_options(yield_per=_ROWS_AT_ONCE)
            rows = session.execute(query)
            for task_id, instance, key, stored in rows:
                if (task_id, instance) in xcoms:
                    xcoms[task_id, instance][key] = stored
                    remaining -= len(stored or "")
                if remaining <= 0:
                    break
            rows.close()
        if remaining <= 0:
            query = select(*columns).where(*condition).execution_options(yield_per=_ROWS_AT_ONCE)
            for task_id, instance, key in session.execute(query):
                if (task_id, instance) in xcoms:
                    xcoms[task_id, instance].setdefault(key, None)
    return xcoms


def _instance_of_xcom() -> Any:
    """Return the column of XComs by which `TaskKey` tells the instances of a task apart."""
    return XComModel.task_instance_id if HAS_LOOPS else XComModel.map_index


def _conditions(dag_id: str, run_id: str, tasks: Collection[TaskKey]) -> Iterator[list[Any]]:
    """Yield the conditions of the queries that together select the XComs of all tasks, and possibly of others."""
    task_ids = sorted({task_id for task_id, _ in tasks})
    for start in range(0, len(task_ids), _TASKS_PER_QUERY):
        chosen = task_ids[start : start + _TASKS_PER_QUERY]
        condition: list[Any] = [
            XComModel.dag_id == dag_id,
            XComModel.run_id == run_id,
            XComModel.key.in_(XCOM_KEYS),
            XComModel.task_id.in_(chosen),
            XComModel.value.is_not(None),
        ]
        instances = {instance for task_id, instance in tasks if task_id in chosen}
        if len(instances) <= _TASKS_PER_QUERY:
            condition.append(_instance_of_xcom().in_(instances))
        yield condition


def dags_with_images(session: Session) -> Sequence[str]:
    """Return the ids of all DAGs whose tasks may have images."""
    return session.scalars(select(XComModel.dag_id).where(XComModel.key.in_(_KEYS_OF_A_RUN)).distinct()).all()


def newest_runs(session: Session, dag_ids: Collection[str], limit: int) -> list[tuple[str, str]]:
    """Return the DAG id and run id of the newest runs of some DAGs that may have images, newest first."""
    query = (
        select(XComModel.dag_id, XComModel.run_id)
        .where(XComModel.key.in_(_KEYS_OF_A_RUN), XComModel.dag_id.in_(dag_ids))
        .group_by(XComModel.dag_run_id, XComModel.dag_id, XComModel.run_id)
        .order_by(XComModel.dag_run_id.desc())
        .limit(limit)
    )
    return [(dag_id, run_id) for dag_id, run_id in session.execute(query)]


def consumed_credits(
    session: Session, dag_ids: Collection[str], since: datetime, limit: int
) -> list[tuple[str, datetime, str]]:
    """Return the DAG id, the time and the JSON of the XComs `consumed_credits` of some DAGs, newest first.

    Args:
        session: A session.
        dag_ids: The DAGs.
        since: Earlier ones are left out.
        limit: How many.
    """
    value = cast(XComModel.value, Text)
    found: list[tuple[str, datetime, str]] = []
    ordered = sorted(dag_ids)
    for start in range(0, len(ordered), _TASKS_PER_QUERY):
        query = (
            select(XComModel.dag_id, XComModel.timestamp, value)
            .where(XComModel.key == "consumed_credits", XComModel.timestamp >= since)
            .where(XComModel.dag_id.in_(ordered[start : start + _TASKS_PER_QUERY]), func.length(value) <= _MOST_DIGITS)
            .order_by(XComModel.timestamp.desc())
            .limit(limit)
        )
        found += [(dag_id, moment, stored) for dag_id, moment, stored in session.execute(query)]
    found.sort(key=lambda row: row[1], reverse=True)
    return found[:limit]
