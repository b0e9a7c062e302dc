"""Decides what a new try of a task does about the submission of an earlier one. No I/O.

- The outcome of an image task is unknown: resume it.
- An intent has no id: stop, because the submission may have been accepted.
- There is no submission, or it has ended: submit.

The task instance's `max_tries` distinguishes a user's Clear, which alone changes it, from an automatic retry.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, TypeAlias

from airflow_provider_qwenimage.contract import CREDITS_PER_IMAGE, GenerateRequest
from airflow_provider_qwenimage.exceptions import (
    QwenImageContentPolicyError,
    QwenImageError,
    QwenImageSubmissionUnknownError,
)
from airflow_provider_qwenimage.rules.task_ids import is_usable, printable_id
from airflow_provider_qwenimage.text.messages import printable, shorten
from airflow_provider_qwenimage.text.storable import MAX_MESSAGE_CHARACTERS, storable

# The fingerprint of a submission whose record cannot be read.
UNREADABLE = "unreadable"
# Nobody spends more on one task.
_MOST_CREDITS = 10**12


@dataclass(frozen=True, kw_only=True)
class Submission:
    """The record of a task's last submission. Plain JSON, without the key and the callback URL.

    Attributes:
        request: The requested image, as in `GenerateRequest.description`.
        fingerprint: The request's fingerprint.
        intended_at: When the intent was written, in ISO 8601.
        try_number: The try that wrote it.
        max_tries: That of the task instance when this was last written. If it differs now, the task was cleared.
        image_task_id: The API's id of the image task, once the API has answered.
        finished: Whether the Airflow task has finished with it.
        failure: The API's reason, if the image task FAILED.
        refused: Whether it FAILED because of the content policy.
        reported: Whether an error reported that the submission may have been accepted, so that a Clear is consent.
        missed: Whether a cleared task has resumed the image task and failed.
        counted: Whether its images and credits are in the metrics.
        spent: Credits of earlier submissions of this task, since its first run or last Clear.
    """

    request: Mapping[str, Any]
    fingerprint: str
    intended_at: str
    try_number: int
    max_tries: int
    image_task_id: str | None = None
    finished: bool = False
    failure: str | None = None
    refused: bool = False
    reported: bool = False
    missed: bool = False
    counted: bool = False
    spent: float = 0.0

    @classmethod
    def from_json(cls, value: object) -> Submission | None:
        """Read the result of `to_json`; None for anything else, such as a record of another version."""
        if not isinstance(value, Mapping):
            return None
        known = {field.name for field in fields(cls)}
        parts = {name: part for name, part in value.items() if name in known}
        if not all(_is_of_kind(part, _KINDS[name]) for name, part in parts.items()):
            return None
        task_id = parts.get("image_task_id")
        # False for NaN as well, which no limit would ever stop.
        if not 0 <= parts.get("spent", 0) <= _MOST_CREDITS or not (task_id is None or is_usable(task_id)):
            return None
        try:
            record = cls(**parts)
            if record.image_task_id is not None:
                GenerateRequest(**record.request)
        except (TypeError, ValueError):
            return None
        return record._fit_for_messages()

    def _fit_for_messages(self) -> Submission:
        """Return it with texts that fit into logs and errors: others can write to a shared folder."""
        return replace(
            self,
            intended_at=_line(self.intended_at),
            image_task_id=None if self.image_task_id is None else printable_id(self.image_task_id),
            failure=None if self.failure is None else _line(self.failure),
        )

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON that every store accepts."""
        record: dict[str, Any] = storable(asdict(self) | {"request": dict(self.request)})
        return record


_KINDS: Mapping[str, tuple[type, ...]] = {
    "request": (Mapping,),
    "fingerprint": (str,),
    "intended_at": (str,),
    "try_number": (int,),
    "max_tries": (int,),
    "image_task_id": (str, type(None)),
    "finished": (bool,),
    "failure": (str, type(None)),
    "refused": (bool,),
    "reported": (bool,),
    "missed": (bool,),
    "counted": (bool,),
    "spent": (int, float),
}


def _line(text: str) -> str:
    return printable(shorten(text, MAX_MESSAGE_CHARACTERS))


def _is_of_kind(value: object, kind: tuple[type, ...]) -> bool:
    # In Python a bool is an int as well.
    return isinstance(value, kind) and (not isinstance(value, bool) or bool in kind)


@dataclass(frozen=True)
class Submit:
    """Submit the request. `spent` is the credits that this task has spent before; a `notice` is logged as a warning."""

    spent: float = 0.0
    notice: str | None = None


@dataclass(frozen=True)
class Resume:
    """Resume a submitted image task, which costs nothing."""

    image_task_id: str
    request: GenerateRequest
    notice: str


@dataclass(frozen=True)
class Stop:
    """End the task with an error."""

    error: QwenImageError


Step: TypeAlias = Submit | Resume | Stop


def next_step(record: Submission | None, *, fingerprint: str, max_tries: int) -> Step:
    """Return what a new try does.

    Args:
        record: The record of the last submission.
        fingerprint: The fingerprint of the request of this try.
        max_tries: The current one of the task instance.
    """
    # It may be lower as well: if a DAG has fewer retries than before, a Clear lowers it.
    cleared = record is not None and max_tries != record.max_tries
    if record is None or (cleared and record.finished):
        return Submit()
    if record.failure is not None:
        return _after_failure(record, record.failure, cleared=cleared)
    if record.image_task_id is None:
        return _after_intent(record, cleared=cleared)
    if cleared and (record.missed or record.fingerprint != fingerprint):
        reason = "its image could not be fetched" if record.missed else "the request has changed since"
        return Submit(
            notice=f"This task was cleared, and {reason}: it submits a new image. The earlier image task, "
            f"{record.image_task_id}, may be paid; to get its image, wait for that id with a QwenImageStatusSensor."
        )
    return _resume(record, fingerprint)


def _after_failure(record: Submission, reason: str, *, cleared: bool) -> Step:
    if cleared:
        return Submit()
    return Stop(QwenImageContentPolicyError(reason)) if record.refused else Submit(record.spent)


def what_stays_paid(image_task_id: str, consumed_credits: float | None) -> str:
    """Return the message for a wait that is ended from outside.

    Args:
        image_task_id: The API's id of the image task.
        consumed_credits: The cost that the API last reported, if any.
    """
    paid = f"{CREDITS_PER_IMAGE} credits, as documented"
    if consumed_credits is not None:
        paid = f"{consumed_credits:g} credits, as the API last reported"
    return (
        f"Airflow ends this wait (or moves it). Image task {printable_id(image_task_id)} goes on: the API cannot "
        f"cancel it, and it stays paid ({paid}). To get the image, clear this task, or wait for that id with a "
        "QwenImageStatusSensor."
    )


def _after_intent(record: Submission, *, cleared: bool) -> Step:
    if record.reported and cleared:
        return Submit(
            notice=f"This task was cleared after a submission whose response was lost (try {record.try_number}, "
            f"{record.intended_at}): it submits again."
        )
    cause = (
        f"Try {record.try_number} of this task ended while it submitted the request ({record.intended_at}), before a "
        "response was stored."
    )
    if record.fingerprint == UNREADABLE:
        cause = "An earlier try of this task stored the record of a submission that cannot be read."
    return Stop(
        QwenImageSubmissionUnknownError(
            f"{cause} It may have been accepted and paid ({CREDITS_PER_IMAGE} credits, as documented), and the API has "
            "no way to look it up, so it is not sent again automatically. Compare the credits on your account, then "
            "clear the task to submit it again."
        )
    )


def _resume(record: Submission, fingerprint: str) -> Resume:
    notice = (
        f"Resuming image task {record.image_task_id}, submitted by try {record.try_number} of this task "
        f"({record.intended_at}). Nothing is submitted or paid again."
    )
    if record.fingerprint != fingerprint:
        notice += " The request has changed since; the submitted one counts."
    return Resume(str(record.image_task_id), GenerateRequest(**record.request), notice)
