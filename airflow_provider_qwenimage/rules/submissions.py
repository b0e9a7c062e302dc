"""Decides what a new try of a task does about what an earlier one has submitted. No I/O.

- An image task whose outcome is not known: go back to it.
- An intent without an id: stop, because the submission may have been accepted.
- Nothing, or something that is over and done with: submit.

A user's Clear is told from an automatic retry by the task instance's `max_tries`, which only Clear changes.
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

# The fingerprint of a submission of which nothing more is known than that there was one.
UNREADABLE = "unreadable"
# More than anybody spends on one task.
_MOST_CREDITS = 10**12


@dataclass(frozen=True, kw_only=True)
class Submission:
    """What is remembered of a task's last submission. Plain JSON, without the key and the callback URL.

    Attributes:
        request: What was asked for, as `GenerateRequest.description` tells it.
        fingerprint: The request's fingerprint.
        intended_at: When the intent was written, in ISO 8601.
        try_number: The try that wrote it.
        max_tries: The task instance's, when this was last written. Another one means that the task was cleared since.
        image_task_id: The API's id of the image task, once the answer came.
        finished: Whether the Airflow task has done all that it was to do with it.
        failure: The API's reason, if the image task FAILED.
        refused: Whether it FAILED because of the content policy.
        reported: Whether the user was told that the submission may have been accepted, which makes a Clear consent.
        missed: Whether a cleared task has gone back to the image task in vain.
        counted: Whether its images and credits are in the metrics.
        spent: Credits that this task spent before, since it was first run or last cleared.
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
        """Read what `to_json` wrote; None if it is something else, be it by hand or by another version."""
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
        """Return it with texts of a record that others can write, in a shared folder, as logs and errors can hold."""
        return replace(
            self,
            intended_at=_line(self.intended_at),
            image_task_id=None if self.image_task_id is None else printable_id(self.image_task_id),
            failure=None if self.failure is None else _line(self.failure),
        )

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON that every store takes."""
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
    # In Python a truth value is an integer as well.
    return isinstance(value, kind) and (not isinstance(value, bool) or bool in kind)


@dataclass(frozen=True)
class Submit:
    """Submit the request. `spent` is what this task has spent before; `notice` is worth a warning, if there is one."""

    spent: float = 0.0
    notice: str | None = None


@dataclass(frozen=True)
class GoBack:
    """Go back to a submitted image task; nothing is paid for that."""

    image_task_id: str
    request: GenerateRequest
    notice: str


@dataclass(frozen=True)
class Stop:
    """End the task with an error."""

    error: QwenImageError


Step: TypeAlias = Submit | GoBack | Stop


def next_step(record: Submission | None, *, fingerprint: str, max_tries: int) -> Step:
    """Return what a new try does.

    Args:
        record: What is remembered of the last submission.
        fingerprint: That of the request which this try would submit.
        max_tries: The task instance's now.
    """
    # Not only a higher one: where a DAG has fewer retries than before, a Clear lowers it.
    cleared = record is not None and max_tries != record.max_tries
    if record is None or (cleared and record.finished):
        return Submit()
    if record.failure is not None:
        return _after_failure(record, record.failure, cleared=cleared)
    if record.image_task_id is None:
        return _after_intent(record, cleared=cleared)
    if not cleared:
        return _go_back(record, fingerprint)
    if record.missed or record.fingerprint != fingerprint:
        reason = "the image could not be had" if record.missed else "the request has changed since"
        return Submit(
            notice=f"This task was cleared, and {reason}: it submits anew. The image task before, "
            f"{record.image_task_id}, may be paid; a QwenImageStatusSensor with that id asks after it."
        )
    return _go_back(record, fingerprint)


def _after_failure(record: Submission, reason: str, *, cleared: bool) -> Step:
    if cleared:
        return Submit()
    return Stop(QwenImageContentPolicyError(reason)) if record.refused else Submit(record.spent)


def what_stays_paid(image_task_id: str, consumed_credits: float | None) -> str:
    """Return what to tell the user when a wait is ended from outside.

    Args:
        image_task_id: The API's id of the image task.
        consumed_credits: What the API said last that it cost, if it has.
    """
    paid = f"{CREDITS_PER_IMAGE} credits, as documented"
    if consumed_credits is not None:
        paid = f"{consumed_credits:g} credits, as the API said last"
    return (
        f"Airflow ends this wait (or moves it). Image task {printable_id(image_task_id)} goes on: the API cannot "
        f"cancel it, and it stays paid ({paid}). To get the image, clear this task, or wait for that id with a "
        "QwenImageStatusSensor."
    )


def _after_intent(record: Submission, *, cleared: bool) -> Step:
    if record.reported and cleared:
        return Submit(
            notice=f"This task was cleared after a submission whose answer was lost (try {record.try_number}, "
            f"{record.intended_at}): it submits again."
        )
    story = (
        f"Try {record.try_number} of this task ended while it submitted the request ({record.intended_at}), before an "
        "answer was written down."
    )
    if record.fingerprint == UNREADABLE:
        story = "An earlier try of this task has written down a submission that cannot be read."
    return Stop(
        QwenImageSubmissionUnknownError(
            f"{story} It may have been accepted and paid ({CREDITS_PER_IMAGE} credits, as "
            "documented), and the API has no way to look it up, so it is not sent again by itself. Compare the credits "
            "on your account, then clear the task to submit it again."
        )
    )


def _go_back(record: Submission, fingerprint: str) -> GoBack:
    notice = (
        f"Going back to image task {record.image_task_id}, submitted by try {record.try_number} of this task "
        f"({record.intended_at}). Nothing is submitted or paid again."
    )
    if record.fingerprint != fingerprint:
        notice += " This try asks for something else; what was submitted counts."
    return GoBack(str(record.image_task_id), GenerateRequest(**record.request), notice)
