"""Reads what the tasks of DAG runs have pushed from Airflow's database, anew only where something has changed."""

from __future__ import annotations

import json
import threading
import time
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from airflow.models.dagrun import DagRun
from airflow.models.taskinstance import TaskInstance as AirflowTaskInstance
from airflow.models.xcom import XComModel
from sqlalchemy import case, func, or_, select

from airflow_provider_qwenimage.plugin.manifests import read_rows
from airflow_provider_qwenimage.plugin.records import (
    BATCH_OPERATOR,
    OPERATORS,
    XCOM_KEYS,
    BatchRecord,
    ImageRecord,
    Records,
    TaskInstance,
    records_of_batch,
    records_of_task,
    with_waits,
)

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

# The page of a DAG, and the one of all DAGs, show the newest runs that have images, until there are so many.
MOST_RUNS = 50
MOST_IMAGES = 5_000

# Tabs of several people ask for the same run all the time; no news is older than this.
_FRESH_SECONDS = 1.5
_FOUND_SECONDS = 20.0
# Images of runs that are kept in memory, at about 2 KiB each.
_KEPT_IMAGES = 50_000
# The oldest SQLite takes about a thousand values in a statement.
_PLACES_AT_ONCE = 400

_Place = tuple[str, int]
_KEYS_OF_A_RUN = ("request", "task_id", "progress")


@dataclass
class Run:
    """A DAG run with its images.

    Attributes:
        dag_id: The DAG.
        run_id: The run.
        records: What its tasks tell.
        is_active: Whether more may come.
    """

    dag_id: str
    run_id: str
    records: Records = field(default_factory=Records)
    is_active: bool = True
    _by_place: dict[tuple[str, int, int], ImageRecord] = field(default_factory=dict)
    _mark: object = None
    _read_at: float = float("-inf")
    _tasks: dict[_Place, tuple[object, Records]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def find(self, place: tuple[str, int, int]) -> ImageRecord | None:
        """Return an image by its task, map index and number, if there is one."""
        return self._by_place.get(place)

    def refresh(self, session: Session, seconds: float = _FRESH_SECONDS) -> None:
        """Read what has changed since it was last read, unless that was in the last seconds."""
        with self._lock:
            if time.monotonic() - self._read_at < seconds:
                return
            self._read(session)
            self._read_at = time.monotonic()

    def _read(self, session: Session) -> None:
        this_run = (DagRun.dag_id == self.dag_id, DagRun.run_id == self.run_id)
        run_state = str(session.scalar(select(DagRun.state).where(*this_run)))
        run_mark = _run_mark(session, self.dag_id, self.run_id, run_state)
        if run_mark is not None and run_mark == self._mark and not self.records.has_problem:
            return
        instances = _task_instances(session, self.dag_id, self.run_id)
        changed: dict[_Place, TaskInstance] = {}
        tasks: dict[_Place, tuple[object, Records]] = {}
        for instance, mark in instances:
            place = (instance.task_id, instance.map_index)
            before = self._tasks.get(place)
            # While it runs it may push at any moment, and nothing else of it changes.
            if before is not None and before[0] == mark and instance.state != "running" and not before[1].has_problem:
                tasks[place] = before
            else:
                changed[place] = instance
                tasks[place] = (mark, Records())
        for place, xcoms in _xcoms(session, self.dag_id, self.run_id, changed):
            tasks[place] = (tasks[place][0], _records(changed[place], xcoms))
        self._tasks = tasks
        images: list[ImageRecord] = []
        batches: list[BatchRecord] = []
        for _, records in tasks.values():
            images.extend(records.images)
            batches.extend(records.batches)
        self.records = Records(with_waits(images), batches)
        self._by_place = {
            (record.task.task_id, record.task.map_index, record.number): record for record in self.records.images
        }
        self.is_active = run_state in ("queued", "running") or any(not instance.has_ended for instance, _ in instances)
        # Only now: what could not be read to its end is read again.
        self._mark = run_mark


def _run_mark(session: Session, dag_id: str, run_id: str, run_state: str) -> object:
    """Return what changes whenever a task instance does; None while one runs, which may push at any moment."""
    model = AirflowTaskInstance
    number, changed_at, running = session.execute(
        select(func.count(), func.max(model.updated_at), func.sum(case((model.state == "running", 1), else_=0))).where(
            model.dag_id == dag_id, model.run_id == run_id
        )
    ).one()
    return None if running else (number, str(changed_at), run_state)


def _records(instance: TaskInstance, xcoms: Mapping[str, Any]) -> Records:
    progress = xcoms.get("progress")
    is_batch = instance.operator == BATCH_OPERATOR or (
        # An operator derived from ours has another name.
        instance.operator not in OPERATORS and isinstance(progress, Mapping) and "requests" in progress
    )
    if not is_batch:
        return Records(records_of_task(instance, xcoms))
    rows, problem = read_rows(instance, xcoms)
    return records_of_batch(instance, xcoms, rows, problem)


def _task_instances(session: Session, dag_id: str, run_id: str) -> list[tuple[TaskInstance, object]]:
    """Return the task instances of a run that have to do with images, each with what changes when it does."""
    model = AirflowTaskInstance
    told = select(XComModel.task_id).where(
        XComModel.dag_id == dag_id, XComModel.run_id == run_id, XComModel.key == "request"
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
    )
    query = (
        select(*columns)
        .where(model.dag_id == dag_id, model.run_id == run_id)
        .where(or_(model.operator.in_(OPERATORS), model.task_id.in_(told)))
        .order_by(model.task_id, model.map_index)
    )
    found: list[tuple[TaskInstance, object]] = []
    for task_id, map_index, state, operator, try_number, start, end, next_method in session.execute(query):
        changed_at = end or start
        instance = TaskInstance(
            dag_id=dag_id,
            run_id=run_id,
            task_id=task_id,
            map_index=map_index,
            state=None if state is None else str(state),
            operator=operator,
            try_number=try_number,
            changed_at=changed_at.isoformat() if changed_at else None,
        )
        found.append((instance, (instance, str(start), next_method)))
    return found


def _xcoms(
    session: Session, dag_id: str, run_id: str, places: Collection[_Place]
) -> Iterable[tuple[_Place, dict[str, Any]]]:
    """Return what task instances have pushed, also of those that have pushed nothing."""
    pushed: dict[_Place, dict[str, Any]] = {place: {} for place in places}
    task_ids = sorted({task_id for task_id, _ in places})
    columns = (XComModel.task_id, XComModel.map_index, XComModel.key, XComModel.value)
    for start in range(0, len(task_ids), _PLACES_AT_ONCE):
        chosen = task_ids[start : start + _PLACES_AT_ONCE]
        query = select(*columns).where(
            XComModel.dag_id == dag_id,
            XComModel.run_id == run_id,
            XComModel.key.in_(XCOM_KEYS),
            XComModel.task_id.in_(chosen),
        )
        indexes = {map_index for task_id, map_index in places if task_id in chosen}
        if len(indexes) <= _PLACES_AT_ONCE:
            query = query.where(XComModel.map_index.in_(indexes))
        for task_id, map_index, key, value in session.execute(query):
            if (task_id, map_index) in pushed:
                pushed[task_id, map_index][key] = _decoded(value)
    return pushed.items()


def _decoded(value: object) -> object:
    """Return an XCom as it was pushed; Airflow stores it as JSON, or as a text of JSON."""
    if isinstance(value, str) and value[:1] in ("{", "[", '"'):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


class Runs:
    """The runs that were asked for of late, in memory within a bound."""

    def __init__(self) -> None:
        self._runs: OrderedDict[tuple[str, str], Run] = OrderedDict()
        self._lock = threading.Lock()

    def find(self, session: Session, dag_id: str, run_id: str, place: tuple[str, int, int]) -> ImageRecord | None:
        """Return what a task has recorded of an image, if it has.

        Args:
            session: Airflow's database.
            dag_id: The DAG.
            run_id: The run.
            place: The task, its map index and the image's number.
        """
        # A page asks for the images that it has just been told of: dozens at once, and seldom new ones.
        run = self.get(session, dag_id, run_id, _FOUND_SECONDS)
        return run.find(place) or self.get(session, dag_id, run_id).find(place)

    def get(self, session: Session, dag_id: str, run_id: str, seconds: float = _FRESH_SECONDS) -> Run:
        """Return a run as it is now, or was some seconds ago; without any images where there is no such run."""
        with self._lock:
            run = self._runs.pop((dag_id, run_id), None) or Run(dag_id, run_id)
            self._runs[dag_id, run_id] = run
        run.refresh(session, seconds)
        self._forget()
        return run

    def newest(self, session: Session, dag_ids: Collection[str]) -> tuple[list[Run], bool]:
        """Return the newest runs that have images, and whether there are more of them.

        Args:
            session: Airflow's database.
            dag_ids: Of which DAGs.
        """
        query = (
            select(XComModel.dag_id, XComModel.run_id)
            .where(XComModel.key.in_(_KEYS_OF_A_RUN), XComModel.dag_id.in_(sorted(dag_ids)))
            .group_by(XComModel.dag_run_id, XComModel.dag_id, XComModel.run_id)
            .order_by(XComModel.dag_run_id.desc())
            .limit(MOST_RUNS + 1)
        )
        places = session.execute(query).all()
        runs: list[Run] = []
        number = 0
        for dag_id, run_id in places[:MOST_RUNS]:
            if number >= MOST_IMAGES:
                return runs, True
            run = self.get(session, dag_id, run_id)
            if run.records.images or run.records.batches:
                runs.append(run)
                number += len(run.records.images)
        return runs, len(places) > MOST_RUNS

    def _forget(self) -> None:
        with self._lock:
            kept = sum(len(run.records.images) for run in self._runs.values())
            while kept > _KEPT_IMAGES and len(self._runs) > 1:
                _, run = self._runs.popitem(last=False)
                kept -= len(run.records.images)
            while len(self._runs) > 10 * MOST_RUNS:
                self._runs.popitem(last=False)
