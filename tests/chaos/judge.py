"""Decide how a killed task ended, and whether it paid twice or lost its image. No I/O."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """How a task ended."""

    STORED = "stored"
    UNKNOWN = "stopped as unknown"
    LOST = "lost"


@dataclass(frozen=True)
class Evidence:
    """The evidence on a task at its end.

    Attributes:
        name: The task's name in messages.
        state: The task's state in Airflow.
        accepted: How many of its submissions the API accepted and charged.
        result_is_whole: Whether it has its result: a complete image with a sidecar, or, if it stores nothing, the id of
            an accepted image task.
        last_try_unknown: Whether its last try stopped because it may be paid, and asked for a Clear.
        clears: How often it was cleared; each Clear is a decision to pay again.
        kills: How often one of its processes was killed.
    """

    name: str
    state: str | None
    accepted: int
    result_is_whole: bool
    last_try_unknown: bool = False
    clears: int = 0
    kills: int = 0

    @property
    def verdict(self) -> Verdict:
        if self.state == "success" and self.accepted and self.result_is_whole:
            return Verdict.STORED
        if self.state == "failed" and self.last_try_unknown:
            return Verdict.UNKNOWN
        return Verdict.LOST

    @property
    def paid_twice(self) -> bool:
        """Whether it paid again without a Clear."""
        return self.accepted > 1 + self.clears

    def __str__(self) -> str:
        return (
            f"{self.name}: {self.verdict} (state {self.state}, accepted {self.accepted} times, result "
            f"{'complete' if self.result_is_whole else 'missing or broken'}, killed {self.kills} times, cleared "
            f"{self.clears} times)"
        )


@dataclass(frozen=True)
class Tally:
    """A row of the table. Each kill is counted by its consequence: the task resumed, stopped as unknown or was lost."""

    stage: str
    kills: int = 0
    resumed: int = 0
    unknown: int = 0
    paid_twice: int = 0
    lost: int = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            stage=self.stage,
            kills=self.kills + other.kills,
            resumed=self.resumed + other.resumed,
            unknown=self.unknown + other.unknown,
            paid_twice=self.paid_twice + other.paid_twice,
            lost=self.lost + other.lost,
        )

    @property
    def cells(self) -> tuple[str | int, ...]:
        return self.stage, self.kills, self.resumed, self.unknown, self.paid_twice, self.lost


def tally(stage: str, tasks: Iterable[Evidence]) -> Tally:
    """Return the row of a stage."""
    row = Tally(stage)
    for task in tasks:
        verdict = task.verdict
        # Only the last kill can have ended the task; it resumed after the others.
        ended = verdict is not Verdict.STORED
        row += Tally(
            stage,
            kills=task.kills,
            resumed=task.kills - (ended and task.kills > 0),
            unknown=verdict is Verdict.UNKNOWN,
            paid_twice=task.paid_twice,
            lost=verdict is Verdict.LOST,
        )
    return row


def total(rows: Iterable[Tally]) -> Tally:
    """Return the sum of rows."""
    return sum(rows, Tally("total"))


@dataclass(frozen=True)
class Expectation:
    """How each task of a stage must end.

    Attributes:
        verdict: The required end, or None if both stored and stopped as unknown are correct.
        accepted: How many accepted submissions each task may have.
    """

    verdict: Verdict | None
    accepted: frozenset[int] = frozenset({1})


def complaints(stage: str, expected: Expectation, tasks: Iterable[Evidence], *, kills: int = 0) -> list[str]:
    """Return everything that is wrong with the tasks of a stage, one line each.

    Args:
        kills: How many kills are required.
    """
    tasks = list(tasks)
    found = []
    for task in tasks:
        if task.paid_twice:
            found.append(f"{stage}: paid twice: {task}")
        elif task.verdict is Verdict.LOST or (expected.verdict is not None and task.verdict is not expected.verdict):
            found.append(f"{stage}: should have ended as {expected.verdict or 'stored or unknown'}: {task}")
        elif task.accepted not in expected.accepted:
            found.append(f"{stage}: accepted {task.accepted} times: {task}")
    made = sum(task.kills for task in tasks)
    if made < kills:
        found.append(f"{stage}: only {made} of {kills} kills were made")
    return found
