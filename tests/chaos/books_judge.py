"""Decide whether the books say what the API charged, after every task has ended and the books are settled. No I/O."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

_ENDED = ("done", "failed")
# Nobody can ask for them: they may have been sent, or not.
_LOST = ("reserved", "unknown")
_SUBMITTED = "submitted"
_WITHDRAWN = "withdrawn"
# The sums of a database are not exact.
_TOLERANCE = 1e-6


@dataclass(frozen=True)
class BooksRow:
    """A row of the books.

    Attributes:
        account: The connection that pays.
        periods: The day and the month in which it counts.
    """

    submission_id: str
    account: str
    status: str
    credits_reserved: float
    credits_consumed: float | None = None
    image_task_id: str | None = None
    sha256: str | None = None
    periods: Sequence[str] = ()

    @property
    def consumed(self) -> float:
        """What it has cost for certain."""
        return (self.credits_consumed or 0.0) if self.status in _ENDED else 0.0

    @property
    def at_risk(self) -> float:
        """What it may have cost besides."""
        return 0.0 if self.status in (*_ENDED, _WITHDRAWN) else self.credits_reserved


@dataclass(frozen=True)
class BooksEvidence:
    """The books and what they are about.

    Attributes:
        rows: The rows of submissions.
        budgets: What the budgets say is spent or reserved, by account and period.
        charged: What the API charged, by account and image task.
        stored: The hashes of the images that are stored, by image task.
    """

    rows: Sequence[BooksRow]
    budgets: Mapping[tuple[str, str], float]
    charged: Mapping[str, Mapping[str, float]]
    stored: Mapping[str, str] = field(default_factory=dict)

    def complaints(self) -> list[str]:
        """Return everything that is wrong, one line each."""
        by_account = {account: [row for row in self.rows if row.account == account] for account in self._accounts()}
        found = [
            f"books of {account}: {problem}"
            for account, rows in by_account.items()
            for problem in _problems(rows, self.charged.get(account, {}), self.stored)
        ]
        return found + [f"budgets: {problem}" for problem in self._budget_problems()]

    def cells(self) -> list[tuple[str, int]]:
        """Return the counts for a table."""
        statuses = Counter(row.status for row in self.rows)
        return [
            ("rows", len(self.rows)),
            *((f"  {status}", number) for status, number in sorted(statuses.items())),
            ("credits consumed by the rows", round(_sum_of(self.rows, "consumed"))),
            ("  at risk", round(_sum_of(self.rows, "at_risk"))),
            ("credits charged by the API", round(sum(sum(charged.values()) for charged in self.charged.values()))),
        ]

    def _accounts(self) -> list[str]:
        return sorted({row.account for row in self.rows} | set(self.charged))

    def _budget_problems(self) -> Iterator[str]:
        counted: dict[tuple[str, str], float] = defaultdict(float)
        for row in self.rows:
            for period in row.periods:
                counted[row.account, period] += row.consumed + row.at_risk
        for account, period in sorted(counted.keys() | self.budgets.keys()):
            sum_of_rows, used = counted[account, period], self.budgets.get((account, period), 0.0)
            if abs(sum_of_rows - used) > _TOLERANCE:
                yield f"{account} has used {used:g} in {period}, but its rows count {sum_of_rows:g}"


def _problems(rows: Sequence[BooksRow], charged: Mapping[str, float], stored: Mapping[str, str]) -> Iterator[str]:
    """Yield what is wrong with the rows of an account."""
    for row in rows:
        if (problem := _problem(row, charged)) is not None:
            yield f"{row.submission_id} is {row.status}, {problem}"
    by_task: dict[str, BooksRow] = {}
    for row in rows:
        if row.image_task_id is not None and (other := by_task.setdefault(row.image_task_id, row)) is not row:
            yield f"{row.submission_id} and {other.submission_id} are both about image task {row.image_task_id}"
    lost = sum(row.image_task_id is None and row.status in _LOST for row in rows)
    missing = sorted(charged.keys() - by_task.keys())
    if len(missing) > lost:
        yield f"no row is about image tasks {', '.join(missing)}, and only {lost} rows are lost"
    total, consumed, at_risk = sum(charged.values()), _sum_of(rows, "consumed"), _sum_of(rows, "at_risk")
    if not consumed <= total <= consumed + at_risk:
        yield f"the API charged {total:g} credits, but the rows have consumed {consumed:g}, and {at_risk:g} are at risk"
    for image_task_id in sorted(charged.keys() & stored.keys()):
        its = by_task.get(image_task_id)
        if its is None or its.status != "done" or its.sha256 != stored[image_task_id]:
            yield f"the image of image task {image_task_id} is stored, but its row is {its}"


def _problem(row: BooksRow, charged: Mapping[str, float]) -> str | None:
    """Return what is wrong with a row by itself."""
    if row.status == _SUBMITTED:
        return "so it is not settled"
    if row.image_task_id is None:
        return "but has no image task" if row.status in _ENDED else None
    cost = charged.get(row.image_task_id)
    if cost is None:
        return f"but image task {row.image_task_id} was never accepted"
    if row.status == _WITHDRAWN:
        return f"but image task {row.image_task_id} was accepted"
    if row.status in _ENDED and row.credits_consumed != cost:
        return f"and says {row.credits_consumed} credits, but image task {row.image_task_id} cost {cost:g}"
    return None


def _sum_of(rows: Iterable[BooksRow], name: str) -> float:
    return sum(getattr(row, name) for row in rows)
