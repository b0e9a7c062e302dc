"""Decides what the gallery shows of a batch, from its XComs and the rows of its manifest. No I/O.

Anybody who can write an XCom or a file may have written these values; see `bounds`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from airflow_provider_qwenimage.contract import CREDITS_PER_IMAGE
from airflow_provider_qwenimage.plugin.bounds import (
    MOST_IMAGES_OF_A_BATCH,
    MOST_NAME,
    MOST_PAGES,
    error_fields,
    label_of,
    mapping,
    number,
    path,
    request_fields,
    sequence,
    text,
)
from airflow_provider_qwenimage.plugin.image_records import (
    ENDED_BADLY,
    BatchRecord,
    ImageRecord,
    Records,
    Status,
    TaskInstance,
)
from airflow_provider_qwenimage.plugin.task_records import NEVER_RAN, finished_images
from airflow_provider_qwenimage.rules.batch_rows import RowStatus

_PROGRESS_FIELDS = (
    "requests",
    "done",
    "reused",
    "failed",
    "in_flight",
    "consumed_credits",
    "images_per_second",
    "seconds_left",
)
_ROW_STATUSES: Mapping[str, Status] = {
    RowStatus.FAILED: Status.FAILED,
    RowStatus.UNKNOWN: Status.UNKNOWN,
    RowStatus.UNFINISHED: Status.UNKNOWN,
    RowStatus.IN_PROGRESS: Status.DRAWING,
    RowStatus.NOT_SUBMITTED: Status.WAITING,
}


def records_of_batch(
    task: TaskInstance, xcoms: Mapping[str, Any], rows: Iterable[Mapping[str, Any]], problem: str | None
) -> Records:
    """Return the images of a batch and its progress.

    Args:
        task: The task instance of the batch.
        xcoms: What it pushed, by key.
        rows: The rows of its manifest, or while it runs those listed so far.
        problem: Why the rows cannot be read, or None.
    """
    images: list[ImageRecord] = []
    is_cut = False
    for row in rows:
        is_cut = len(images) >= MOST_IMAGES_OF_A_BATCH
        if is_cut:
            break
        images.extend(_records_of_row(task, row, len(images) + 1))
    pushed = mapping(xcoms.get("progress"))
    progress = {name: known for name in _PROGRESS_FIELDS if (known := number(pushed.get(name))) is not None}
    error, message = error_fields(xcoms.get("error"))
    if task.state in NEVER_RAN and not (progress or error):
        return Records()
    if not images and (error is not None or (task.state in ENDED_BADLY and not progress)):
        # The batch failed before it listed its first row.
        failure = ImageRecord(
            task=task,
            status=Status.FAILED,
            state=str(task.state),
            error=error,
            message=message,
            changed_at=task.changed_at,
        )
        images = [failure]
    batch = BatchRecord(
        task=task,
        progress=progress,
        problem=problem,
        manifest=path(xcoms.get("manifest")),
        sheet_pages=len(sequence(xcoms.get("contact_sheet"), MOST_PAGES)),
    )
    return Records(images, [batch], is_cut=is_cut)


def _records_of_row(task: TaskInstance, row: Mapping[str, Any], first: int) -> list[ImageRecord]:
    request = request_fields(row)
    state = text(row.get("status"), MOST_NAME)
    if not request or state is None:
        return []
    error, message = error_fields(row)
    consumed_credits = number(row.get("consumed_credits"))
    common: dict[str, Any] = {
        "task": task,
        "request": request,
        "label": label_of(row),
        "image_task_id": text(row.get("task_id"), MOST_NAME),
        "changed_at": text(row.get("stored_at"), MOST_NAME) or task.changed_at,
    }
    if state == RowStatus.SUCCESS:
        return finished_images(common, row, consumed_credits, first)
    status = _ROW_STATUSES.get(state, Status.FAILED)
    if task.has_ended and status in (Status.DRAWING, Status.WAITING):
        status = Status.FAILED
    was_abandoned = state == RowStatus.IN_PROGRESS and task.has_ended
    is_unsettled = was_abandoned or state in (RowStatus.UNKNOWN, RowStatus.UNFINISHED)
    return [
        ImageRecord(
            **common,
            number=first,
            status=status,
            state=state.lower(),
            error=error,
            message=message,
            consumed_credits=consumed_credits,
            at_risk=CREDITS_PER_IMAGE if is_unsettled and consumed_credits is None else 0,
        )
    ]
