"""Counts what a batch would do with each of its rows, before anything is submitted, and describes that. No I/O."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from airflow_provider_qwenimage.rules.prices import assumed_price, described_price
from airflow_provider_qwenimage.text.messages import printable, shorten

# So many rows are named with what is wrong; all are counted.
MOST_NAMED = 100
_LONGEST_PROBLEM = 400


class Prospect(StrEnum):
    """What a batch would do with a row."""

    SUBMIT = "to_submit"
    PENDING = "pending"
    STORED = "stored"
    SHARED = "shared"
    BLOCKED = "blocked"
    BAD = "bad"


_MEANINGS = {
    Prospect.SUBMIT: "to be submitted",
    Prospect.PENDING: "paid and pending: submitted, to be fetched",
    Prospect.STORED: "stored already",
    Prospect.SHARED: "equal to an earlier row: share its image",
    Prospect.BLOCKED: "would fail before they are submitted",
    Prospect.BAD: "bad: not requests that the API allows",
}


@dataclass(frozen=True)
class RowProblem:
    """A row that a batch would not draw.

    Attributes:
        number: Its number, counted from 1.
        line: Its last line in the file, or None.
        problem: What is wrong.
    """

    number: int
    line: int | None
    problem: str


class BatchPlan:
    """What a batch would do with its rows.

    Attributes:
        problems: The first rows that it would not draw: bad ones first.
        refusal: The message with which it would refuse all rows, because some are bad; or None.
    """

    def __init__(self) -> None:
        self.refusal: str | None = None
        self._counts = dict.fromkeys(Prospect, 0)
        self.problems: list[RowProblem] = []

    def count(self, prospect: Prospect, rows: int = 1) -> None:
        """Count rows."""
        self._counts[prospect] += rows

    def name(self, number: int, problem: str, line: int | None = None) -> None:
        """Name a row that it would not draw, unless many are named already."""
        if len(self.problems) < MOST_NAMED:
            self.problems.append(RowProblem(number, line, printable(shorten(problem, _LONGEST_PROBLEM))))

    @property
    def failures(self) -> int:
        """How many rows would fail before they are submitted, if none is bad."""
        return self._counts[Prospect.BLOCKED]

    @property
    def is_sound(self) -> bool:
        """Whether every row would be drawn, fetched or found."""
        return self.refusal is None and not self.failures

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return sum(self._counts.values())

    @property
    def price(self) -> float:
        """The credits that are assumed for an image."""
        return assumed_price(None)

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON, with the keys that ``docs/command-line.md`` describes."""
        return {
            "rows": self.rows,
            **{str(prospect): count for prospect, count in self._counts.items()},
            "credits": self._credits(Prospect.SUBMIT),
            "credits_per_image": self.price,
            "problems": [
                {"row": problem.number, "line": problem.line, "problem": problem.problem} for problem in self.problems
            ],
        }

    def table(self) -> list[dict[str, Any]]:
        """Return a row for each prospect, with the number of rows and their price, and a last one for all."""
        lines = [
            {"rows": count, "credits": self._credits(prospect), "what": _MEANINGS[prospect]}
            for prospect, count in self._counts.items()
            if count or prospect in (Prospect.SUBMIT, Prospect.PENDING, Prospect.STORED)
        ]
        price = f"all; an image costs {described_price(self.price)}"
        return [*lines, {"rows": self.rows, "credits": self._credits(Prospect.SUBMIT), "what": price}]

    def notes(self) -> Iterator[str]:
        """Yield a line for each row that is named, one about those that are not, and what bad rows mean."""
        for problem in self.problems:
            line = "" if problem.line is None else f" (line {problem.line})"
            yield f"Row {problem.number}{line}: {problem.problem}"
        left = self._counts[Prospect.BAD] + self.failures - len(self.problems)
        if left:
            yield f"{left} more rows are bad or would fail."
        if self.refusal is not None:
            yield "Nothing is submitted before the bad rows are corrected."

    def _credits(self, prospect: Prospect) -> float:
        return self._counts[prospect] * self.price if prospect is Prospect.SUBMIT else 0
