"""The deferred wait that the sensor and the operator share: at first in the worker, then in the triggerer."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from airflow_provider_qwenimage.airflow_versions import RESUMES_RETRIES
from airflow_provider_qwenimage.rules import polling
from airflow_provider_qwenimage.rules.task_ids import printable_id
from airflow_provider_qwenimage.triggers import QwenImageStatusTrigger

if TYPE_CHECKING:
    from airflow_provider_qwenimage.contract import TaskSnapshot
    from airflow_provider_qwenimage.hooks import QwenImageHook

# The trigger fires its own event at the deadline, since Airflow's timeout would skip the resume method. Airflow's
# timeout comes this much later: enough for a last read that hangs.
_FRAMEWORK_GRACE_SECONDS = 120.0
# What is left of an `execution_timeout` for the resumed task: at most this long, and at most this share.
_RESUME_SECONDS = 30.0
_RESUME_SHARE = 0.1


class DeferrableTask(Protocol):
    """The part of an operator that a deferral needs."""

    execution_timeout: Any

    @property
    def log(self) -> Any:
        """The task's logger."""

    def defer(self, *, trigger: Any, method_name: str, timeout: Any = None) -> NoReturn:
        """Raise `TaskDeferred`."""


def end_time_of(task: DeferrableTask, timeout: float, since: float | None = None) -> float:
    """Return a wait's deadline in epoch seconds: its own timeout, or shortly before `execution_timeout`.

    Args:
        task: The task that waits. Airflow does not enforce its `execution_timeout` while it is deferred, but
            Airflow 2 ends a task that is resumed after it before the task can report anything.
        timeout: The wait's own timeout in seconds.
        since: When the wait began, in epoch seconds, if this process resumes it.
    """
    now = time.time()
    if task.execution_timeout is not None:
        limit = task.execution_timeout.total_seconds()
        timeout = min(timeout, limit - min(_RESUME_SECONDS, _RESUME_SHARE * limit))
    # Records are written by other machines, or by strangers: no wait becomes longer than its own timeout.
    return (now if since is None else min(now, since)) + timeout


def is_of_an_earlier_try(event: object, try_number: int) -> bool:
    """Whether a retry is resumed with the event of an earlier try, as Airflow 3.0 does."""
    if not RESUMES_RETRIES or not isinstance(event, dict):
        return False
    return event.get("try_number") not in (None, try_number)


def wait_deferred(
    task: DeferrableTask,
    hook: QwenImageHook,
    image_task_id: str,
    policy: polling.PollPolicy,
    *,
    try_number: int,
    defer_after: float = 0.0,
    callback: str | None = None,
) -> TaskSnapshot:
    """Wait in the worker at first, and defer to the triggerer if the image task has not ended by then.

    It checks at least once: a trigger that fires within a second or two of the deferral can fail its own task, so a
    task that has already ended must not get as far as a trigger.

    Args:
        task: The task that waits. Airflow resumes it with ``execute_complete(context, event)``.
        hook: The client for the check.
        image_task_id: The API's id of the image task.
        policy: The wait's pace and bounds.
        try_number: The task's try.
        defer_after: Seconds to wait in the worker; 0 checks once.
        callback: See `QwenImageStatusTrigger`.

    Returns:
        The snapshot with status ``SUCCESS``, if the image task has ended so.

    Raises:
        TaskDeferred: If the image task has not ended.
        QwenImageError: If it FAILED, or cannot be waited for.
    """
    decision = hook.follow(image_task_id, policy, defer_at=time.time() + defer_after)
    if isinstance(decision, polling.Done):
        return decision.snapshot
    if isinstance(decision, polling.Wait):
        task.log.info("Waiting for image task %s in the triggerer.", printable_id(image_task_id))
        task.defer(
            trigger=QwenImageStatusTrigger(
                image_task_id=image_task_id,
                qwenimage_conn_id=hook.qwenimage_conn_id,
                poll_interval=policy.poll_interval,
                end_time=policy.end_time,
                max_consecutive_failures=policy.max_consecutive_failures,
                try_number=try_number,
                callback=callback,
            ),
            method_name="execute_complete",
            timeout=None
            if policy.end_time is None
            else timedelta(seconds=policy.end_time - time.time() + _FRAMEWORK_GRACE_SECONDS),
        )
    raise decision.error
