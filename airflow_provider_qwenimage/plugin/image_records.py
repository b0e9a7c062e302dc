"""What the gallery tells of task instances: plain values. No I/O."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

ENDED_BADLY = frozenset({"failed", "upstream_failed"})
# What an image takes in memory beside its texts, about.
_RECORD_BYTES = 1000
_ENDED = ENDED_BADLY | {"success", "skipped", "removed"}


@dataclass(frozen=True)
class Unseen:
    """Stands for an XCom that was pushed, and whose value the gallery does not have.

    Attributes:
        reason: Why.
        may_come: Whether it may be readable later.
    """

    reason: str
    may_come: bool = False


class Status(StrEnum):
    """What the gallery calls the state of an image."""

    WAITING = "waiting"
    DRAWING = "drawing"
    DONE = "done"
    FAILED = "failed"
    UNKNOWN = "unknown"


@dataclass(frozen=True, kw_only=True)
class TaskInstance:
    """What Airflow knows of a task instance.

    Attributes:
        dag_id: The DAG.
        run_id: The DAG run.
        task_id: The task.
        map_index: -1 where the task is not mapped.
        state: Airflow's state of it.
        operator: The name of the operator's class.
        try_number: The number of its latest try.
        changed_at: When it began or ended, in ISO 8601.
    """

    dag_id: str
    run_id: str
    task_id: str
    map_index: int
    state: str | None
    operator: str | None
    try_number: int
    changed_at: str | None

    @property
    def has_ended(self) -> bool:
        """Whether nothing changes any more, unless it is cleared."""
        return self.state in _ENDED

    def is_at(self, task_id: str, map_index: int | None) -> bool:
        """Whether it is an instance of a task; of any map index where that is None."""
        return self.task_id == task_id and map_index in (None, self.map_index)


@dataclass(frozen=True, kw_only=True)
class ImageRecord:
    """What the gallery tells of one image.

    Attributes:
        task: The task instance that has drawn it, or is to.
        number: Its place among the images of the task instance, counted from 1.
        status: Where it stands.
        state: The same, more closely: Airflow's state, or that of the manifest's row.
        request: The fields of the request, as far as they are known.
        image_task_id: The API's id of the image task.
        path: Where it is stored.
        image_url: Where the API has it.
        consumed_credits: What it cost, or None where that is not known (yet).
        at_risk: Credits that it may have cost, where nothing more will be known.
        reused: Whether it stood in storage before the task.
        error: The kind of the error that it ended with.
        message: What that error says.
        changed_at: When it was stored, or its task began or ended, in ISO 8601.
        waited_for_by: The sensor that has waited for it.
    """

    task: TaskInstance
    number: int = 1
    status: Status
    state: str
    request: Mapping[str, Any] = field(default_factory=dict)
    image_task_id: str | None = None
    path: str | None = None
    image_url: str | None = None
    consumed_credits: float | None = None
    at_risk: float = 0
    reused: bool = False
    error: str | None = None
    message: str | None = None
    changed_at: str | None = None
    waited_for_by: TaskInstance | None = None

    @property
    def weight(self) -> int:
        """About how many bytes of memory it takes."""
        texts = (self.request.get("prompt"), self.path, self.image_url, self.message)
        return _RECORD_BYTES + sum(sys.getsizeof(text) for text in texts if text is not None)

    def is_of(self, task_id: str, map_index: int | None) -> bool:
        """Whether a task instance has to do with it; of any map index where that is None."""
        return any(task is not None and task.is_at(task_id, map_index) for task in (self.task, self.waited_for_by))

    def matches(self, status: str, words: Sequence[str]) -> bool:
        """Whether it has a status ("" for any), and every word somewhere in what is told of it.

        Args:
            status: The status.
            words: Case-folded: parts of the prompt, the error or a name, the beginning of the image task's id, or a
                whole seed, size or format.
        """
        if status and self.status != status:
            return False
        if not words:
            return True
        texts = (self.request.get("prompt"), self.error, self.message, self.task.task_id)
        found = "\n".join(part for part in texts if part is not None).casefold()
        values = {str(self.request.get(name)) for name in ("seed", "size", "output_format")}
        image_task_id = (self.image_task_id or "").casefold()
        return all(word in found or word in values or image_task_id.startswith(word) for word in words)


@dataclass(frozen=True, kw_only=True)
class BatchRecord:
    """Where a batch stands.

    Attributes:
        task: Its task instance.
        progress: The XCom of that name, with numbers only.
        problem: Why its images cannot be listed, if they cannot.
    """

    task: TaskInstance
    progress: Mapping[str, float]
    problem: str | None = None


@dataclass(frozen=True)
class Records:
    """What the gallery tells of some task instances.

    Attributes:
        images: Their images.
        batches: Those of them that are batches.
        is_partial: Whether something could not be read, and may be later.
        is_cut: Whether there are more images than are kept in memory.
        weight: About how many bytes they take, as far as that was counted; see `within`.
    """

    images: Sequence[ImageRecord] = ()
    batches: Sequence[BatchRecord] = ()
    is_partial: bool = False
    is_cut: bool = False
    weight: int = 0

    def within(self, room: int) -> Records:
        """Return the records with as many of the images as fit into so many bytes, counted."""
        weight = 0
        for count, image in enumerate(self.images):
            heavier = weight + image.weight
            if heavier > room:
                return replace(self, images=self.images[:count], is_cut=True, weight=weight)
            weight = heavier
        return replace(self, weight=weight)

    @property
    def has_problem(self) -> bool:
        """Whether something could not be read, which may come back."""
        return self.is_partial or any(batch.problem for batch in self.batches)


@dataclass(frozen=True)
class Totals:
    """What the gallery adds up.

    Attributes:
        images: How many are there.
        counts: How many have each status.
        consumed_credits: Credits that are spent.
        at_risk: Credits that may be spent, where nothing more will be known.
    """

    images: int
    counts: Mapping[str, int]
    consumed_credits: float
    at_risk: float


def totals_of(records: Records) -> Totals:
    """Add up what the records tell."""
    counts = dict.fromkeys((str(status) for status in Status), 0)
    spent = at_risk = 0.0
    listed = set()
    for record in records.images:
        counts[record.status] += 1
        spent += record.consumed_credits or 0
        at_risk += record.at_risk
        listed.add(record.task)
    for batch in records.batches:
        if batch.task in listed:
            continue
        progress = batch.progress
        # Its rows are not listed yet, or no longer: the numbers it has pushed are all there is.
        counts[Status.DONE] += int(progress.get("done", 0))
        counts[Status.FAILED] += int(progress.get("failed", 0))
        counts[Status.DRAWING] += int(progress.get("in_flight", 0))
        spent += progress.get("consumed_credits", 0)
    return Totals(sum(counts.values()), counts, spent, at_risk)
