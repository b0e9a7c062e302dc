"""Counts what became of the images of a batch, and decides whether another is submitted and how the batch ends. No I/O.

The status of a row is the API's SUCCESS or FAILED where there is one; a row that has none is UNKNOWN (its submission
may have been accepted), UNFINISHED (it is paid, and its image is not stored yet) or NOT_SUBMITTED; and, while the batch
runs, IN_PROGRESS.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from airflow_provider_qwenimage.contract import CREDITS_PER_IMAGE
from airflow_provider_qwenimage.exceptions import (
    QwenImageAuthError,
    QwenImageBatchError,
    QwenImageCreditsError,
    QwenImageSubmissionUnknownError,
    QwenImageTaskFailedError,
    is_permanent,
)
from airflow_provider_qwenimage.text.messages import printable, shorten
from airflow_provider_qwenimage.text.storable import MAX_MESSAGE_CHARACTERS, storable_text

_BRIEF_CHARACTERS = 500


class RowStatus(StrEnum):
    """What became of a row."""

    SUCCESS = "SUCCESS"
    FAILED = "FAILED"
    UNKNOWN = "UNKNOWN"
    UNFINISHED = "UNFINISHED"
    NOT_SUBMITTED = "NOT_SUBMITTED"
    IN_PROGRESS = "IN_PROGRESS"


@dataclass(frozen=True)
class Limits:
    """What a batch may cost.

    Attributes:
        max_credits: The most credits that it may spend since it was first run or last cleared, or None.
        max_failures: How many images may fail before nothing more is submitted, and the task fails.
    """

    max_credits: float | None = None
    max_failures: int = 0


@dataclass
class BatchTotals:
    """The state of a batch.

    Attributes:
        requests: How many images it asks for; rows that share one count once.
        limits: What it may cost.
        drawn: Images that this task has drawn and stored, in this try or in an earlier one.
        reused: Images that stood in storage before the task.
        failures: Images that could not be had, for whatever reason.
        left: Images that are left behind because the batch was ended from outside.
        unknown: How many of these two may have been accepted and paid.
        unfinished: How many of these two are paid, and can still be had.
        in_flight: Images that are being submitted, drawn, downloaded or stored.
        spent: Credits that the finished image tasks have cost.
        at_risk: Credits that those may have cost of which nothing more is known.
        drawn_now: How many of `drawn` this try has drawn.
    """

    requests: int
    limits: Limits = field(default_factory=Limits)
    drawn: int = 0
    reused: int = 0
    failures: int = 0
    left: int = 0
    unknown: int = 0
    unfinished: int = 0
    in_flight: int = 0
    spent: float = 0
    at_risk: float = 0
    drawn_now: int = 0
    _new_failures: int = 0
    _transient: int = 0
    _refusal: str | None = None
    _first_problem: str | None = None

    @property
    def not_submitted(self) -> int:
        """Images of which nothing was begun."""
        return self.requests - self.drawn - self.reused - self.failures - self.left - self.in_flight

    def why_not_to_submit(self) -> str | None:
        """Return why nothing more is submitted, or None if the next image may be."""
        return self._why_not(self.spent + self.at_risk, self.in_flight + 1)

    def why_not_to_submit_again(self, cost: float) -> str | None:
        """Return why an image under way that has failed is not submitted once more, or None if it may be.

        Args:
            cost: Credits that the failure cost.
        """
        return self._why_not(self.spent + self.at_risk + cost, self.in_flight)

    def _why_not(self, spent: float, images: int) -> str | None:
        if self._refusal is not None:
            return self._refusal
        if self._new_failures > self.limits.max_failures:
            return f"{self._new_failures} failed, and max_failures is {self.limits.max_failures}"
        limit = self.limits.max_credits
        if limit is not None and spent + CREDITS_PER_IMAGE * images > limit:
            return (
                f"max_credits is {limit:g}, {spent:g} are spent, and an image costs {CREDITS_PER_IMAGE} (as documented)"
            )
        return None

    def begin(self) -> None:
        """Count an image that is under way."""
        self.in_flight += 1

    def end(self) -> None:
        """Count an image that is no longer under way."""
        self.in_flight -= 1

    def spend(self, amount: float) -> None:
        """Count credits that this task has spent on images that failed."""
        self.spent += amount

    def store(self, consumed_credits: float | None, *, reused: bool = False, now: bool = True) -> None:
        """Note that an image is stored.

        Args:
            consumed_credits: What it cost, or None where the API did not say: then the documented price counts.
            reused: Whether it stood there before this task.
            now: Whether this try has drawn it.
        """
        if reused:
            self.reused += 1
            return
        self.drawn += 1
        self.drawn_now += now
        self.spent += CREDITS_PER_IMAGE if consumed_credits is None else consumed_credits

    def leave(self, status: RowStatus) -> None:
        """Note that an image is left behind, because the batch is ended from outside.

        Args:
            status: UNFINISHED or UNKNOWN.
        """
        self.left += 1
        self.unfinished += status is RowStatus.UNFINISHED
        self.unknown += status is RowStatus.UNKNOWN

    def fail(self, where: str, error: BaseException, *, paid: bool, earlier: bool = False) -> RowStatus:
        """Note that an image could not be had.

        Args:
            where: Its row, for messages.
            error: Why.
            paid: Whether it was submitted, as far as is known.
            earlier: Whether this is about a submission of an earlier try, and no failure of this one.

        Returns:
            What that makes of its row.
        """
        self.failures += 1
        self._new_failures += not earlier
        if self._first_problem is None:
            self._first_problem = f"{where}: {in_brief(error)}"
        permanent = is_permanent(error)
        self._transient += not permanent
        if isinstance(error, QwenImageAuthError | QwenImageCreditsError):
            self._refusal = f"the API refuses this account ({in_brief(error)})"
        if isinstance(error, QwenImageTaskFailedError):
            self.spent += error.cost
            return RowStatus.FAILED
        if isinstance(error, QwenImageSubmissionUnknownError):
            self.unknown += 1
            self.at_risk += CREDITS_PER_IMAGE
            return RowStatus.UNKNOWN
        if paid:
            self.at_risk += CREDITS_PER_IMAGE
        if paid and not permanent:
            self.unfinished += 1
            return RowStatus.UNFINISHED
        return RowStatus.FAILED

    def progress(self, seconds: float) -> dict[str, Any]:
        """Return where the batch stands, as plain JSON.

        Args:
            seconds: How long it has been drawing.
        """
        rate = self.drawn_now / seconds if seconds > 0 else 0.0
        left = self.in_flight + (0 if self.why_not_to_submit() else self.not_submitted)
        return {
            "requests": self.requests,
            "done": self.drawn + self.reused,
            "reused": self.reused,
            "failed": self.failures,
            "in_flight": self.in_flight,
            "consumed_credits": self.spent,
            "images_per_second": round(rate, 3),
            "seconds_left": round(left / rate, 1) if rate else None,
        }

    def problem(self, manifest: str, interruption: str | None = None) -> QwenImageBatchError | None:
        """Return the error that the batch ends with, or None if it ends well.

        Args:
            manifest: Where every row is listed.
            interruption: What ended the batch from outside, if anything did.
        """
        missing = self.requests - self.drawn - self.reused
        if interruption is None and not self.not_submitted and self.failures <= self.limits.max_failures:
            return None
        if not missing:
            return None
        why = printable(shorten(interruption or self.why_not_to_submit() or "", _BRIEF_CHARACTERS))
        story = [
            (self.failures + self.left - self.unknown - self.unfinished, "failed"),
            (self.unknown, "may be paid, because the answer to the submission was lost"),
            (self.unfinished, "are paid, and can still be had"),
            (self.not_submitted, f"were not submitted, because {why}"),
        ]
        told = "; ".join(f"{number} {what}" for number, what in story if number)
        permanent = interruption is None and not self._transient
        first = f" The first: {self._first_problem}" if self._first_problem else ""
        return QwenImageBatchError(
            f"{missing} of {self.requests} images are missing: {told}.{first} {self._advice(permanent=permanent)} "
            f"Every row is listed in {manifest}.",
            permanent=permanent,
        )

    def _advice(self, *, permanent: bool) -> str:
        if not permanent:
            return "The next try, automatic or after a Clear, goes on where this one stopped; no image is paid twice."
        advice = "Correct the requests, or raise max_failures or max_credits, and clear this task: what is stored is "
        advice += "found again and not paid again."
        if self.unknown:
            advice += " Clearing it also submits again what may be paid; compare the credits on your account first."
        return advice


def in_brief(error: BaseException) -> str:
    """Return what an error says as one line for a log or for another error; the manifest has more of it."""
    return printable(shorten(str(error), _BRIEF_CHARACTERS))


def row_error(error: BaseException) -> dict[str, Any]:
    """Return what a row of the manifest tells of an error."""
    return {"error": type(error).__name__, "message": storable_text(str(error), MAX_MESSAGE_CHARACTERS)}


def manifest_name(map_index: int | None) -> str:
    """Return the name of a batch's manifest.

    Args:
        map_index: The task's; -1 or None where it is not mapped.
    """
    return "manifest.jsonl" if map_index is None or map_index < 0 else f"manifest-{map_index}.jsonl"


def rows_name(writer: str) -> str:
    """Return the name of the hidden file that lists a batch's rows while it runs.

    Args:
        writer: Which Airflow task tells them; see `storage.writer_of`.
    """
    return f".rows-{writer}.jsonl"


def manifest_row(
    number: int, request: Mapping[str, Any], outcome: Mapping[str, Any] | None, writer: str
) -> dict[str, Any]:
    """Return a row of the manifest.

    Args:
        number: The row, counted from 1.
        request: The fields that describe the image.
        outcome: What became of it, if anything did.
        writer: Which Airflow task tells it; see `storage.writer_of`.
    """
    return {"row": number, "status": str(RowStatus.NOT_SUBMITTED), **request, **(outcome or {}), "writer": writer}
