"""Decides what the gallery tells of each image, from what its task has pushed and listed. No I/O.

Everything here may have been written by anybody who can write an XCom, so nothing is taken for granted: what is not of
the expected shape counts as not there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from airflow_provider_qwenimage.batch_totals import RowStatus
from airflow_provider_qwenimage.contract import CREDITS_PER_IMAGE, SIZES, is_http_url
from airflow_provider_qwenimage.exceptions import QwenImageSubmissionUnknownError

# The XComs that tell of images.
XCOM_KEYS = ("request", "task_id", "return_value", "consumed_credits", "error", "progress", "manifest")

BATCH_OPERATOR = "QwenImageBatchOperator"
SENSOR = "QwenImageStatusSensor"
OPERATORS = ("QwenImageGenerateOperator", BATCH_OPERATOR, SENSOR)

_NOT_BEGUN = frozenset({None, "scheduled", "queued", "none", "up_for_reschedule"})
_ENDED_BADLY = frozenset({"failed", "upstream_failed"})
_ENDED = _ENDED_BADLY | {"success", "skipped", "removed"}
_SUBMITTED = "submitted"
_TOO_MANY = 10**12


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
        text = "\n".join(part for part in texts if part is not None).casefold()
        values = {str(self.request.get(name)) for name in ("seed", "size", "output_format")}
        image_task_id = (self.image_task_id or "").casefold()
        return all(word in text or word in values or image_task_id.startswith(word) for word in words)


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
    """What the gallery tells of some task instances."""

    images: Sequence[ImageRecord] = ()
    batches: Sequence[BatchRecord] = ()

    @property
    def has_problem(self) -> bool:
        """Whether something could not be read, which may come back."""
        return any(batch.problem for batch in self.batches)


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


def records_of_task(task: TaskInstance, xcoms: Mapping[str, Any]) -> list[ImageRecord]:
    """Return what the XComs of a task instance tell of its images; of a batch see `records_of_batch`.

    Args:
        task: The task instance, of whatever operator.
        xcoms: What it has pushed, by key.
    """
    request = read_request(xcoms.get("request"))
    # An operator derived from ours has another name, and another one may push an XCom of that name.
    if task.operator not in OPERATORS and not ("prompt" in request and request.get("size") in SIZES):
        return []
    result = xcoms.get("return_value")
    error, message = _read_error(xcoms.get("error"))
    image_task_id = _text(xcoms.get("task_id"))
    consumed_credits = _number(xcoms.get("consumed_credits"))
    common: dict[str, Any] = {
        "task": task,
        "request": request,
        "image_task_id": image_task_id,
        "changed_at": task.changed_at,
    }
    if isinstance(result, Mapping) and task.state != "failed":
        return _finished(common, result, consumed_credits)
    if isinstance(result, list) and task.operator != BATCH_OPERATOR:
        return _images_of(common, {"image_urls": result}, consumed_credits)
    state = task.state or "none"
    if task.state in ("skipped", "upstream_failed", "removed") and not (image_task_id or error):
        return []
    submitted_only = task.state == "success" and image_task_id is not None
    if task.state in _ENDED_BADLY or (error is not None and task.state == "skipped"):
        status = Status.UNKNOWN if error == QwenImageSubmissionUnknownError.__name__ else Status.FAILED
    elif submitted_only:
        # Nothing more is known of it here: whoever waits for it may tell; see `with_waits`.
        status, state = Status.DRAWING, _SUBMITTED
    elif task.state in _NOT_BEGUN and image_task_id is None:
        status = Status.WAITING
    else:
        status = Status.DRAWING
    # A sensor spends nothing: what it has not learnt is a risk of the one who has submitted.
    may_be_paid = task.operator != SENSOR and (image_task_id is not None or status is Status.UNKNOWN)
    lost = task.has_ended and not submitted_only and consumed_credits is None and may_be_paid
    return [
        ImageRecord(
            **common,
            status=status,
            state=state,
            error=error,
            message=message,
            consumed_credits=consumed_credits,
            at_risk=CREDITS_PER_IMAGE if lost else 0,
        )
    ]


def _finished(common: dict[str, Any], result: Mapping[str, Any], consumed_credits: float | None) -> list[ImageRecord]:
    common["image_task_id"] = _text(result.get("task_id")) or common["image_task_id"]
    if "seed" in result:
        common["request"] = {**common["request"], **read_request(result)}
    return _images_of(common, result, consumed_credits)


def _images_of(
    common: Mapping[str, Any], told: Mapping[str, Any], consumed_credits: float | None, first: int = 1
) -> list[ImageRecord]:
    """Return the images of a finished image task, by what its task has returned or the manifest's row tells."""
    paths = [path for path in _list(told.get("paths")) if isinstance(path, str)]
    urls = [url for url in _list(told.get("image_urls")) if isinstance(url, str) and is_http_url(url)]
    reused = told.get("reused") is True
    return [
        ImageRecord(
            **common,
            number=first + index,
            status=Status.DONE,
            state="reused" if reused else "success",
            path=paths[index] if index < len(paths) else None,
            image_url=urls[index] if index < len(urls) else None,
            # An image task is paid as a whole.
            consumed_credits=consumed_credits if index == 0 else 0,
            reused=reused,
        )
        for index in range(max(len(paths), len(urls)))
    ]


def records_of_batch(
    task: TaskInstance, xcoms: Mapping[str, Any], rows: Iterable[Mapping[str, Any]], problem: str | None
) -> Records:
    """Return what a batch tells of its images.

    Args:
        task: Its task instance.
        xcoms: What it has pushed, by key.
        rows: Its manifest, or what it has listed so far.
        problem: Why they cannot be read, if they cannot.
    """
    images: list[ImageRecord] = []
    for row in rows:
        images.extend(_records_of_row(task, row, len(images) + 1))
    progress = {
        name: number
        for name, value in _mapping(xcoms.get("progress")).items()
        if (number := _number(value)) is not None
    }
    error, message = _read_error(xcoms.get("error"))
    if not images and (error is not None or (task.state in _ENDED_BADLY and not progress)):
        # It has failed as a whole, before anything was listed.
        images = [
            ImageRecord(
                task=task,
                status=Status.FAILED,
                state=str(task.state),
                error=error,
                message=message,
                changed_at=task.changed_at,
            )
        ]
    if task.state in ("skipped", "upstream_failed", "removed") and not (progress or error):
        return Records()
    return Records(images, [BatchRecord(task=task, progress=progress, problem=problem)])


def _records_of_row(task: TaskInstance, row: Mapping[str, Any], first: int) -> list[ImageRecord]:
    request = read_request(row)
    state = _text(row.get("status"))
    if not request or state is None:
        return []
    error, message = _read_error(row)
    consumed_credits = _number(row.get("consumed_credits"))
    common: dict[str, Any] = {
        "task": task,
        "request": request,
        "image_task_id": _text(row.get("task_id")),
        "changed_at": _text(row.get("stored_at")) or task.changed_at,
    }
    if state == RowStatus.SUCCESS:
        return _images_of(common, row, consumed_credits, first)
    status = _ROW_STATUSES.get(state, Status.FAILED)
    if task.has_ended and status in (Status.DRAWING, Status.WAITING):
        status = Status.FAILED
    left = state == RowStatus.IN_PROGRESS and task.has_ended
    unsettled = left or state in (RowStatus.UNKNOWN, RowStatus.UNFINISHED)
    return [
        ImageRecord(
            **common,
            number=first,
            status=status,
            state=state.lower(),
            error=error,
            message=message,
            consumed_credits=consumed_credits,
            at_risk=CREDITS_PER_IMAGE if unsettled else 0,
        )
    ]


_ROW_STATUSES: Mapping[str, Status] = {
    RowStatus.FAILED: Status.FAILED,
    RowStatus.UNKNOWN: Status.UNKNOWN,
    RowStatus.UNFINISHED: Status.UNKNOWN,
    RowStatus.IN_PROGRESS: Status.DRAWING,
    RowStatus.NOT_SUBMITTED: Status.WAITING,
}


def with_waits(records: Sequence[ImageRecord]) -> list[ImageRecord]:
    """Put together what one task has submitted and a sensor of the same run has waited for: it is one image.

    Args:
        records: Those of one DAG run.
    """
    waits: dict[str, list[ImageRecord]] = {}
    for record in records:
        if record.task.operator == SENSOR and record.image_task_id is not None:
            waits.setdefault(record.image_task_id, []).append(record)
    submitted = {record.image_task_id for record in records if record.state == _SUBMITTED}
    put_together: list[ImageRecord] = []
    for record in records:
        if record.state == _SUBMITTED and record.image_task_id in waits:
            put_together.extend(_waited_for(record, waits[record.image_task_id]))
        elif record.task.operator != SENSOR or record.image_task_id not in submitted:
            put_together.append(record)
    return put_together


def _waited_for(record: ImageRecord, waits: Sequence[ImageRecord]) -> Iterator[ImageRecord]:
    # Several sensors may wait for one image: the one that got furthest tells most.
    best = max(waits, key=lambda wait: (wait.status is Status.DONE, wait.task.has_ended))
    lost = best.status is Status.FAILED and best.consumed_credits is None
    for wait in waits:
        if wait.task == best.task:
            yield replace(
                wait,
                task=record.task,
                request={**wait.request, **record.request},
                waited_for_by=wait.task,
                at_risk=CREDITS_PER_IMAGE if lost else 0,
            )


def read_request(value: object) -> dict[str, Any]:
    """Return the fields of a request that are of the right type, or nothing where there is no prompt or size."""
    fields = _mapping(value)
    wanted = {"prompt": str, "size": str, "seed": int, "output_format": str}
    request = {name: fields[name] for name, kind in wanted.items() if isinstance(fields.get(name), kind)}
    return request if "prompt" in request or "size" in request else {}


def _read_error(value: object) -> tuple[str | None, str | None]:
    fields = _mapping(value)
    return _text(fields.get("error")), _text(fields.get("message"))


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < _TOO_MANY:
        return None
    return value


def _list(value: object) -> Sequence[Any]:
    return value if isinstance(value, list) else ()


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
