"""The trigger that waits for an image task in the triggerer. It only reads, so running it twice costs nothing."""

from __future__ import annotations

import asyncio
import time
import traceback
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_provider_qwenimage import exceptions
from airflow_provider_qwenimage.airflow_versions import CALLS_TRIGGER_ON_KILL
from airflow_provider_qwenimage.client.connection import DEFAULT_CONN_ID
from airflow_provider_qwenimage.contract import TaskSnapshot, TaskStatus
from airflow_provider_qwenimage.exceptions import (
    QwenImageContractError,
    QwenImageError,
    QwenImageRequestError,
    QwenImageTaskFailedError,
    is_bad_argument,
    without_advice,
)
from airflow_provider_qwenimage.rules import callbacks, polling, wait_defaults
from airflow_provider_qwenimage.rules.snapshots import read_snapshot
from airflow_provider_qwenimage.rules.submissions import what_stays_paid
from airflow_provider_qwenimage.rules.task_ids import printable_id
from airflow_provider_qwenimage.settling import settle
from airflow_provider_qwenimage.text.messages import printable, safe_repr, shorten
from airflow_provider_qwenimage.text.storable import MAX_MESSAGE_CHARACTERS, storable, storable_text

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from airflow_provider_qwenimage.hooks import QwenImageAsyncHook

_SUCCESS, _ERROR = "success", "error"
# Without it, the resumed task need not look up the connection.
_HAS_BOOKS = "has_books"


class QwenImageStatusTrigger(BaseTrigger):
    """Fires once, when an image task ended or the wait for it is over.

    `event_of` makes its event, and `snapshot_of` reads it in the resumed task. In a triggerer it does not fire in the
    first 8 seconds (Airflow's ``[workers] min_heartbeat_interval`` and 3; up to 30 on a machine with more work than
    cores), because Airflow may not know yet that the deferred process ended.

    Args:
        image_task_id: The API's id of the image task.
        qwenimage_conn_id: The Airflow connection that holds the API key and the base URL.
        poll_interval: Seconds between the first polls; it grows up to 10 s (see `polling.PollPolicy`).
            The first poll comes about one interval after the start, spread so that many waits cause no spike.
        end_time: The deadline in epoch seconds, or None for none. A restarted triggerer keeps it.
        max_consecutive_failures: How many failed reads in a row end the wait.
        try_number: The try of the Airflow task that waits. The event repeats it.
        callback: If the API calls back, the digest of the secret, with which the API server checks a callback before it
            wakes the task. The trigger of such a task polls every 30 s only.
    """

    def __init__(
        self,
        image_task_id: str,
        qwenimage_conn_id: str = DEFAULT_CONN_ID,
        poll_interval: float = wait_defaults.DEFAULT_POLL_INTERVAL,
        end_time: float | None = None,
        max_consecutive_failures: int = wait_defaults.DEFAULT_MAX_CONSECUTIVE_FAILURES,
        *,
        try_number: int | None = None,
        callback: str | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Airflow's own has no annotations
        self.image_task_id = image_task_id
        self.qwenimage_conn_id = qwenimage_conn_id
        self.policy = polling.PollPolicy(
            poll_interval=poll_interval, end_time=end_time, max_consecutive_failures=max_consecutive_failures
        )
        self.try_number = try_number
        self.callback = callback
        self._hook: QwenImageAsyncHook | None = None

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class path and the arguments that Airflow stores: ids and numbers, never the key."""
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {
                "image_task_id": self.image_task_id,
                "qwenimage_conn_id": self.qwenimage_conn_id,
                "poll_interval": self.policy.poll_interval,
                "end_time": self.policy.end_time,
                "max_consecutive_failures": self.policy.max_consecutive_failures,
                "try_number": self.try_number,
            }
            # A triggerer with an earlier version of this package knows no such argument.
            | ({} if self.callback is None else {"callback": self.callback}),
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Poll until the end, and fire."""
        started = time.monotonic()
        try:
            event = await self._wait()
            # Only a triggerer gives a trigger its id; `dag.test()` runs it inside the task.
            if self.trigger_id is not None:
                await settle(time.monotonic() - started)
        except asyncio.CancelledError:
            if not CALLS_TRIGGER_ON_KILL:
                self._log_what_stays_paid()
            raise
        yield TriggerEvent(event | {"try_number": self.try_number})

    async def on_kill(self) -> None:
        """Log what stays paid when the task is marked or cleared while it waits (Airflow 3.3 and later).

        It does nothing else: Airflow also calls this when a trigger only moves to another triggerer, and after a
        callback of the API has woken the task.
        """
        self._log_what_stays_paid()

    def _log_what_stays_paid(self) -> None:
        if self.callback is not None:
            # Nothing here tells whether a callback or a user has ended the wait, and a callback is no cause for alarm.
            self.log.info(
                "The wait for image task %s in the triggerer is over: either a callback of the API has woken the "
                "Airflow task, or a user has ended it, and the image task continues at the API and is paid.",
                printable_id(self.image_task_id),
            )
            return
        consumed_credits = self._hook.last_credits if self._hook else None
        self.log.warning("%s", what_stays_paid(self.image_task_id, consumed_credits))

    async def _wait(self) -> dict[str, Any]:
        from airflow_provider_qwenimage.hooks import QwenImageAsyncHook

        policy = self._policy()
        delay = policy.first_delay(time.time())
        try:
            async with QwenImageAsyncHook(self.qwenimage_conn_id) as self._hook:
                end = await self._hook.follow(self.image_task_id, policy, first_delay=delay)
                has_books = self._hook.has_books
            event = event_of(end, self.image_task_id)
            return event | {_HAS_BOOKS: True} if has_books else event
        except Exception as error:  # noqa: BLE001  Airflow would encode the text of what is raised as it is
            return event_of(polling.GiveUp(self._failure(error)), self.image_task_id)

    def _policy(self) -> polling.PollPolicy:
        # Under `dag.test()`, where a trigger has no id, no callback wakes the task.
        if self.callback is None or self.trigger_id is None:
            return self.policy
        return replace(self.policy, poll_interval=max(self.policy.poll_interval, callbacks.POLL_INTERVAL_SECONDS))

    def _failure(self, error: Exception) -> QwenImageError:
        """Return the error of a wait that something other than the API ended."""
        if is_bad_argument(error):
            unusable = QwenImageError(str(error))
            unusable.permanent = True
            return unusable
        frame = traceback.extract_tb(error.__traceback__)[-1]
        return QwenImageError(
            f"The wait for image task {printable_id(self.image_task_id)} failed in the triggerer: "
            f"{type(error).__name__} ({printable(shorten(str(error)))}) at {frame.filename}:{frame.lineno}. "
            "Try again; if it persists, report it to the maintainers of this package."
        )


def event_of(end: polling.Done | polling.GiveUp, image_task_id: str) -> dict[str, Any]:
    """Return the end of a wait as plain JSON: only what the resumed task reads, and every version of Airflow can store.

    Returns:
        ``status`` ("success" or "error"), ``message`` and ``image_task_id``; on success and after a FAILED also
        ``snapshot``; on an error also ``error``, the name of its class, ``advice`` and ``permanent``, and
        ``retry_after`` if it has one.
    """
    image_task_id = printable_id(image_task_id)
    if isinstance(end, polling.Done):
        event: dict[str, Any] = {
            "status": _SUCCESS,
            "message": f"Image task {image_task_id} is {TaskStatus.SUCCESS}.",
            "image_task_id": image_task_id,
            "snapshot": _needed(end.snapshot),
        }
    else:
        event = {
            "status": _ERROR,
            "message": storable_text(without_advice(end.error), MAX_MESSAGE_CHARACTERS),
            "advice": storable_text(end.error.advice, MAX_MESSAGE_CHARACTERS),
            "image_task_id": image_task_id,
            "error": type(end.error).__name__,
            "permanent": end.error.permanent,
        }
        retry_after = getattr(end.error, "retry_after", None)
        if retry_after is not None:
            event["retry_after"] = retry_after
        snapshot = getattr(end.error, "snapshot", None)
        if snapshot is not None:
            event["snapshot"] = _needed(snapshot)
    stored: dict[str, Any] = storable(event)
    return stored


def _needed(snapshot: TaskSnapshot) -> dict[str, Any]:
    """Return the part of a snapshot that the resumed task reads, for `read_snapshot`."""
    needed = replace(
        snapshot,
        error_message=shorten(snapshot.reason, MAX_MESSAGE_CHARACTERS) or None,
        request=snapshot.described_request(),
        extra={},
    )
    return needed.to_data()


def image_task_id_of(event: object) -> str | None:
    """Return the API's id of the image task that an event is about; None if the event does not tell."""
    snapshot = event.get("snapshot") if isinstance(event, dict) else None
    task_id = snapshot.get("task_id") if isinstance(snapshot, dict) else None
    return task_id if isinstance(task_id, str) else None


def event_has_books(event: object) -> bool:
    """Whether the connection of the wait names books."""
    return isinstance(event, dict) and event.get(_HAS_BOOKS) is True


def snapshot_of(event: object) -> TaskSnapshot:
    """Return the successful snapshot of an event.

    Args:
        event: What the resumed task received.

    Raises:
        QwenImageError: The error that the wait ended with; a `QwenImageContractError` if `event_of` did not make the
            event. Nothing but a complete success counts as one.
    """
    if isinstance(event, dict) and event.get("status") == _SUCCESS:
        snapshot = read_snapshot(event.get("snapshot"))
        if snapshot.status == TaskStatus.SUCCESS:
            return snapshot
    if isinstance(event, dict) and event.get("status") == _ERROR and isinstance(event.get("message"), str):
        raise _error_of(event)
    raise QwenImageContractError(
        f"The task was resumed with an event that this package did not make: {shorten(safe_repr(event))}. The "
        "triggerer may run another version of the package. Install the same version on workers and triggerers, then "
        "clear the task."
    )


def _error_of(event: dict[str, Any]) -> QwenImageError:
    error_class: Any = getattr(exceptions, str(event.get("error")), QwenImageError)
    if not (isinstance(error_class, type) and issubclass(error_class, QwenImageError)):
        error_class = QwenImageError
    if issubclass(error_class, QwenImageTaskFailedError) and event.get("snapshot") is not None:
        failure: QwenImageError = error_class(event["message"], snapshot=read_snapshot(event["snapshot"]))
        return failure
    error: QwenImageError = error_class(event["message"])
    # The message of an earlier version ends with its advice.
    error.advice = event["advice"] if isinstance(event.get("advice"), str) else ""
    # An earlier version ended a wait for good if a read was refused.
    error.permanent = bool(event.get("permanent")) and not isinstance(error, QwenImageRequestError)
    retry_after = event.get("retry_after")
    if isinstance(error, QwenImageRequestError) and isinstance(retry_after, int | float):
        error.retry_after = retry_after
    return error
