"""Decides what counts against the budgets of an account, in which period, and what is said about it. No I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow_provider_qwenimage.exceptions import QwenImageBudgetError
from airflow_provider_qwenimage.rules.book_rows import CREDIT_DIGITS
from airflow_provider_qwenimage.rules.connection_extra import (
    BOOKS_CONN_ID,
    CREDITS_PER_DAY,
    CREDITS_PER_MONTH,
    positive_number,
)
from airflow_provider_qwenimage.rules.prices import assumed_price, described_price
from airflow_provider_qwenimage.text.messages import printable, safe_repr, shorten, shown_credits

# A budget that is spent to this share is reported once, so that somebody can react before it is spent.
WARNING_SHARE = 0.8
# Sums of fractions of a credit are not exact in every database.
TOLERANCE = 1e-6
_LONGEST_CONN_ID = 250
# DAGs that an error names.
NAMED_SPENDERS = 5
_MINUTE, _HOUR, _DAY = 60, 3600, 86_400


@dataclass(frozen=True)
class Budgets:
    """The most credits that an account may spend.

    Attributes:
        per_day: In a day of UTC; None for no limit.
        per_month: In a month of UTC; None for no limit.
    """

    per_day: float | None = None
    per_month: float | None = None

    def limit_of(self, period: Period) -> float | None:
        """Return the limit in a period."""
        return self.per_day if period.option == CREDITS_PER_DAY else self.per_month


@dataclass(frozen=True)
class BooksOptions:
    """What a connection says about its books.

    Attributes:
        conn_id: The id of the Airflow connection to their database; None if there are none.
        budgets: The budgets, which the books keep.
    """

    conn_id: str | None = None
    budgets: Budgets = field(default_factory=Budgets)


NO_BOOKS = BooksOptions()


@dataclass(frozen=True)
class Period:
    """A day or a month of UTC, for which there is a budget.

    Attributes:
        option: The key of the connection's extra that limits it.
        key: Its name in the books: 2026-11-27 or 2026-11.
        ends: When the next one begins.
    """

    option: str
    key: str
    ends: datetime


@dataclass(frozen=True)
class BudgetState:
    """How much of a budget is spent.

    Attributes:
        period: The day or month.
        limit: The budget.
        used: What is spent or reserved of it.
    """

    period: Period
    limit: float
    used: float

    @property
    def left(self) -> float:
        """Credits that are left."""
        return max(0.0, self.limit - self.used)


@dataclass(frozen=True)
class Refusal(BudgetState):
    """A budget that has no room for an image.

    Attributes:
        price: What an image is assumed to cost.
    """

    price: float

    @property
    def images_left(self) -> int:
        """How many images there is room for."""
        return int((self.left + TOLERANCE) // self.price)


def read_books_options(extra: Mapping[str, Any]) -> BooksOptions:
    """Read what the extra of a connection says about its books.

    Raises:
        ValueError: If an option is not usable; the message continues the sentence "Connection … ".
    """
    budgets = Budgets(positive_number(extra, CREDITS_PER_DAY, None), positive_number(extra, CREDITS_PER_MONTH, None))
    conn_id = extra.get(BOOKS_CONN_ID)
    if conn_id is None or (isinstance(conn_id, str) and not conn_id.strip()):
        if budgets != Budgets():
            name = CREDITS_PER_MONTH if budgets.per_day is None else CREDITS_PER_DAY
            raise ValueError(
                f"has {name} in its extra, but no {BOOKS_CONN_ID}; a budget is kept in the books, so it must name an "
                "Airflow connection to an SQL database."
            )
        return NO_BOOKS
    if not isinstance(conn_id, str) or not conn_id.isprintable() or len(conn_id) > _LONGEST_CONN_ID:
        raise ValueError(
            f"has {BOOKS_CONN_ID} = {shorten(safe_repr(conn_id))} in its extra; it must be the id of an Airflow "
            "connection to an SQL database."
        )
    return BooksOptions(conn_id.strip(), budgets)


def periods_of(moment: datetime) -> tuple[Period, Period]:
    """Return the day and the month that credits count in.

    Args:
        moment: When they were reserved. A time without a zone is UTC.
    """
    utc = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    day = utc.replace(hour=0, minute=0, second=0, microsecond=0)
    first = day.replace(day=1)
    next_month = (first + timedelta(days=31)).replace(day=1)
    return (
        Period(CREDITS_PER_DAY, f"{day:%Y-%m-%d}", day + timedelta(days=1)),
        Period(CREDITS_PER_MONTH, f"{first:%Y-%m}", next_month),
    )


def is_nearly_spent(limit: float, before: float, after: float) -> bool:
    """Whether credits take a budget over the share that is reported."""
    # To the digits that the books store: one reservation's `after` is the next one's `before`, which is a difference.
    threshold = round(limit * WARNING_SHARE, CREDIT_DIGITS)
    return round(before, CREDIT_DIGITS) < threshold <= round(after, CREDIT_DIGITS)


def nearly_spent(account: str, state: BudgetState) -> str:
    """Return the log line about a budget that is nearly spent."""
    return (
        f"{shown_credits(state.used)} of the {shown_credits(state.limit)} credits that {state.period.option} of "
        f"connection {_shown(account)} allows for {state.period.key} (UTC) are spent or reserved."
    )


def budget_error(
    account: str, refusal: Refusal, spenders: Sequence[tuple[str, float]], now: datetime
) -> QwenImageBudgetError:
    """Return the error of a submission that a budget has no room for.

    Args:
        account: The id of the connection.
        refusal: The budget.
        spenders: The DAGs that spent most of it, with their credits.
        now: The time.
    """
    period = refusal.period
    lowest = assumed_price(None)
    if refusal.limit + TOLERANCE < lowest:
        too_low = QwenImageBudgetError(
            f"Connection {_shown(account)} has {period.option} = {shown_credits(refusal.limit)}, and an image costs "
            f"{described_price(lowest)}. Nothing was submitted.",
            advice=f"Raise {period.option} in the connection's extra to {shown_credits(lowest)} at least.",
            left=refusal.left,
        )
        # It will never have room for an image.
        too_low.permanent = True
        return too_low
    seconds = max(1.0, (period.ends - now.astimezone(UTC)).total_seconds())
    by = ", ".join(f"{shorten(printable(dag_id)) or 'no DAG'} {shown_credits(amount)}" for dag_id, amount in spenders)
    return QwenImageBudgetError(
        f"Connection {_shown(account)} has {shown_credits(refusal.left)} credits left of its {period.option} = "
        f"{shown_credits(refusal.limit)} for {period.key} (UTC), and an image costs {shown_credits(refusal.price)}. "
        "Nothing was submitted."
        f"{f' Spent or reserved by: {by}.' if by else ''}",
        advice=(
            f"The budget resets at {period.ends:%Y-%m-%d %H:%M} UTC, in {_duration(seconds)}: a retry after that "
            f"goes on. To go on now, raise {period.option} in the connection's extra."
        ),
        left=refusal.left,
        retry_after=seconds,
    )


def _shown(account: str) -> str:
    return shorten(repr(printable(account)))


def _duration(seconds: float) -> str:
    if seconds >= _DAY:
        return f"{seconds / _DAY:.1f} days"
    if seconds >= _HOUR:
        return f"{seconds / _HOUR:.1f} hours"
    return f"{max(1, round(seconds / _MINUTE))} minutes"
