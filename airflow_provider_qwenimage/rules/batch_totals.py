"""Counts the images of a batch by outcome, and decides whether to submit another and how the batch ends. No I/O."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from airflow_provider_qwenimage.exceptions import (
    QwenImageAuthError,
    QwenImageBatchError,
    QwenImageBudgetError,
    QwenImageCreditsError,
    QwenImageError,
    QwenImageTaskFailedError,
    without_advice,
)
from airflow_provider_qwenimage.rules.batch_endings import Ending, Missing, brief, why_missing
from airflow_provider_qwenimage.rules.batch_rows import RowNumbers, RowStatus
from airflow_provider_qwenimage.rules.prices import assumed_price, described_price, is_within
from airflow_provider_qwenimage.text.messages import shown_credits

_STATUSES = {Missing.UNKNOWN: RowStatus.UNKNOWN, Missing.UNFINISHED: RowStatus.UNFINISHED}


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
        conn_id: The id of the Airflow connection, for messages.
        drawn: Images that this task has drawn and stored, in this try or in an earlier one.
        reused: Images that were stored before the task.
        failures: Images that failed, for whatever reason.
        left: Images that are left unfinished because the batch was ended from outside.
        in_flight: Images that are being submitted, drawn, downloaded or stored.
        spent: Credits that the API has charged, as it reported them; also for images that are not stored yet.
        at_risk: Credits that may have been charged as well: for lost submissions, and for paid images that are not
            stored yet and whose price is not known.
        price: What the next image is assumed to cost, and each one in flight.
        drawn_now: How many of `drawn` this try has drawn.
        unrecorded: The rows, counted from 1, whose image tasks were accepted and could not be recorded, with the ids
            of these. Rows whose images are stored are not listed.
    """

    requests: int
    limits: Limits = field(default_factory=Limits)
    conn_id: str = ""
    drawn: int = 0
    reused: int = 0
    failures: int = 0
    left: int = 0
    in_flight: int = 0
    spent: float = 0
    at_risk: float = 0
    price: float = field(default_factory=lambda: assumed_price(None))
    drawn_now: int = 0
    unrecorded: list[tuple[int, str]] = field(default_factory=list)
    # What counts against `max_credits`, without what is at risk.
    _counted: float = 0
    _is_charged: bool = False
    _new_failures: int = 0
    _account_error: BaseException | None = None
    _budget_error: QwenImageBudgetError | None = None
    _rows: dict[Missing, RowNumbers] = field(default_factory=dict)
    _first_errors: dict[Missing, str] = field(default_factory=dict)

    @property
    def not_submitted(self) -> int:
        """Images that were not begun."""
        return self.requests - self.drawn - self.reused - self.failures - self.left - self.in_flight

    @property
    def unfinished(self) -> int:
        """Images that are paid, and that the next try fetches."""
        return len(self._rows.get(Missing.UNFINISHED, ()))

    @property
    def unknown(self) -> int:
        """Images that may have been accepted and paid."""
        return len(self._rows.get(Missing.UNKNOWN, ()))

    def why_not_to_submit(self) -> str | None:
        """Return why nothing more may be submitted, or None if the next image may be."""
        return self._why_not(0, self.in_flight + 1)

    def why_not_to_submit_again(self, cost: float) -> str | None:
        """Return why an image in flight that has failed may not be submitted again, or None if it may be.

        Args:
            cost: Credits that the failure cost.
        """
        return self._why_not(cost, self.in_flight)

    def _why_not(self, more: float, images: int) -> str | None:
        if self._account_error is not None:
            return f"the API refuses this account ({in_brief(self._account_error)})"
        if self._budget_error is not None:
            return f"a budget is spent ({in_brief(self._budget_error)})"
        if self._new_failures > self.limits.max_failures:
            return f"{self._new_failures} failed, and max_failures is {self.limits.max_failures}"
        limit, counted = self.limits.max_credits, self._counted + self.at_risk + more
        if limit is None or is_within(limit, counted, self.price, images):
            return None
        least = " (each image counts as the documented price at least)" if self._counted > self.spent else ""
        return (
            f"max_credits is {shown_credits(limit)}, {shown_credits(counted)} are spent{least}, and an image costs "
            f"{described_price(self.price)}"
        )

    @property
    def knows_its_price(self) -> bool:
        """Whether more than one image may be in flight: there is no limit, or it is known what an image costs."""
        return self.limits.max_credits is None or self._is_charged

    def stop_for(self, error: QwenImageBudgetError) -> None:
        """Submit nothing more in this try, because a budget of the connection has no room for another image."""
        self._budget_error = self._budget_error or error

    def begin(self) -> None:
        """Count an image that is under way."""
        self.in_flight += 1

    def end(self) -> None:
        """Count an image that is no longer under way."""
        self.in_flight -= 1

    def spend(self, amount: float) -> None:
        """Count credits that failed images of this task have cost."""
        self.spent += amount
        self._counted += amount

    def store(
        self, consumed_credits: float | None, *, reused: bool = False, now: bool = True, row: int | None = None
    ) -> None:
        """Count an image that is stored.

        Args:
            consumed_credits: Its cost, or None if the API did not report it: then the documented price counts.
            reused: Whether it was stored before this task.
            now: Whether this try has drawn it.
            row: Its row, counted from 1. If its image task could not be recorded, that does not matter any more.
        """
        self._settle(row)
        if reused:
            self.reused += 1
            return
        self.drawn += 1
        self.drawn_now += now
        self._charge(assumed_price(None) if consumed_credits is None else consumed_credits)

    def _settle(self, row: int | None) -> None:
        """Forget that the image task of a row could not be recorded: it has ended."""
        self.unrecorded = [entry for entry in self.unrecorded if entry[0] != row]

    def _charge(self, consumed_credits: float) -> None:
        """Count what the API has charged for an image that it has drawn."""
        self.spent += consumed_credits
        self.price = assumed_price(consumed_credits)
        self._is_charged = True
        # An API that reports no costs must not disable the limit.
        self._counted += self.price

    def risk(self, amount: float) -> float:
        """Count credits, or fewer, that submissions may have cost beside the one that counts; return the amount."""
        self.at_risk += amount
        return amount

    def _risk(self, charged: float | None) -> None:
        if charged is None:
            self.at_risk += self.price
        else:
            self._charge(charged)

    def note_unrecorded(self, row: int, image_task_id: str) -> None:
        """Note an image task that was accepted and could not be recorded, so that the end of the batch lists it.

        Args:
            row: Its row, counted from 1.
            image_task_id: The API's id of the image task.
        """
        self.unrecorded.append((row, image_task_id))

    def leave(self, row: int, status: RowStatus, *, charged: float | None = None) -> None:
        """Count an image that is left unfinished, because the batch was ended from outside.

        Args:
            row: Its row, counted from 1.
            status: UNFINISHED or UNKNOWN.
            charged: Credits that the API has reported for it, if the image task is SUCCESS.
        """
        self.left += 1
        self._note(Missing.UNKNOWN if status is RowStatus.UNKNOWN else Missing.UNFINISHED, row)
        self._risk(charged)

    def fail(
        self, row: int, error: BaseException, *, paid: bool, earlier: bool = False, charged: float | None = None
    ) -> RowStatus:
        """Count an image that failed.

        Args:
            row: Its row, counted from 1.
            error: The failure.
            paid: Whether it was accepted, as far as is known.
            earlier: Whether it failed in an earlier try, and not in this one.
            charged: Credits that the API has reported for it, if the image task is SUCCESS and the image is not stored.

        Returns:
            The status of its row.
        """
        self.failures += 1
        self._new_failures += not earlier
        reason = why_missing(error, paid=paid)
        self._note(reason, row)
        self._first_errors.setdefault(reason, f"row {row}: {in_brief(error)}")
        if reason is Missing.ACCOUNT_REFUSED and isinstance(error, QwenImageAuthError | QwenImageCreditsError):
            self._account_error = error
        if isinstance(error, QwenImageTaskFailedError):
            self._settle(row)
            self.spend(error.cost if charged is None else charged)
        elif paid or reason is Missing.UNKNOWN:
            self._risk(charged)
        return _STATUSES.get(reason, RowStatus.FAILED)

    def _note(self, reason: Missing, row: int) -> None:
        self._rows.setdefault(reason, RowNumbers()).add(row)

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
            "at_risk": self.at_risk,
            "images_per_second": round(rate, 3),
            "seconds_left": round(left / rate, 1) if rate else None,
        }

    def problem(
        self,
        manifest: str | None,
        interruption: str | None = None,
        *,
        not_started: Iterable[int] = (),
        not_written: str | None = None,
    ) -> QwenImageBatchError | None:
        """Return the error that the batch ends with, or None if it ends well.

        Args:
            manifest: The path of the manifest, or None if it could not be written.
            interruption: What ended the batch from outside, if anything did.
            not_started: The rows that were not begun, counted from 1; only the first are read.
            not_written: What could not be stored at the end of the batch, and why, for the error.
        """
        missing = self.requests - self.drawn - self.reused
        is_within_limits = not self.not_submitted and self.failures <= self.limits.max_failures and not self.unfinished
        if not missing or (is_within_limits and interruption is None):
            return None
        ending = Ending(
            requests=self.requests,
            missing=missing,
            rows=self._rows,
            first_errors=self._first_errors,
            account_error=self._account_error,
            budget_error=self._budget_error,
            not_started=RowNumbers.some(not_started, self.not_submitted),
            unrecorded=self.unrecorded,
            spent=self.spent,
            at_risk=self.at_risk,
            price=self.price,
            conn_id=self.conn_id,
            max_credits=self.limits.max_credits,
            why_stopped=self.why_not_to_submit(),
            interruption=interruption,
            manifest=manifest,
            not_written=not_written,
        )
        return QwenImageBatchError(
            str(ending), permanent=not ending.can_be_retried, retry_after=ending.seconds_to_next_try
        )


def in_brief(error: BaseException) -> str:
    """Return what happened as one short line for a log or another error, which has its own advice."""
    return brief(without_advice(error) if isinstance(error, QwenImageError) else str(error))
