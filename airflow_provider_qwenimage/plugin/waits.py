"""Merges a submission with the sensor that waits for its image, which together are one image. No I/O."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from airflow_provider_qwenimage.contract import CREDITS_PER_IMAGE
from airflow_provider_qwenimage.plugin.image_records import ImageRecord, Status
from airflow_provider_qwenimage.plugin.task_kinds import SENSOR
from airflow_provider_qwenimage.plugin.task_records import SUBMITTED

_NO_SENSOR = "No sensor of this run waited for this image, so its result is not known."


def merge_waits(records: Sequence[ImageRecord], *, has_ended: bool = False) -> list[ImageRecord]:
    """Return the images of a DAG run, each submission merged with the sensor's record of the same image task.

    Args:
        records: The records of all task instances of the run.
        has_ended: Whether the run has ended, so that no sensor will wait any more.
    """
    waits: dict[str, list[ImageRecord]] = {}
    for record in records:
        if record.task.operator == SENSOR and record.image_task_id is not None:
            waits.setdefault(record.image_task_id, []).append(record)
    best = {image_task_id: _best_of(candidates) for image_task_id, candidates in waits.items()}
    submitted = {record.image_task_id for record in records if record.state == SUBMITTED}
    merged: list[ImageRecord] = []
    for record in records:
        if record.state == SUBMITTED and record.image_task_id in best:
            waited = best[record.image_task_id]
            merged.extend(_merged(record, waited))
            # If several tasks claim the same image task, only the first one shows all of its images.
            best[record.image_task_id] = waited[:1]
        elif record.state == SUBMITTED and has_ended:
            message = record.message or _NO_SENSOR
            merged.append(replace(record, status=Status.UNKNOWN, message=message, at_risk=CREDITS_PER_IMAGE))
        elif record.task.operator != SENSOR or record.image_task_id not in submitted:
            merged.append(record)
    return merged


def _best_of(waits: Sequence[ImageRecord]) -> list[ImageRecord]:
    """Return the records of the sensor that got furthest, of all sensors that wait for one image task."""
    furthest = max(waits, key=lambda wait: (wait.status is Status.DONE, wait.task.has_ended))
    return [wait for wait in waits if wait.task == furthest.task]


def _merged(submission: ImageRecord, waits: Sequence[ImageRecord]) -> Iterator[ImageRecord]:
    for wait in waits:
        is_lost = wait.status is Status.FAILED and wait.consumed_credits is None
        yield replace(
            wait,
            task=submission.task,
            request={**wait.request, **submission.request},
            waited_for_by=wait.task,
            at_risk=CREDITS_PER_IMAGE if is_lost else 0,
        )
