"""Counts the images of a batch by outcome, and decides whether to submit another and how the batch ends. No I/O."""

from __future__ import annotations

from dataclasses import dataclass, field
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
from airflow_provider_qwenimage.rules.batch_rows import RowStatus
from airflow_provider_qwenimage.text.messages import printable, shorten

_BRIEF_CHARACTERS = 500


@dataclass(frozen=True)
class Limits:
    """The limits of a batch.

    Attributes:
        max_credits: The most credits that it may spend since it was first run or last cleared, or None.
        max_failures: How many images may fail before nothing more is submitted, and the task fails.
    """

    max_credits: float | None = None
    max_failures: int = 0


@dataclass
class BatchTotals:
    """The counts of a batch so far.

    Attributes:
        requests: The images that it requests; rows that share an image count once.
        limits: The limits for credits and failures.
        drawn: Images that this task has drawn and stored, in this try or in an earlier one.
        reused: Images that were stored before the task.
        failures: Images that failed, for whatever reason.
        left: Images that are left unfinished because the batch was ended from outside.
        unknown: How many of `failures` and `left` may have been accepted and paid.
        unfinished: How many of `failures` and `left` are paid, and will be stored by the next try.
        in_flight: Images that are being submitted, drawn, downloaded or stored.
        spent: Credits that the finished image tasks have cost.
        at_risk: Credits that image tasks with an unknown end may have cost.
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
        """Images that were not begun."""
        return self.requests - self.drawn - self.reused - self.failures - self.left - self.in_flight

    def why_not_to_submit(self) -> str | None:
        """Return why nothing more may be submitted, or None if the next image may be."""
        return self._why_not(self.spent + self.at_risk, self.in_flight + 1)

    def why_not_to_submit_again(self, cost: float) -> str | None:
        """Return why an image in flight that has failed may not be submitted again, or None if it may be.

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
        """Count credits that failed images of this task have cost."""
        self.spent += amount

    def store(self, consumed_credits: float | None, *, reused: bool = False, now: bool = True) -> None:
        """Count an image that is stored.

        Args:
            consumed_credits: Its cost, or None if the API did not report it: then the documented price counts.
            reused: Whether it was stored before this task.
            now: Whether this try has drawn it.
        """
        if reused:
            self.reused += 1
            return
        self.drawn += 1
        self.drawn_now += now
        self.spent += CREDITS_PER_IMAGE if consumed_credits is None else consumed_credits

    def leave(self, status: RowStatus) -> None:
        """Count an image that is left unfinished, because the batch was ended from outside.

        Args:
            status: UNFINISHED or UNKNOWN.
        """
        self.left += 1
        self.unfinished += status is RowStatus.UNFINISHED
        self.unknown += status is RowStatus.UNKNOWN

    def fail(self, row: str, error: BaseException, *, paid: bool, earlier: bool = False) -> RowStatus:
        """Count an image that failed.

        Args:
            row: Its row, for messages.
            error: The failure.
            paid: Whether it was submitted, as far as is known.
            earlier: Whether it failed in an earlier try, and not in this one.

        Returns:
            The status of its row.
        """
        permanent = is_permanent(error)
        self.failures += 1
        self._new_failures += not earlier
        self._transient += not permanent
        if self._first_problem is None:
            self._first_problem = f"{row}: {in_brief(error)}"
        if isinstance(error, QwenImageAuthError | QwenImageCreditsError):
            self._refusal = f"the API refuses this account ({in_brief(error)})"
        if isinstance(error, QwenImageTaskFailedError):
            self.spent += error.cost
            return RowStatus.FAILED
        if isinstance(error, QwenImageSubmissionUnknownError):
            self.unknown += 1
            self.at_risk += CREDITS_PER_IMAGE
            return RowStatus.UNKNOWN
        if not paid:
            return RowStatus.FAILED
        self.at_risk += CREDITS_PER_IMAGE
        if permanent:
            return RowStatus.FAILED
        self.unfinished += 1
        return RowStatus.UNFINISHED

    def progress(self, seconds: float) -> dict[str, Any]:
        """Return the progress as plain JSON.

        Args:
            seconds: How long the batch has been drawing.
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
            manifest: The path of the manifest.
            interruption: What ended the batch from outside, if anything did.
        """
        missing = self.requests - self.drawn - self.reused
        is_within_limits = not self.not_submitted and self.failures <= self.limits.max_failures
        if not missing or (is_within_limits and interruption is None):
            return None
        why = printable(shorten(interruption or self.why_not_to_submit() or "", _BRIEF_CHARACTERS))
        counts = [
            (self.failures + self.left - self.unknown - self.unfinished, "failed"),
            (self.unknown, "may be paid, because the answer to the submission was lost"),
            (self.unfinished, "are paid and will be fetched by the next try"),
            (self.not_submitted, f"were not submitted, because {why}"),
        ]
        counted = "; ".join(f"{number} {what}" for number, what in counts if number)
        permanent = interruption is None and not self._transient
        first = f" The first error: {self._first_problem}" if self._first_problem else ""
        return QwenImageBatchError(
            f"{missing} of {self.requests} images are missing: {counted}.{first} {self._advice(permanent=permanent)} "
            f"Every row is listed in {manifest}.",
            permanent=permanent,
        )

    def _advice(self, *, permanent: bool) -> str:
        if not permanent:
            return "The next try, automatic or after a Clear, continues where this one stopped; no image is paid twice."
        advice = "Correct the requests, or raise max_failures or max_credits, and clear this task: stored images are "
        advice += "found again and not paid again."
        if self.unknown:
            advice += (
                " Clearing it also resubmits the images that may be paid; check the credits of your account first."
            )
        return advice


def in_brief(error: BaseException) -> str:
    """Return the message of an error as one short line for a log or another error; the manifest has more of it."""
    return printable(shorten(str(error), _BRIEF_CHARACTERS))
