"""The trigger that waits for an image task in the triggerer. It only reads, so running it twice costs nothing."""

from __future__ import annotations

import asyncio
import functools
import time
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import conf
from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_provider_qwenimage import exceptions, polling
from airflow_provider_qwenimage.connection import DEFAULT_CONN_ID
from airflow_provider_qwenimage.contract import TaskSnapshot, TaskStatus, task_failure
from airflow_provider_qwenimage.exceptions import (
    QwenImageContractError,
    QwenImageError,
    QwenImageTaskFailedError,
)
from airflow_provider_qwenimage.submissions import what_stays_paid

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from airflow_provider_qwenimage.hooks import QwenImageAsyncHook

_SUCCESS, _ERROR = "success", "error"
# Airflow before 3.3 only cancels, be it for a user or because the triggerer stops.
_AIRFLOW_TELLS_KILLS = hasattr(BaseTrigger, "on_kill")
_DEFAULT_HEARTBEAT_SECONDS = 5
_SCHEDULER_SECONDS = 3.0


class QwenImageStatusTrigger(BaseTrigger):
    """Fires once, when an image task ended or the wait for it is over.

    Its event is what `event_of` makes of the end, for `snapshot_of` to read in the resumed task. In a triggerer it
    is not fired in the first 8 seconds (Airflow's ``[workers] min_heartbeat_interval`` and 3), while Airflow may still
    be told that the deferred process has ended.

    Args:
        image_task_id: The API's id of the image task.
        qwenimage_conn_id: The Airflow connection that holds the API key and the base URL.
        poll_interval: Seconds between the first polls; it grows up to 10 s (see `polling.PollPolicy`).
            The first poll is made about one interval after the start, spread so that many waits are no spike.
        end_time: The deadline in epoch seconds, or None for none. A restarted triggerer keeps it.
        max_consecutive_failures: How many failed reads in a row end the wait.
        try_number: The try of the Airflow task that waits; its event has it as well.
    """

    def __init__(
        self,
        image_task_id: str,
        qwenimage_conn_id: str = DEFAULT_CONN_ID,
        poll_interval: float = polling.DEFAULT_POLL_INTERVAL,
        end_time: float | None = None,
        max_consecutive_failures: int = polling.DEFAULT_MAX_CONSECUTIVE_FAILURES,
        *,
        try_number: int | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Airflow's own has no annotations
        self.image_task_id = image_task_id
        self.qwenimage_conn_id = qwenimage_conn_id
        self.policy = polling.PollPolicy(
            poll_interval=poll_interval, end_time=end_time, max_consecutive_failures=max_consecutive_failures
        )
        self.try_number = try_number
        self._hook: QwenImageAsyncHook | None = None

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class path and arguments that Airflow stores: ids and numbers, never the key."""
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {
                "image_task_id": self.image_task_id,
                "qwenimage_conn_id": self.qwenimage_conn_id,
                "poll_interval": self.policy.poll_interval,
                "end_time": self.policy.end_time,
                "max_consecutive_failures": self.policy.max_consecutive_failures,
                "try_number": self.try_number,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Poll until the end, and fire."""
        from airflow_provider_qwenimage.hooks import QwenImageAsyncHook

        # Only a triggerer gives a trigger its id; `dag.test()` runs it inside the task.
        settled_at = time.monotonic() + (0.0 if self.trigger_id is None else _settling_seconds())
        try:
            async with QwenImageAsyncHook(self.qwenimage_conn_id) as self._hook:
                end = await self._wait(self._hook)
            await asyncio.sleep(settled_at - time.monotonic())
        except asyncio.CancelledError:
            if not _AIRFLOW_TELLS_KILLS:
                self._say_what_stays_paid()
            raise
        yield TriggerEvent(event_of(end, self.image_task_id) | {"try_number": self.try_number})

    async def on_kill(self) -> None:
        """Say what stays paid when the task is marked or cleared while it waits (Airflow 3.3 and later).

        It does nothing else: Airflow also calls this when a trigger only moves to another triggerer.
        """
        self._say_what_stays_paid()

    def _say_what_stays_paid(self) -> None:
        snapshot = self._hook.last_snapshot if self._hook else None
        self.log.warning("%s", what_stays_paid(self.image_task_id, snapshot))

    async def _wait(self, hook: QwenImageAsyncHook) -> polling.Done | polling.GiveUp:
        delay = self.policy.first_delay(time.time())
        try:
            return await hook.follow(self.image_task_id, self.policy, first_delay=delay)
        except ValueError as error:
            unusable = QwenImageError(str(error))
            unusable.permanent = True
            return polling.GiveUp(unusable)


@functools.cache
def _settling_seconds() -> float:
    """Return how long after a deferral Airflow may still be told that the deferred task's process has ended.

    A supervisor can miss the end of its process until its next heartbeat, and the scheduler takes what it says then
    for a crash where the task is queued again already: it would fail a task whose image is drawn and paid.
    """
    heartbeat = conf.getint("workers", "min_heartbeat_interval", fallback=_DEFAULT_HEARTBEAT_SECONDS)
    return float(heartbeat) + _SCHEDULER_SECONDS


def event_of(end: polling.Done | polling.GiveUp, image_task_id: str) -> dict[str, Any]:
    """Return the end of a wait as plain JSON.

    Args:
        end: How the wait ended.
        image_task_id: The API's id of the image task.

    Returns:
        ``status`` ("success" or "error"), ``message``, ``image_task_id``; on success and after a FAILED
        ``snapshot``; on an error also ``error``, the name of its class.
    """
    if isinstance(end, polling.Done):
        message = f"Image task {image_task_id} is {TaskStatus.SUCCESS}."
        return {
            "status": _SUCCESS,
            "message": message,
            "image_task_id": image_task_id,
            "snapshot": end.snapshot.to_data(),
        }
    event: dict[str, Any] = {
        "status": _ERROR,
        "message": str(end.error),
        "image_task_id": image_task_id,
        "error": type(end.error).__name__,
        "permanent": end.error.permanent,
    }
    snapshot = getattr(end.error, "snapshot", None)
    if snapshot is not None:
        event["snapshot"] = snapshot.to_data()
    return event


def snapshot_of(event: object) -> TaskSnapshot:
    """Return the successful end that an event stands for.

    Args:
        event: What the trigger fired, as the resumed task received it.

    Raises:
        QwenImageError: The error that the wait ended with; a `QwenImageContractError` if the event is
            not one of `event_of`'s. Nothing but a whole success counts as one.
    """
    if isinstance(event, dict) and event.get("status") == _SUCCESS:
        snapshot = TaskSnapshot.from_data(event.get("snapshot"))
        if snapshot.status == TaskStatus.SUCCESS:
            return snapshot
    if isinstance(event, dict) and event.get("status") == _ERROR and isinstance(event.get("message"), str):
        raise _error_of(event)
    raise QwenImageContractError(
        f"The task was resumed with an event that this package did not make: {event!r}. Was the triggerer running "
        "another version of it? Install the same version on workers and triggerers, then clear the task."
    )


def _error_of(event: dict[str, Any]) -> QwenImageError:
    error_class = getattr(exceptions, str(event.get("error")), QwenImageError)
    if not (isinstance(error_class, type) and issubclass(error_class, QwenImageError)):
        error_class = QwenImageError
    if issubclass(error_class, QwenImageTaskFailedError) and event.get("snapshot") is not None:
        return task_failure(TaskSnapshot.from_data(event["snapshot"]))
    error: QwenImageError = error_class(event["message"])
    error.permanent = bool(event.get("permanent"))
    return error
