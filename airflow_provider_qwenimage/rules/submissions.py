"""Decides what a task does about the submissions that are recorded for its image. No I/O.

Three facts are recorded about a submission, and none of them is ever changed: the intent before it is sent, the API's
id of the image task after it, and its end.

- The image task has not ended: resume it, whoever submitted it.
- An intent has no id: wait for it while its answer may still come; then stop, because it may be paid.
- There is no submission, or the last one has ended: submit.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import pendulum

from airflow_provider_qwenimage.contract import CREDITS_PER_IMAGE
from airflow_provider_qwenimage.exceptions import QwenImageContentPolicyError, QwenImageSubmissionUnknownError
from airflow_provider_qwenimage.rules.image_identity import ImageIdentity
from airflow_provider_qwenimage.rules.submission_facts import End, EndKind, Submission
from airflow_provider_qwenimage.rules.task_ids import printable_id
from airflow_provider_qwenimage.rules.tries import Try
from airflow_provider_qwenimage.text.messages import shown_credits

_YEAR_FIRST = re.compile(r"\d{4}-", re.ASCII)
# How often a submission may be answered by a plain code 500, which the documentation says to try again.
MOST_SERVER_ERRORS = 2


@dataclass(frozen=True)
class Submit:
    """Submit the request.

    Attributes:
        spent: Credits that earlier submissions of this task have cost.
        charged: What the last of them has cost, if it cost anything; see `prices.assumed_price`.
        server_errors: How many submissions of this task were answered by code 500, so that each may be paid.
        notice: Logged as a warning.
        gives_up: Whether the last submission is given up, because the user cleared the task.
    """

    spent: float = 0.0
    charged: float = 0.0
    server_errors: int = 0
    notice: str | None = None
    gives_up: bool = False

    @property
    def at_risk(self) -> float:
        """Credits that earlier submissions of this task may have cost."""
        return float(self.server_errors * CREDITS_PER_IMAGE)


@dataclass(frozen=True)
class Resume:
    """Resume a submitted image task, which costs nothing."""

    submission: Submission
    is_own: bool
    notice: str

    @property
    def image_task_id(self) -> str:
        """The API's id of the image task."""
        return str(self.submission.image_task_id)


@dataclass(frozen=True)
class LookAgain:
    """Look again after some seconds: the answer to another process's submission may be on its way."""

    seconds: float
    notice: str


@dataclass(frozen=True)
class Stop:
    """End the task with an error; `asks_for_consent` if a Clear after it means that the user wants to submit again."""

    error: Exception
    asks_for_consent: bool = False


Step: TypeAlias = Submit | Resume | LookAgain | Stop


@dataclass(frozen=True, kw_only=True)
class Asking:
    """Who asks for an image, and for which.

    Attributes:
        identity: The image.
        made_in: The try of the Airflow task.
        instance: The description of the Airflow task; see `made_by.description_of`.
        overwrite: Whether it wants a new image.
        answer_seconds: How long the answer to a submission may take.
        now: Epoch seconds.
    """

    identity: ImageIdentity
    made_in: Try
    instance: Mapping[str, Any] = field(default_factory=dict)
    overwrite: bool = False
    answer_seconds: float = 0.0
    now: float = 0.0


def next_step(history: Sequence[Submission], asking: Asking, is_own: Callable[[Submission], bool]) -> Step:
    """Return what a task does about the submissions of an image.

    Args:
        history: They, the last one at the end.
        asking: Who asks.
        is_own: Whether a submission was made by the Airflow task that asks.
    """
    if not history:
        return Submit()
    last = history[-1]
    own = [submission for submission in history if is_own(submission)]
    costs = _costs(own, asking.made_in)
    again = Submit(
        spent=sum(costs),
        charged=next(filter(None, reversed(costs)), 0.0),
        server_errors=_server_errors(own, asking.made_in),
    )
    if last.end is not None:
        return _after_end(last, again, asking, is_own=is_own(last))
    if last.image_task_id is None:
        return _after_intent(last, again, asking, is_own=is_own(last))
    return _after_id(last, again, asking, is_own=is_own(last))


def combined(first: Submit, second: Submit) -> Submit:
    """Return what to do about two records of the same submissions."""
    return Submit(
        spent=max(first.spent, second.spent),
        charged=first.charged or second.charged,
        server_errors=max(first.server_errors, second.server_errors),
        notice=first.notice or second.notice,
        gives_up=first.gives_up or second.gives_up,
    )


def _costs(own: Sequence[Submission], made_in: Try) -> list[float]:
    """Return what each submission of a task has cost that ended without an image, since it was last cleared."""
    return [
        submission.spent_before + (submission.end.consumed_credits if submission.end else 0.0)
        for submission in own
        if not made_in.was_cleared_since((submission.end or submission.intent).made_in)
    ]


def _server_errors(own: Sequence[Submission], made_in: Try) -> int:
    ends = (submission.end for submission in own)
    return sum(
        end is not None and end.kind is EndKind.SERVER_ERROR and not made_in.was_cleared_since(end.made_in)
        for end in ends
    )


def _after_end(last: Submission, again: Submit, asking: Asking, *, is_own: bool) -> Step:
    end = last.end
    if end is None or not is_own or _is_cleared_since(end, asking.made_in):
        return again
    if end.kind is EndKind.REFUSED:
        return Stop(QwenImageContentPolicyError(end.reason))
    if end.kind is EndKind.DONE and last.image_task_id is not None:
        return _resume(last, asking, is_own=True)
    if again.server_errors >= MOST_SERVER_ERRORS:
        # After the last of them, Airflow has not retried the task by itself.
        if asking.made_in.was_cleared_since(end.made_in, ended_for_good=True):
            return Submit()
        return Stop(too_many_server_errors(again.server_errors))
    return again


def _is_cleared_since(end: End, made_in: Try) -> bool:
    # After any other end, Airflow may have retried the task by itself.
    is_final = end.kind in (EndKind.REFUSED, EndKind.DONE)
    return made_in.was_cleared_since(end.made_in, ended_for_good=is_final)


def _after_id(last: Submission, again: Submit, asking: Asking, *, is_own: bool) -> Step:
    is_changed = last.intent.fingerprint != asking.identity.fingerprint
    earlier = f"The earlier image task, {last.image_task_id}, may be paid; to get its image, wait for that id with a "
    earlier += "QwenImageStatusSensor."
    if not is_own and is_changed:
        # Only a name that the user has chosen can stand for two requests.
        if not asking.overwrite:
            return Stop(_name_is_taken(last, asking))
        return replace(again, notice=f"overwrite=True: this task submits a new image. {earlier}", gives_up=True)
    cannot_be_fetched = last.missed is not None and asking.made_in.was_cleared_since(last.missed)
    is_cleared = is_own and asking.made_in.was_cleared_since(last.intent.made_in)
    if cannot_be_fetched or (is_cleared and is_changed):
        reason = "its image could not be fetched" if cannot_be_fetched else "the request has changed since"
        notice = f"This task was cleared, and {reason}: it submits a new image. {earlier}"
        return replace(again, notice=notice, gives_up=True)
    return _resume(last, asking, is_own=is_own)


def _after_intent(last: Submission, again: Submit, asking: Asking, *, is_own: bool) -> Step:
    if last.reported is not None and asking.made_in.was_cleared_since(last.reported, ended_for_good=True):
        notice = f"This task was cleared after a submission whose response was lost ({_when(last)}): it submits again."
        return replace(again, notice=notice, gives_up=True)
    seconds = _age_left(last, asking)
    if seconds > 0:
        return LookAgain(
            seconds, f"{_who(last, is_own=is_own)} is submitting this image; its answer is awaited for {seconds:.0f} s."
        )
    return Stop(_unknown(last, is_own=is_own), asks_for_consent=True)


def _age_left(last: Submission, asking: Asking) -> float:
    """Return for how many seconds the answer to a submission may still come."""
    if not _YEAR_FIRST.match(last.intent.intended_at):
        # pendulum reads a time of day, or "now", as one of today.
        return 0.0
    try:
        intended_at = pendulum.parse(last.intent.intended_at)
        began = intended_at.timestamp() if isinstance(intended_at, pendulum.DateTime) else 0.0
    except ValueError:
        return 0.0
    # Clocks of other hosts differ: at most the whole time is waited, and never for an intent from the future.
    left = began + asking.answer_seconds - asking.now
    return left if left <= asking.answer_seconds + 1 else 0.0


def _unknown(last: Submission, *, is_own: bool) -> QwenImageSubmissionUnknownError:
    number, intended_at = last.intent.made_in.number, last.intent.intended_at
    hint = ""
    if not last.intent.is_readable:
        cause = "The record of an earlier submission of this image cannot be read."
    elif is_own:
        cause = (
            f"Try {number} of this task ended while it submitted the request ({intended_at}), before a response was "
        )
        cause += "stored."
        hint = (
            f' If the log of try {number} has a line that begins with "Submitted image task", get the image with a '
            "QwenImageStatusSensor for that id instead."
        )
    else:
        cause = f"{_who(last, is_own=False)} submitted this image at {intended_at}, and no response is stored."
    return QwenImageSubmissionUnknownError(
        f"{cause} It may have been accepted and paid ({CREDITS_PER_IMAGE} credits, as documented), and the API has "
        "no way to look it up, so it is not sent again automatically. Compare the credits on your account, then clear "
        f"the task to submit it again.{hint}"
    )


def too_many_server_errors(number: int) -> QwenImageSubmissionUnknownError:
    """Return the error for a submission that was answered by a plain code 500 as often as it may be."""
    return QwenImageSubmissionUnknownError(
        f"The API answered {number} submissions of this image with code 500. Each may have been accepted and paid "
        f"({number * CREDITS_PER_IMAGE} credits at most, as documented), so it is not sent again automatically. "
        "Compare the credits on your account, then clear the task to submit it again."
    )


def _name_is_taken(last: Submission, asking: Asking) -> ValueError:
    return ValueError(
        f"image_name is {asking.identity.stem!r}, under which {_who(last, is_own=False)} has submitted another request "
        f"(image task {last.image_task_id}). Nothing was submitted. Choose another name, or set overwrite=True to "
        "replace that image."
    )


def _resume(last: Submission, asking: Asking, *, is_own: bool) -> Resume:
    by = f"try {last.intent.made_in.number} of this task" if is_own else _who(last, is_own=False)
    notice = (
        f"Resuming image task {last.image_task_id}, submitted by {by} ({last.intent.intended_at}). Nothing is "
        "submitted or paid again."
    )
    if last.intent.fingerprint != asking.identity.fingerprint:
        notice += " The request has changed since; the submitted one counts."
    return Resume(last, is_own, notice)


def _when(last: Submission) -> str:
    return f"try {last.intent.made_in.number}, {last.intent.intended_at}"


def _who(last: Submission, *, is_own: bool) -> str:
    """Return the name of the task that made a submission, for messages."""
    if is_own:
        return f"Try {last.intent.made_in.number} of this task"
    by = last.intent.by
    task = f"task {by.get('task_id', '?')} of DAG {by.get('dag_id', '?')}, run {by.get('run_id', '?')}"
    map_index = by.get("map_index", -1)
    return task if map_index in (-1, None) else f"{task}, map index {map_index}"


def what_stays_paid(image_task_id: str, consumed_credits: float | None) -> str:
    """Return the message for a wait that is ended from outside.

    Args:
        image_task_id: The API's id of the image task.
        consumed_credits: The cost that the API last reported, if any.
    """
    paid = f"{CREDITS_PER_IMAGE} credits, as documented"
    if consumed_credits is not None:
        paid = f"{shown_credits(consumed_credits)} credits, as the API last reported"
    return (
        f"Airflow ends this wait (or moves it). Image task {printable_id(image_task_id)} goes on: the API cannot "
        f"cancel it, and it stays paid ({paid}). To get the image, clear this task, or wait for that id with a "
        "QwenImageStatusSensor."
    )
