"""Reads what the tasks of DAG runs have pushed from Airflow's database, anew only where something has changed."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from airflow.models.dagrun import DagRun
from airflow.models.taskinstance import TaskInstance as AirflowTaskInstance
from airflow.models.xcom import XComModel
from airflow.utils.session import create_session
from sqlalchemy import Text, case, cast, func, or_, select

from airflow_provider_qwenimage.plugin.image_records import BatchRecord, ImageRecord, Records, TaskInstance, Unseen
from airflow_provider_qwenimage.plugin.manifests import read_rows
from airflow_provider_qwenimage.plugin.records import (
    BATCH_OPERATOR,
    OPERATORS,
    XCOM_KEYS,
    records_of_batch,
    records_of_task,
    with_waits,
)
from airflow_provider_qwenimage.plugin.time_limits import TimeLimitedReads
from airflow_provider_qwenimage.plugin.xcom_values import MOST_BYTES, read_values

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

# The page of a DAG, and the one of all DAGs, show the newest runs that have images, until there are so many.
MOST_RUNS = 50
MOST_IMAGES = 5_000

# Tabs of several people ask for the same run all the time; no news is older than this.
_FRESH_SECONDS = 1.5
_FOUND_SECONDS = 20.0
# What is kept in memory of all runs, and of one: 200,000 images of the usual size. Of a larger run the first are shown.
_KEPT_BYTES = 384 * 1024 * 1024
_MOST_BYTES_OF_A_RUN = 384 * 1024 * 1024
# What is read at once of the XComs of a run: those of some 30,000 tasks.
_MOST_CHARACTERS = 64 * 1024 * 1024
# The oldest SQLite takes about a thousand values in a statement.
_PLACES_AT_ONCE = 400

# Storage may take so long for a whole page.
_PAGE_SECONDS = 15.0
# How long a page waits for another one that reads the same run, before it shows what was known.
_PATIENCE_SECONDS = 3.0
_ROWS_AT_ONCE = 100

# All reads of storage, of whatever page.
READS = TimeLimitedReads()

_Place = tuple[str, int]
_Stored = dict[str, "str | None"]
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

    def refresh(self, seconds: float = _FRESH_SECONDS, deadline: float | None = None) -> None:
        """Read what has changed since it was last read, unless that was in the last seconds.

        Args:
            seconds: So many.
            deadline: When all reads of storage must have ended, by `time.monotonic`.
        """
        if not self._lock.acquire(timeout=_PATIENCE_SECONDS):
            return
        try:
            if time.monotonic() - self._read_at < seconds:
                return
            self._read(time.monotonic() + _PAGE_SECONDS if deadline is None else deadline)
            self._read_at = time.monotonic()
        finally:
            self._lock.release()

    def _read(self, deadline: float) -> None:
        # The session is closed before any storage is read, which may take long.
        with create_session(scoped=False) as session:
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
                is_known = before is not None and before[0] == mark and instance.state != "running"
                if before is not None and is_known and not before[1].has_problem:
                    tasks[place] = before
                else:
                    changed[place] = instance
                    tasks[place] = (mark, Records())
            pushed = _xcoms(session, self.dag_id, self.run_id, changed)
        room = _MOST_BYTES_OF_A_RUN - sum(records.weight for _, records in tasks.values())
        for place, stored in pushed.items():
            # Where nothing fits any more, nothing is read either.
            records = _records(changed[place], stored, deadline).within(room) if room > 0 else Records(is_cut=True)
            room -= records.weight
            tasks[place] = (tasks[place][0], records)
        self._tasks = tasks
        self.is_active = run_state in ("queued", "running") or any(not instance.has_ended for instance, _ in instances)
        images: list[ImageRecord] = []
        batches: list[BatchRecord] = []
        for _, records in tasks.values():
            images.extend(records.images)
            batches.extend(records.batches)
        self.records = Records(
            with_waits(images, has_ended=not self.is_active),
            batches,
            is_partial=any(records.is_partial for _, records in tasks.values()),
            is_cut=any(records.is_cut for _, records in tasks.values()),
            weight=sum(records.weight for _, records in tasks.values()),
        )
        self._by_place = {
            (record.task.task_id, record.task.map_index, record.number): record for record in self.records.images
        }
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


def _records(instance: TaskInstance, stored: Mapping[str, str | None], deadline: float) -> Records:
    xcoms = read_values(instance, stored, READS, deadline)
    may_come = any(isinstance(value, Unseen) and value.may_come for value in xcoms.values())
    progress = xcoms.get("progress")
    is_batch = instance.operator == BATCH_OPERATOR or (
        # An operator derived from ours has another name.
        instance.operator not in OPERATORS and isinstance(progress, Mapping) and "requests" in progress
    )
    if not is_batch:
        return Records(records_of_task(instance, xcoms), is_partial=may_come)
    rows, problem = read_rows(instance, xcoms, READS, deadline)
    records = records_of_batch(instance, xcoms, rows, problem)
    return replace(records, is_partial=may_come)


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


def _xcoms(session: Session, dag_id: str, run_id: str, places: Collection[_Place]) -> dict[_Place, _Stored]:
    """Return what task instances have pushed, as JSON, also of those that have pushed nothing.

    A value that is too large is None: it is measured by the database, and never sent; so is each one after those that
    are too many together. They come as texts, since the database's driver may fail on what somebody has forged.
    """
    room = _MOST_CHARACTERS
    pushed: dict[_Place, _Stored] = {place: {} for place in places}
    task_ids = sorted({task_id for task_id, _ in places})
    value = cast(XComModel.value, Text)
    bounded = case((func.length(value) <= MOST_BYTES, value), else_=None)
    columns = (XComModel.task_id, XComModel.map_index, XComModel.key, bounded)
    for start in range(0, len(task_ids), _PLACES_AT_ONCE):
        chosen = task_ids[start : start + _PLACES_AT_ONCE]
        query = select(*columns).where(
            XComModel.dag_id == dag_id,
            XComModel.run_id == run_id,
            XComModel.key.in_(XCOM_KEYS),
            XComModel.task_id.in_(chosen),
            XComModel.value.is_not(None),
        )
        indexes = {map_index for task_id, map_index in places if task_id in chosen}
        if len(indexes) <= _PLACES_AT_ONCE:
            query = query.where(XComModel.map_index.in_(indexes))
        query = query.execution_options(yield_per=_ROWS_AT_ONCE)
        if room > 0:
            rows = session.execute(query)
            for task_id, map_index, key, found in rows:
                if (task_id, map_index) in pushed:
                    pushed[task_id, map_index][key] = found
                    room -= len(found or "")
                if room <= 0:
                    break
            rows.close()
        if room <= 0:
            for task_id, map_index, key in session.execute(query.with_only_columns(*columns[:3])):
                if (task_id, map_index) in pushed:
                    pushed[task_id, map_index].setdefault(key, None)
    return pushed


class Runs:
    """The runs that were asked for of late, in memory within a bound."""

    def __init__(self) -> None:
        self._runs: OrderedDict[tuple[str, str], Run] = OrderedDict()
        self._lock = threading.Lock()

    def find(self, dag_id: str, run_id: str, place: tuple[str, int, int]) -> ImageRecord | None:
        """Return what a task has recorded of an image, if it has.

        Args:
            dag_id: The DAG.
            run_id: The run.
            place: The task, its map index and the image's number.
        """
        # A page asks for the images that it has just been told of: dozens at once, and seldom new ones.
        run = self.get(dag_id, run_id, _FOUND_SECONDS)
        return run.find(place) or self.get(dag_id, run_id).find(place)

    def get(self, dag_id: str, run_id: str, seconds: float = _FRESH_SECONDS, deadline: float | None = None) -> Run:
        """Return a run as it is now, or was some seconds ago; without any images where there is no such run."""
        with self._lock:
            run = self._runs.pop((dag_id, run_id), None) or Run(dag_id, run_id)
            self._runs[dag_id, run_id] = run
        run.refresh(seconds, deadline)
        self._forget()
        return run

    def newest(self, dag_ids: Collection[str], may_read: Callable[[str], bool]) -> tuple[list[Run], bool]:
        """Return the newest runs that have images, and whether there are more of them.

        Args:
            dag_ids: Of which DAGs.
            may_read: Whether the user may read the XComs of one of them.
        """
        keys = XComModel.key.in_(_KEYS_OF_A_RUN)
        with create_session(scoped=False) as session:
            known = session.scalars(select(XComModel.dag_id).where(keys).distinct()).all()
        readable = sorted(dag_id for dag_id in known if dag_id in dag_ids and may_read(dag_id))
        query = (
            select(XComModel.dag_id, XComModel.run_id)
            .where(keys, XComModel.dag_id.in_(readable))
            .group_by(XComModel.dag_run_id, XComModel.dag_id, XComModel.run_id)
            .order_by(XComModel.dag_run_id.desc())
            .limit(MOST_RUNS + 1)
        )
        with create_session(scoped=False) as session:
            places = [tuple(row) for row in session.execute(query)]
        deadline = time.monotonic() + _PAGE_SECONDS
        runs: list[Run] = []
        number = 0
        for dag_id, run_id in places[:MOST_RUNS]:
            if number >= MOST_IMAGES:
                return runs, True
            run = self.get(dag_id, run_id, deadline=deadline)
            if run.records.images or run.records.batches:
                runs.append(run)
                number += len(run.records.images)
        return runs, len(places) > MOST_RUNS

    def _forget(self) -> None:
        with self._lock:
            kept = sum(run.records.weight for run in self._runs.values())
            while kept > _KEPT_BYTES and len(self._runs) > 1:
                _, run = self._runs.popitem(last=False)
                kept -= run.records.weight
            while len(self._runs) > 10 * MOST_RUNS:
                self._runs.popitem(last=False)
