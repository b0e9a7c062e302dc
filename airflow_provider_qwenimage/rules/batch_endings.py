"""Words how a batch ends: what became of which rows, what it cost or may cost, and the one thing to do. No I/O."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

from airflow_provider_qwenimage.exceptions import (
    QwenImageAuthError,
    QwenImageBudgetError,
    QwenImageCreditsError,
    QwenImageImageError,
    QwenImageNotFoundError,
    QwenImageSubmissionUnknownError,
    QwenImageTaskFailedError,
    is_permanent,
)
from airflow_provider_qwenimage.rules.batch_rows import NAMED_ROWS, RowNumbers
from airflow_provider_qwenimage.text.messages import printable, shorten, shown_credits

_BRIEF_CHARACTERS = 500


class Missing(Enum):
    """Why a row that was begun has no image, in the order in which the reasons decide about the advice."""

    ACCOUNT_REFUSED = auto()
    UNFINISHED = auto()
    FAILED = auto()
    UNKNOWN = auto()
    UNLIKE = auto()
    REFUSED = auto()


# The next try submits these again; of the others, only a Clear does.
_TRANSIENT = (Missing.UNFINISHED, Missing.FAILED)
_FACTS: Mapping[Missing, tuple[str, str]] = {
    Missing.UNKNOWN: ("may be paid and its id is lost", "may be paid and their ids are lost"),
    Missing.UNFINISHED: ("is paid and its image is not stored yet", "are paid and their images are not stored yet"),
    Missing.UNLIKE: (
        "is paid and its image is not what it asks for",
        "are paid and their images are not what they ask",
    ),
    Missing.REFUSED: ("failed", "failed"),
    Missing.FAILED: ("failed", "failed"),
    Missing.ACCOUNT_REFUSED: ("failed", "failed"),
}


def why_missing(error: BaseException, *, paid: bool) -> Missing:
    """Return why a row has no image.

    Args:
        error: What ended its image.
        paid: Whether it was accepted, as far as is known. Then only a FAILED image task, or an image that is not what
            was requested, is an end: whatever else was read or not read, the next try fetches the image.
    """
    if isinstance(error, QwenImageSubmissionUnknownError):
        return Missing.UNKNOWN
    if isinstance(error, QwenImageTaskFailedError) or not paid:
        if isinstance(error, QwenImageAuthError | QwenImageCreditsError | QwenImageNotFoundError):
            return Missing.ACCOUNT_REFUSED
        return Missing.REFUSED if is_permanent(error) else Missing.FAILED
    return Missing.UNLIKE if isinstance(error, QwenImageImageError) and error.permanent else Missing.UNFINISHED


@dataclass(kw_only=True)
class Ending:
    """What a batch knows about its end.

    Attributes:
        requests: The images that it requests.
        missing: How many of them are not stored.
        rows: The rows without an image that were begun, by the reason.
        first_errors: The first error of each reason.
        account_error: The error of the API that refused the account, if it did.
        budget_error: The error of the budget that stopped it, if one did.
        not_started: The rows that were not begun.
        unrecorded: The rows whose image tasks were accepted and could not be recorded, with the ids of these.
        spent: Credits that it has cost.
        at_risk: Credits that may have been charged as well.
        price: What an image is assumed to cost.
        conn_id: The id of the Airflow connection.
        max_credits: Its limit for credits.
        why_stopped: Why nothing more was submitted, or None.
        interruption: What ended the batch from outside, or None.
        manifest: The path of the manifest, or None if it could not be written.
        not_written: What could not be stored at the end, and why, or None.
    """

    requests: int
    missing: int
    rows: Mapping[Missing, RowNumbers] = field(default_factory=lambda: defaultdict(RowNumbers))
    first_errors: Mapping[Missing, str] = field(default_factory=dict)
    account_error: BaseException | None = None
    budget_error: QwenImageBudgetError | None = None
    not_started: RowNumbers = field(default_factory=RowNumbers)
    unrecorded: Sequence[tuple[int, str]] = ()
    spent: float = 0
    at_risk: float = 0
    price: float = 0
    conn_id: str = ""
    max_credits: float | None = None
    why_stopped: str | None = None
    interruption: str | None = None
    manifest: str | None = None
    not_written: str | None = None

    @property
    def can_be_retried(self) -> bool:
        """Whether another try can get further without the user.

        Not if ids are known to this try only: the next one would not find them, and Airflow deletes the XComs that
        list them when it starts.
        """
        if self.unrecorded:
            return False
        if self._count(Missing.UNFINISHED) or self.interruption is not None:
            return True
        can_submit_later = self._waits_for_budget or any(self._count(reason) for reason in _TRANSIENT)
        return self.account_error is None and can_submit_later

    @property
    def seconds_to_next_try(self) -> float | None:
        """In how many seconds the budget resets, if no other try gets further before that; None otherwise."""
        is_only_reason = self._waits_for_budget and self.can_be_retried and not self._count(Missing.UNFINISHED)
        return self.budget_error.retry_after if is_only_reason and self.budget_error is not None else None

    @property
    def _waits_for_budget(self) -> bool:
        return self.budget_error is not None and not self.budget_error.permanent and bool(self.not_started)

    def __str__(self) -> str:
        why = f", because the batch was stopped ({brief(self.interruption)})" if self.interruption else ""
        parts = [
            f"{self.missing} of {self.requests} images are missing{why}: {'; '.join(self._facts())}.",
            self._first_error(),
            self._cost(),
            self._advice(),
            sentence(self.not_written) if self.not_written else "",
            f"Every row is listed in {self.manifest}." if self.manifest else "",
        ]
        return " ".join(part for part in parts if part)

    def _count(self, reason: Missing) -> int:
        return len(self.rows[reason]) if reason in self.rows else 0

    def _facts(self) -> list[str]:
        facts = []
        if self.unrecorded:
            named = [f"{image_task_id} (row {row})" for row, image_task_id in self.unrecorded[:NAMED_ROWS]]
            left = len(self.unrecorded) - len(named)
            more = f" and {left} more, listed in the XCom unrecorded" if left else ""
            facts.append(f"the ids of accepted image tasks could not be recorded: {', '.join(named)}{more}")
        for reason, (one, several) in _FACTS.items():
            if rows := self.rows.get(reason):
                facts.append(f"{rows} {one if len(rows) == 1 else several}")
        if self.not_started:
            because = f", because {brief(self.why_stopped)}" if self.why_stopped and not self.interruption else ""
            facts.append(f"{self.not_started} {'was' if len(self.not_started) == 1 else 'were'} not started{because}")
        return facts

    def _first_error(self) -> str:
        # An error about a lost answer adds nothing to what is said of its row.
        quoted = (first for reason in Missing if (first := self.first_errors.get(reason)) and reason != Missing.UNKNOWN)
        first = next(quoted, None)
        is_said = self.account_error is not None and self.not_started
        return f"First error: {sentence(first)}" if first and not is_said else ""

    def _cost(self) -> str:
        more = f", and up to {shown_credits(self.at_risk)} more may have been charged" if self.at_risk else ""
        return f"The batch cost {shown_credits(self.spent)} credits{more}."

    def _advice(self) -> str:
        if self.unrecorded:
            return (
                "Get those images with a QwenImageStatusSensor for these ids before you clear this task, which may "
                "submit, and pay for, their rows again."
            )
        actions = " and ".join(self._actions())
        if actions:
            kept = self.can_be_retried and self._count(Missing.UNKNOWN)
            first = "A retry does not submit rows again that may be paid. " if kept else ""
            return f"{first}{actions[0].upper()}{actions[1:]}, then clear: {self._outlook(Missing)}."
        if self.budget_error is not None and self.budget_error.permanent:
            return f"{self.budget_error.advice} Then clear: {self._outlook(Missing)}."
        if self.can_be_retried:
            when = f"{self.budget_error.advice} " if self.budget_error is not None else ""
            return f"{when}The next try, automatic or after a Clear, continues: {self._outlook(_TRANSIENT)}."
        return f"Clear this task to spend up to max_credits once more: {self._outlook(Missing)}."

    def _actions(self) -> list[str]:
        """Return what the user has to do before a Clear, without which it is of no use or may pay twice."""
        compare = ["compare your credits"] if self._count(Missing.UNKNOWN) else []
        if self.account_error is not None or self._count(Missing.ACCOUNT_REFUSED):
            return [self._account_advice(), *compare]
        refused = self._rows(Missing.UNLIKE, Missing.REFUSED)
        if self.can_be_retried:
            return compare
        if refused and not self._stopped_by_credits:
            return [*compare, f"correct {refused}"]
        if compare:
            return compare
        if self.max_credits is not None and self.price > self.max_credits:
            return [f"raise max_credits to {shown_credits(self.price)} at least"]
        return []

    @property
    def _stopped_by_credits(self) -> bool:
        return (self.why_stopped or "").startswith("max_credits")

    def _account_advice(self) -> str:
        error = self.account_error
        if isinstance(error, QwenImageCreditsError):
            return f"buy credits for the account of connection {self.conn_id}"
        if isinstance(error, QwenImageAuthError):
            return f"correct the key in connection {self.conn_id}"
        return f"correct the host of connection {self.conn_id}"

    def _rows(self, *reasons: Missing) -> RowNumbers:
        rows = RowNumbers()
        for reason in reasons:
            rows += self.rows.get(reason, RowNumbers())
        return rows

    def _outlook(self, reasons: Iterable[Missing]) -> str:
        """Return what the next try does about which rows, and what that costs.

        Args:
            reasons: The rows that it takes up again.
        """
        again = self._rows(*(reason for reason in reasons if reason is not Missing.UNFINISHED))
        steps: list[str] = []
        for rows, verb, price in (
            (self._rows(Missing.UNFINISHED), "fetched", 0.0),
            (again, "submitted again", self.price),
            (self.not_started, "submitted for the first time", self.price),
        ):
            if rows:
                unit = "" if steps else " credits"
                steps.append(
                    f"{rows} {'is' if len(rows) == 1 else 'are'} {verb} ({shown_credits(price * len(rows))}{unit})"
                )
        return ", ".join(steps)


def brief(text: str) -> str:
    """Return a text as one short line for a log or an error; the manifest has more of it."""
    return printable(shorten(text, _BRIEF_CHARACTERS))


def sentence(text: str) -> str:
    """Return a text with an end mark."""
    return text if text.endswith((".", "!", "?", "…")) else f"{text}."
