"""Decides what the gallery tells of each image, from what its task has pushed and listed. No I/O.

Everything here may have been written by anybody who can write an XCom; see `bounds`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from airflow_provider_qwenimage.contract import CREDITS_PER_IMAGE, SIZES
from airflow_provider_qwenimage.exceptions import QwenImageSubmissionUnknownError
from airflow_provider_qwenimage.plugin.bounds import (
    MOST_IMAGES_OF_A_BATCH,
    MOST_NAME,
    mapping,
    number,
    path,
    sequence,
    text,
    whole,
)
from airflow_provider_qwenimage.plugin.image_records import (
    ENDED_BADLY,
    BatchRecord,
    ImageRecord,
    Records,
    Status,
    TaskInstance,
    Unseen,
)
from airflow_provider_qwenimage.rules.batch_rows import RowStatus
from airflow_provider_qwenimage.text.urls import is_http_url

# The XComs that tell of images.
XCOM_KEYS = ("request", "task_id", "return_value", "consumed_credits", "error", "progress", "manifest")

BATCH_OPERATOR = "QwenImageBatchOperator"
SENSOR = "QwenImageStatusSensor"
OPERATORS = ("QwenImageGenerateOperator", BATCH_OPERATOR, SENSOR)

_NOT_BEGUN = frozenset({None, "scheduled", "queued", "none", "up_for_reschedule"})
_SUBMITTED = "submitted"
_MOST_WORD = 40
_PROGRESS = (
    "requests",
    "done",
    "reused",
    "failed",
    "in_flight",
    "consumed_credits",
    "images_per_second",
    "seconds_left",
)


_NO_RESULT = (
    "The task has pushed no return value (do_xcom_push is off, or its XComs were deleted), so this page does not know "
    "where the image is; the task's log does."
)
_NOBODY_WAITED = "No task of this run has waited for this image, so nothing more is known of it."


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
    image_task_id = text(xcoms.get("task_id"), MOST_NAME)
    consumed_credits = number(xcoms.get("consumed_credits"))
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
    if _is_told_by_others(task, xcoms, is_known=bool(image_task_id or error)):
        return []
    if task.state == "success" and ("consumed_credits" in xcoms or image_task_id is None):
        # It pushes its credits when the image is done.
        status = Status.DONE if "consumed_credits" in xcoms else Status.UNKNOWN
        unseen = next((value.reason for value in xcoms.values() if isinstance(value, Unseen)), _NO_RESULT)
        return [
            ImageRecord(**common, status=status, state="success", message=unseen, consumed_credits=consumed_credits)
        ]
    state = task.state or "none"
    submitted_only = task.state == "success" and image_task_id is not None
    if task.state in ENDED_BADLY or (error is not None and task.state == "skipped"):
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


def _is_told_by_others(task: TaskInstance, xcoms: Mapping[str, Any], *, is_known: bool) -> bool:
    """Whether a task drew nothing; or waited for an image that is not known, and shown where it was submitted."""
    was_not_to_run = task.state in ("skipped", "upstream_failed", "removed") and not is_known
    return was_not_to_run or (task.operator == SENSOR and isinstance(xcoms.get("task_id"), Unseen))


def _finished(common: dict[str, Any], result: Mapping[str, Any], consumed_credits: float | None) -> list[ImageRecord]:
    common["image_task_id"] = text(result.get("task_id"), MOST_NAME) or common["image_task_id"]
    if "seed" in result:
        common["request"] = {**common["request"], **read_request(result)}
    return _images_of(common, result, consumed_credits)


def _images_of(
    common: Mapping[str, Any], told: Mapping[str, Any], consumed_credits: float | None, first: int = 1
) -> list[ImageRecord]:
    """Return the images of a finished image task, by what its task has returned or the manifest's row tells."""
    paths = [known for item in sequence(told.get("paths")) if (known := path(item)) is not None]
    urls = [known for item in sequence(told.get("image_urls")) if (known := path(item)) and is_http_url(known)]
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
    is_cut = False
    for row in rows:
        is_cut = len(images) >= MOST_IMAGES_OF_A_BATCH
        if is_cut:
            break
        images.extend(_records_of_row(task, row, len(images) + 1))
    progress = {
        name: known for name in _PROGRESS if (known := number(mapping(xcoms.get("progress")).get(name))) is not None
    }
    error, message = _read_error(xcoms.get("error"))
    if not images and (error is not None or (task.state in ENDED_BADLY and not progress)):
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
    return Records(images, [BatchRecord(task=task, progress=progress, problem=problem)], is_cut=is_cut)


def _records_of_row(task: TaskInstance, row: Mapping[str, Any], first: int) -> list[ImageRecord]:
    request = read_request(row)
    state = text(row.get("status"), MOST_NAME)
    if not request or state is None:
        return []
    error, message = _read_error(row)
    consumed_credits = number(row.get("consumed_credits"))
    common: dict[str, Any] = {
        "task": task,
        "request": request,
        "image_task_id": text(row.get("task_id"), MOST_NAME),
        "changed_at": text(row.get("stored_at"), MOST_NAME) or task.changed_at,
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


def with_waits(records: Sequence[ImageRecord], *, has_ended: bool = False) -> list[ImageRecord]:
    """Put together what one task has submitted and a sensor of the same run has waited for: it is one image.

    Args:
        records: Those of one DAG run.
        has_ended: Whether the run has, so that nobody waits any more.
    """
    waits: dict[str, list[ImageRecord]] = {}
    for record in records:
        if record.task.operator == SENSOR and record.image_task_id is not None:
            waits.setdefault(record.image_task_id, []).append(record)
    best = {image_task_id: _best_of(its) for image_task_id, its in waits.items()}
    submitted = {record.image_task_id for record in records if record.state == _SUBMITTED}
    put_together: list[ImageRecord] = []
    for record in records:
        if record.state == _SUBMITTED and record.image_task_id in best:
            its = best[record.image_task_id]
            put_together.extend(_waited_for(record, its))
            # Of several tasks that claim the same image task, the first one shows all of its images.
            best[record.image_task_id] = its[:1]
        elif record.state == _SUBMITTED and has_ended:
            told = record.message or _NOBODY_WAITED
            put_together.append(replace(record, status=Status.UNKNOWN, message=told, at_risk=CREDITS_PER_IMAGE))
        elif record.task.operator != SENSOR or record.image_task_id not in submitted:
            put_together.append(record)
    return put_together


def _best_of(waits: Sequence[ImageRecord]) -> list[ImageRecord]:
    """Return what the sensor tells that got furthest, of several that may have waited for one image."""
    furthest = max(waits, key=lambda wait: (wait.status is Status.DONE, wait.task.has_ended))
    return [wait for wait in waits if wait.task == furthest.task]


def _waited_for(record: ImageRecord, waits: Sequence[ImageRecord]) -> Iterator[ImageRecord]:
    for wait in waits:
        lost = wait.status is Status.FAILED and wait.consumed_credits is None
        yield replace(
            wait,
            task=record.task,
            request={**wait.request, **record.request},
            waited_for_by=wait.task,
            at_risk=CREDITS_PER_IMAGE if lost else 0,
        )


def read_request(value: object) -> dict[str, Any]:
    """Return the fields of a request that are of the right type, cut; nothing where there is no prompt or size."""
    fields = mapping(value)
    read = {
        "prompt": text(fields.get("prompt")),
        "size": text(fields.get("size"), _MOST_WORD),
        "seed": whole(fields.get("seed")),
        "output_format": text(fields.get("output_format"), _MOST_WORD),
    }
    request = {name: known for name, known in read.items() if known is not None}
    return request if "prompt" in request or "size" in request else {}


def _read_error(value: object) -> tuple[str | None, str | None]:
    fields = mapping(value)
    return text(fields.get("error"), MOST_NAME), text(fields.get("message"))
