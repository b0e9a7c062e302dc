"""The gallery's records of images and batches: plain values. No I/O."""

from __future__ import annotations

import hashlib
import itertools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from typing import Any

from airflow_provider_qwenimage.rules.batch_rows import contact_sheet_name, manifest_name
from airflow_provider_qwenimage.rules.choices import how_many
from airflow_provider_qwenimage.rules.made_by import Region, writer_of

ENDED_BADLY = frozenset({"failed", "upstream_failed"})
# About the memory of a record without its texts.
_RECORD_BYTES = 1000
# Since Airflow 3.3 a task that waits for a person has a state of its own; before, a trigger waits.
WAITING_FOR_INPUT = frozenset({"awaiting_input", "deferred"})
_ENDED = ENDED_BADLY | {"success", "skipped", "removed"}


@dataclass(frozen=True)
class UnreadableXCom:
    """Replaces the value of an XCom that exists but that the gallery cannot read.

    Attributes:
        reason: Why it cannot be read, as a sentence for the page.
        is_temporary: Whether a later read may succeed.
    """

    reason: str
    is_temporary: bool = False


class Status(StrEnum):
    """The states of an image by which the gallery filters and counts."""

    WAITING = "waiting"
    DRAWING = "drawing"
    DONE = "done"
    FAILED = "failed"
    UNKNOWN = "unknown"


class Outcome(StrEnum):
    """What has become of an image among which a person chooses, the least important one first."""

    NOT_CHOSEN = "not_chosen"
    OFFERED = "offered"
    CHOSEN = "chosen"


@dataclass(frozen=True, kw_only=True)
class TaskInstance:
    """A task instance as Airflow's database has it.

    Attributes:
        map_index: -1 if the task is not mapped.
        region: Of a task in a loop; None outside loops.
        iteration: That of the loop, counted from 0; None outside loops.
        state: Airflow's state of the task instance.
        operator: The class name of the operator.
        try_number: The number of the latest try.
        changed_at: When it started or ended, in ISO 8601.
    """

    dag_id: str
    run_id: str
    task_id: str
    map_index: int
    state: str | None
    operator: str | None
    try_number: int
    changed_at: str | None
    region: Region | None = None
    iteration: int | None = None

    @property
    def has_ended(self) -> bool:
        """Whether the state is final unless the task is cleared."""
        return self.state in _ENDED

    @property
    def writer(self) -> str:
        """The name of the writer of its files; see `made_by.writer_of`."""
        return writer_of(asdict(self))

    def matches(self, task_id: str, map_index: int | None, region: Region | None = None) -> bool:
        """Whether it is an instance of a task with this map index; None matches every map index.

        Args:
            region: Of a task in a loop, or None for all iterations. Outside loops Airflow's pages may have one, too.
        """
        return self.task_id == task_id and map_index in (None, self.map_index) and self._is_in(region)

    def _is_in(self, region: Region | None) -> bool:
        return None in (region, self.region) or region == self.region


@dataclass(frozen=True)
class Mark:
    """That an image is a candidate of a task in which a person chooses.

    Attributes:
        number: Its number there, counted from 1.
        task: The choosing task instance.
    """

    outcome: Outcome
    number: int
    task: TaskInstance


@dataclass(frozen=True, kw_only=True)
class ImageRecord:
    """One image.

    Attributes:
        task: The task instance that draws the image.
        number: Counts the images of the task instance from 1.
        status: What the gallery filters and counts by.
        state: More exact than `status`: Airflow's state, or that of the manifest's row.
        request: The known fields of the request.
        label: What the user calls the image, or None.
        image_task_id: The API's id of the image task.
        path: The path or URL of the stored image.
        image_url: The address of the image at the API.
        consumed_credits: The credits it consumed, or None if not known (yet).
        at_risk: Credits that it may have consumed, if this will not become known.
        reused: Whether the image was stored before the task ran.
        error: The class name of the error that ended it.
        message: The message of that error, or a note on the image.
        changed_at: When it was stored, or its task started or ended, in ISO 8601.
        waited_for_by: The sensor that waits for it.
        mark: Of an image among which a person chooses. A candidate is one of its `task` itself.
    """

    task: TaskInstance
    number: int = 1
    status: Status
    state: str
    request: Mapping[str, Any] = field(default_factory=dict)
    label: str | None = None
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
    mark: Mark | None = None

    @property
    def is_candidate(self) -> bool:
        """Whether the task does not draw the image, but has a person choose among images of other tasks."""
        return self.mark is not None and self.mark.task == self.task

    @property
    def is_chosen(self) -> bool:
        """Whether a person chose it."""
        return self.mark is not None and self.mark.outcome is Outcome.CHOSEN

    @property
    def weight(self) -> int:
        """About how many bytes of memory it takes."""
        texts = (self.request.get("prompt"), self.label, self.path, self.image_url, self.message)
        return _RECORD_BYTES + sum(sys.getsizeof(text) for text in texts if text is not None)

    def belongs_to(self, task_id: str, map_index: int | None, region: Region | None = None) -> bool:
        """Whether a task instance draws the image or waits for it; see `TaskInstance.matches`."""
        tasks = (self.task, self.waited_for_by)
        return any(task is not None and task.matches(task_id, map_index, region) for task in tasks)

    def matches(self, status: str, words: Sequence[str]) -> bool:
        """Whether it has a status ("" for any) and contains every word.

        Args:
            status: A value of `Status`, or "".
            words: Case-folded: parts of the prompt, the label, the error or the task's name, the beginning of the image
                task's id, or a whole seed, size or format.
        """
        if status and self.status != status:
            return False
        if not words:
            return True
        texts = (self.request.get("prompt"), self.label, self.error, self.message, self.task.task_id)
        searched = "\n".join(part for part in texts if part is not None).casefold()
        values = {str(self.request.get(name)) for name in ("seed", "size", "output_format")}
        image_task_id = (self.image_task_id or "").casefold()
        return all(word in searched or word in values or image_task_id.startswith(word) for word in words)


@dataclass(frozen=True, kw_only=True)
class BatchRecord:
    """The progress of a batch.

    Attributes:
        task: The task instance of the batch.
        progress: The numbers of the XCom `progress`.
        problem: Why its images cannot be listed, or None.
        manifest: The path of its manifest, as it was pushed, or None.
        sheet_pages: The number of the pages of its contact sheet.
    """

    task: TaskInstance
    progress: Mapping[str, float]
    problem: str | None = None
    manifest: str | None = None
    sheet_pages: int = 0

    def sheet(self, page: int) -> str | None:
        """Return the path of a page of its contact sheet, counted from 1; None if there is no such page.

        The sheet is next to the manifest, whatever paths were pushed for it.
        """
        folder, _, name = (self.manifest or "").rpartition("/")
        task = self.task
        if not 0 < page <= self.sheet_pages or name != manifest_name(task.map_index, task.iteration):
            return None
        return f"{folder}/{contact_sheet_name(task.map_index, task.iteration, page)}"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What was chosen.

    Attributes:
        chosen: How many candidates.
        by: The name of the user; None if nobody answered in time.
        at: When, in ISO 8601.
        timed_out: Whether nobody answered in time, so that the task's defaults were chosen.
    """

    chosen: int
    by: str | None
    at: str | None
    timed_out: bool


@dataclass(frozen=True, kw_only=True)
class ChoiceRecord:
    """A task instance in which a person chooses among images.

    Attributes:
        task: The choosing task instance.
        candidates: The images, in the order of their numbers. They are images of other tasks as well.
        note: What was wrong with the last answer, or None.
        at_least: How many have to be chosen.
        at_most: How many may be chosen.
        deadline: Until when an answer is waited for, in epoch seconds; None if for ever.
        verdict: What was chosen; None before.
        problem: Why its candidates cannot be listed, or None.
    """

    task: TaskInstance
    candidates: Sequence[ImageRecord] = ()
    note: str | None = None
    at_least: int = 1
    at_most: int = 1
    deadline: float | None = None
    verdict: Verdict | None = None
    problem: str | None = None

    def candidate(self, number: int) -> ImageRecord | None:
        """Return a candidate by its number, or None if there are not so many."""
        return self.candidates[number - 1] if 1 <= number <= len(self.candidates) else None

    @property
    def how_many(self) -> str:
        """How many to choose, in words."""
        return how_many(self.at_least, self.at_most)

    @property
    def is_waiting(self) -> bool:
        """Whether it waits for an answer."""
        return bool(self.candidates) and self.verdict is None and self.task.state in WAITING_FOR_INPUT

    @cached_property
    def version(self) -> str:
        """A value that changes when other images are offered, or another question is asked."""
        paths = [(candidate.path, candidate.image_task_id) for candidate in self.candidates]
        facts = paths, self.note, self.at_least, self.at_most, self.deadline, self.task.try_number
        return hashlib.sha256(repr(facts).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Records:
    """The images, batches and choices of some task instances.

    Attributes:
        is_partial: Whether something could not be read that a later read may find.
        is_cut: Whether images were left out to limit memory.
        weight: About how many bytes of memory the images take, if counted; see `within`.
    """

    images: Sequence[ImageRecord] = ()
    batches: Sequence[BatchRecord] = ()
    is_partial: bool = False
    is_cut: bool = False
    weight: int = 0
    choices: Sequence[ChoiceRecord] = ()

    def within(self, most_bytes: int) -> Records:
        """Return the records with their weight counted, and with only the first images that fit into `most_bytes`."""
        offered = sum(candidate.weight for choice in self.choices for candidate in choice.candidates)
        if offered > most_bytes:
            return Records(is_partial=self.is_partial, is_cut=True)
        weights = list(itertools.accumulate((image.weight for image in self.images), initial=offered))
        fitting = [weight for weight in weights if weight <= most_bytes]
        return replace(
            self,
            images=self.images[: len(fitting) - 1],
            is_cut=self.is_cut or len(fitting) < len(weights),
            weight=fitting[-1],
        )

    @property
    def has_problem(self) -> bool:
        """Whether something could not be read and has to be read again."""
        return (
            self.is_partial
            or any(batch.problem for batch in self.batches)
            or any(choice.problem for choice in self.choices)
        )


@dataclass(frozen=True)
class Totals:
    """The sums above the images of a page.

    Attributes:
        images: The number of images.
        counts: The number of images by status.
        at_risk: Credits that may have been consumed, if this will not become known.
        chosen: The number of images that a person chose.
    """

    images: int
    counts: Mapping[str, int]
    consumed_credits: float
    at_risk: float
    chosen: int


def totals_of(records: Records) -> Totals:
    """Add up images and credits."""
    counts = dict.fromkeys((str(status) for status in Status), 0)
    spent = at_risk = 0.0
    tasks_with_images = set()
    for record in records.images:
        counts[record.status] += 1
        spent += record.consumed_credits or 0
        at_risk += record.at_risk
        tasks_with_images.add(record.task)
    for batch in records.batches:
        if batch.task in tasks_with_images:
            continue
        progress = batch.progress
        # Without rows, the pushed progress is all that is known.
        counts[Status.DONE] += int(progress.get("done", 0))
        counts[Status.FAILED] += int(progress.get("failed", 0))
        counts[Status.DRAWING] += int(progress.get("in_flight", 0))
        spent += progress.get("consumed_credits", 0)
    chosen = sum(record.is_chosen for record in records.images)
    return Totals(sum(counts.values()), counts, spent, at_risk, chosen)
