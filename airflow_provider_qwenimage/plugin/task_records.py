"""Decides what the gallery shows of an image task, from the XComs of its task instance. No I/O.

Anybody who can write an XCom may have written these values; see `bounds`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from airflow_provider_qwenimage.contract import CREDITS_PER_IMAGE
from airflow_provider_qwenimage.exceptions import QwenImageSubmissionUnknownError
from airflow_provider_qwenimage.plugin.bounds import (
    MOST_NAME,
    error_fields,
    label_of,
    number,
    path,
    request_fields,
    sequence,
    text,
)
from airflow_provider_qwenimage.plugin.image_records import (
    ENDED_BADLY,
    ImageRecord,
    Status,
    TaskInstance,
    UnreadableXCom,
)
from airflow_provider_qwenimage.plugin.task_kinds import SENSOR, kind_of
from airflow_provider_qwenimage.text.urls import is_http_url

# The state of an image whose task submits it and does not wait for it.
SUBMITTED = "submitted"
NEVER_RAN = frozenset({"skipped", "upstream_failed", "removed"})
_NOT_STARTED = frozenset({None, "scheduled", "queued", "none", "up_for_reschedule"})
_NO_RESULT = (
    "The task pushed no return value (do_xcom_push=False, or its XComs were deleted), so the gallery cannot find the "
    "image. The task's log has its path or address."
)


def records_of_task(task: TaskInstance, xcoms: Mapping[str, Any]) -> list[ImageRecord]:
    """Return the images of an operator or a sensor; for a batch see `records_of_batch`.

    Args:
        task: A task instance of any operator; those of other packages have no images.
        xcoms: What it pushed, by key.
    """
    if kind_of(task, xcoms) is None:
        return []
    result = xcoms.get("return_value")
    error, message = error_fields(xcoms.get("error"))
    image_task_id = text(xcoms.get("task_id"), MOST_NAME)
    consumed_credits = number(xcoms.get("consumed_credits"))
    common: dict[str, Any] = {
        "task": task,
        "request": request_fields(xcoms.get("request")),
        "label": label_of(xcoms.get("request")),
        "image_task_id": image_task_id,
        "changed_at": task.changed_at,
    }
    if isinstance(result, Mapping) and task.state != "failed":
        return finished_images(_with_result(common, result), result, consumed_credits)
    if isinstance(result, list):
        return finished_images(common, {"image_urls": result}, consumed_credits)
    if _has_no_image(task, xcoms, is_known=bool(image_task_id or error)):
        return []
    if task.state == "success" and ("consumed_credits" in xcoms or image_task_id is None):
        # A task pushes its credits when the image is done.
        status = Status.DONE if "consumed_credits" in xcoms else Status.UNKNOWN
        reasons = (value.reason for value in xcoms.values() if isinstance(value, UnreadableXCom))
        reason = next(reasons, _NO_RESULT)
        return [
            ImageRecord(**common, status=status, state="success", message=reason, consumed_credits=consumed_credits)
        ]
    state = task.state or "none"
    submitted_only = task.state == "success" and image_task_id is not None
    if task.state in ENDED_BADLY or (error is not None and task.state == "skipped"):
        status = Status.UNKNOWN if error == QwenImageSubmissionUnknownError.__name__ else Status.FAILED
    elif submitted_only:
        # The result is known to the sensor that waits for the image; see `merge_waits`.
        status, state = Status.DRAWING, SUBMITTED
    elif task.state in _NOT_STARTED and image_task_id is None:
        status = Status.WAITING
    else:
        status = Status.DRAWING
    # A sensor consumes no credits; the risk is counted for the task that submitted.
    may_be_paid = task.operator != SENSOR and (image_task_id is not None or status is Status.UNKNOWN)
    is_lost = task.has_ended and not submitted_only and consumed_credits is None and may_be_paid
    return [
        ImageRecord(
            **common,
            status=status,
            state=state,
            error=error,
            message=message,
            consumed_credits=consumed_credits,
            at_risk=CREDITS_PER_IMAGE if is_lost else 0,
        )
    ]


def _has_no_image(task: TaskInstance, xcoms: Mapping[str, Any], *, is_known: bool) -> bool:
    """Whether a task never ran, or is a sensor whose image cannot be identified."""
    never_ran = task.state in NEVER_RAN and not is_known
    return never_ran or (task.operator == SENSOR and isinstance(xcoms.get("task_id"), UnreadableXCom))


def _with_result(common: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of an image with those of the task's return value, which take precedence."""
    image_task_id = text(result.get("task_id"), MOST_NAME) or common["image_task_id"]
    request = common["request"] | (request_fields(result) if "seed" in result else {})
    return {**common, "image_task_id": image_task_id, "request": request}


def finished_images(
    common: Mapping[str, Any], result: Mapping[str, Any], consumed_credits: float | None, first: int = 1
) -> list[ImageRecord]:
    """Return the images of a finished image task.

    Args:
        common: The fields of `ImageRecord` that all of its images share.
        result: The return value of the task, or the manifest's row.
        consumed_credits: Those of the whole image task.
        first: The number of the first image.
    """
    paths = [known for item in sequence(result.get("paths")) if (known := path(item)) is not None]
    urls = [known for item in sequence(result.get("image_urls")) if (known := path(item)) and is_http_url(known)]
    reused = result.get("reused") is True
    return [
        ImageRecord(
            **common,
            number=first + index,
            status=Status.DONE,
            state="reused" if reused else "success",
            path=image_path,
            image_url=image_url,
            # The image task is paid as a whole, so its first image has the credits.
            consumed_credits=consumed_credits if index == 0 else 0,
            reused=reused,
        )
        for index, (image_path, image_url) in enumerate(itertools.zip_longest(paths, urls))
    ]
