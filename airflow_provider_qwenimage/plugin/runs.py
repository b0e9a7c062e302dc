"""Caches the images of DAG runs, and reads only what has changed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace

from airflow.utils.session import create_session

from airflow_provider_qwenimage.plugin import metadata_db
from airflow_provider_qwenimage.plugin.batch_records import records_of_batch
from airflow_provider_qwenimage.plugin.bounded_cache import BoundedCache
from airflow_provider_qwenimage.plugin.choice_records import marked, records_of_choice
from airflow_provider_qwenimage.plugin.image_records import (
    BatchRecord,
    ChoiceRecord,
    ImageRecord,
    Records,
    TaskInstance,
    UnreadableXCom,
)
from airflow_provider_qwenimage.plugin.manifests import read_rows
from airflow_provider_qwenimage.plugin.metadata_db import TaskKey
from airflow_provider_qwenimage.plugin.task_kinds import TaskKind, kind_of
from airflow_provider_qwenimage.plugin.task_records import records_of_task
from airflow_provider_qwenimage.plugin.time_limits import TimeLimitedReads
from airflow_provider_qwenimage.plugin.waits import merge_waits
from airflow_provider_qwenimage.plugin.xcom_values import read_values
from airflow_provider_qwenimage.rules.made_by import Region

# The page of a DAG, and that of all DAGs, show the newest runs with images until they have this many runs or images.
MOST_RUNS = 50
MOST_IMAGES = 5_000

# Several open tabs ask for the same run again and again: within these seconds they get the same result.
_FRESH_SECONDS = 1.5
_FRESH_SECONDS_OF_AN_IMAGE = 20.0
# The memory for the images of one run, and for all cached runs: 200,000 images of the usual size.
_MOST_BYTES = 384 * 1024 * 1024
_MOST_CACHED_RUNS = 500

# The time for all reads of storage of one page.
_PAGE_SECONDS = 15.0
# How long a page waits for another one that reads the same run, before it shows the cached result.
_LOCK_SECONDS = 3.0

# All pages read storage through this object.
READS = TimeLimitedReads()

# A task id, a map index, the region of a task in a loop, and the number of an image.
ImageKey = tuple[str, int, Region | None, int]


@dataclass
class Run:
    """A DAG run with its images.

    Attributes:
        records: The images and batches of its tasks.
        is_active: Whether more images may follow.
    """

    dag_id: str
    run_id: str
    records: Records = field(default_factory=Records)
    is_active: bool = True
    _images: dict[ImageKey, ImageRecord] = field(default_factory=dict)
    _choices: dict[tuple[str, int, Region | None], ChoiceRecord] = field(default_factory=dict)
    _version: object = None
    _read_at: float = float("-inf")
    # The version of each task instance, and what was read of it.
    _tasks: dict[TaskKey, tuple[object, Records]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def find(self, image: ImageKey) -> ImageRecord | None:
        """Return the record of an image or of a candidate, or None if no task recorded it."""
        task_id, map_index, region, number = image
        choice = self.find_choice(task_id, map_index, region)
        return self._images.get(image) or (None if choice is None else choice.candidate(number))

    def find_batch(self, task_id: str, map_index: int, region: Region | None) -> BatchRecord | None:
        """Return the record of a batch, or None if no task instance with this address is one."""
        keys = ((batch.task.task_id, batch.task.map_index, batch.task.region, batch) for batch in self.records.batches)
        return next((batch for *key, batch in keys if key == [task_id, map_index, region]), None)

    def find_choice(self, task_id: str, map_index: int, region: Region | None) -> ChoiceRecord | None:
        """Return the choice of a task instance, or None if no task instance with this address has one."""
        return self._choices.get((task_id, map_index, region))

    def refresh(self, seconds: float = _FRESH_SECONDS, deadline: float | None = None) -> None:
        """Read what has changed, unless the run was read within the last seconds.

        Args:
            seconds: The age up to which the cached result is used.
            deadline: When all reads of storage must have ended, by `time.monotonic`.
        """
        if not self._lock.acquire(timeout=_LOCK_SECONDS):
            return
        try:
            if time.monotonic() - self._read_at < seconds:
                return
            self._read(time.monotonic() + _PAGE_SECONDS if deadline is None else deadline)
            self._read_at = time.monotonic()
        finally:
            self._lock.release()

    def _read(self, deadline: float) -> None:
        # Reads of storage may take long, so the session is closed before them.
        with create_session(scoped=False) as session:
            state = metadata_db.run_state(session, self.dag_id, self.run_id)
            version = metadata_db.run_version(session, self.dag_id, self.run_id, state)
            if version is not None and version == self._version and not self.records.has_problem:
                return
            instances = metadata_db.task_instances(session, self.dag_id, self.run_id)
            versions = {key: task_version for key, _, task_version in instances}
            changed = {
                key: task for key, task, task_version in instances if not self._is_up_to_date(key, task, task_version)
            }
            xcoms = metadata_db.xcoms_of(session, self.dag_id, self.run_id, changed)
        tasks = {
            key: (task_version, Records() if key in changed else self._tasks[key][1])
            for key, task_version in versions.items()
        }
        remaining_bytes = _MOST_BYTES - sum(records.weight for _, records in tasks.values())
        for key, stored in xcoms.items():
            if remaining_bytes > 0:
                records = _read_records(changed[key], stored, deadline).within(remaining_bytes)
            else:
                records = Records(is_cut=True)
            remaining_bytes -= records.weight
            tasks[key] = (versions[key], records)
        self._tasks = tasks
        self.is_active = state in ("queued", "running") or any(not task.has_ended for _, task, _ in instances)
        self.records = _merged([records for _, records in tasks.values()], has_ended=not self.is_active)
        self._images = {
            (record.task.task_id, record.task.map_index, record.task.region, record.number): record
            for record in self.records.images
        }
        self._choices = {
            (choice.task.task_id, choice.task.map_index, choice.task.region): choice for choice in self.records.choices
        }
        # Set last: a run whose reading failed half-way is read again.
        self._version = version

    def _is_up_to_date(self, key: TaskKey, task: TaskInstance, version: object) -> bool:
        # While a task runs it may push XComs at any moment, which does not change its version.
        if task.state == "running":
            return False
        known_version, records = self._tasks.get(key, (None, None))
        return records is not None and known_version == version and not records.has_problem


def _read_records(task: TaskInstance, stored: Mapping[str, str | None], deadline: float) -> Records:
    xcoms = read_values(task, stored, READS, deadline)
    is_partial = any(isinstance(value, UnreadableXCom) and value.is_temporary for value in xcoms.values())
    kind = kind_of(task, xcoms)
    if kind is TaskKind.CHOICE:
        return replace(records_of_choice(task, xcoms), is_partial=is_partial)
    if kind is TaskKind.BATCH:
        rows, problem = read_rows(task, xcoms, READS, deadline)
        return replace(records_of_batch(task, xcoms, rows, problem), is_partial=is_partial)
    return Records(records_of_task(task, xcoms), is_partial=is_partial)


def _merged(parts: Collection[Records], *, has_ended: bool) -> Records:
    """Return the records of a run from those of its task instances."""
    images: list[ImageRecord] = [image for records in parts for image in records.images]
    batches: list[BatchRecord] = [batch for records in parts for batch in records.batches]
    choices: list[ChoiceRecord] = [choice for records in parts for choice in records.choices]
    return Records(
        marked(merge_waits(images, has_ended=has_ended), choices),
        batches,
        choices=choices,
        is_partial=any(records.is_partial for records in parts),
        is_cut=any(records.is_cut for records in parts),
        weight=sum(records.weight for records in parts),
    )


class Runs:
    """The runs that were requested recently, in memory."""

    def __init__(self) -> None:
        self._cache: BoundedCache[Run] = BoundedCache(
            lambda run: run.records.weight, most_weight=_MOST_BYTES, most_values=_MOST_CACHED_RUNS
        )

    def find(self, dag_id: str, run_id: str, image: ImageKey) -> ImageRecord | None:
        """Return the record of an image or of a candidate, or None if no task recorded it."""
        # A page requests the images that it has just listed: dozens at once, and rarely a new one.
        run = self.get(dag_id, run_id, _FRESH_SECONDS_OF_AN_IMAGE)
        return run.find(image) or self.get(dag_id, run_id).find(image)

    def find_sheet(
        self, dag_id: str, run_id: str, task: tuple[str, int, Region | None], page: int
    ) -> BatchRecord | None:
        """Return the batch of a task instance whose contact sheet has a page, or None."""
        ages = _FRESH_SECONDS_OF_AN_IMAGE, _FRESH_SECONDS
        batches = (self.get(dag_id, run_id, seconds).find_batch(*task) for seconds in ages)
        return next((batch for batch in batches if batch is not None and batch.sheet(page) is not None), None)

    def get(self, dag_id: str, run_id: str, seconds: float = _FRESH_SECONDS, deadline: float | None = None) -> Run:
        """Return a run as it was at most some seconds ago; one without images if it does not exist."""
        run = self._cache.get_or_add((dag_id, run_id), lambda: Run(dag_id, run_id))
        run.refresh(seconds, deadline)
        self._cache.trim()
        return run

    def newest(self, dag_ids: Collection[str], may_read: Callable[[str], bool]) -> tuple[list[Run], bool]:
        """Return the newest runs that have images, and whether there are more.

        Args:
            dag_ids: The DAGs to look at.
            may_read: Whether the user may read the XComs of a DAG.
        """
        with create_session(scoped=False) as session:
            known = metadata_db.dags_with_images(session)
        readable = sorted(dag_id for dag_id in known if dag_id in dag_ids and may_read(dag_id))
        with create_session(scoped=False) as session:
            keys = metadata_db.newest_runs(session, readable, MOST_RUNS + 1)
        deadline = time.monotonic() + _PAGE_SECONDS
        runs: list[Run] = []
        image_count = 0
        for dag_id, run_id in keys[:MOST_RUNS]:
            if image_count >= MOST_IMAGES:
                return runs, True
            run = self.get(dag_id, run_id, deadline=deadline)
            if run.records.images or run.records.batches:
                runs.append(run)
                image_count += len(run.records.images)
        return runs, len(keys) > MOST_RUNS


RUNS = Runs()
