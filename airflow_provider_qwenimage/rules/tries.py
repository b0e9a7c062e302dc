"""Distinguishes a user's Clear from an automatic retry, which must never pay again. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Try:
    """A try of a task instance, as far as it tells whether the task was cleared before it.

    Attributes:
        number: The task instance's `try_number`: 1 in the first try, higher in each later one.
        max_tries: The task instance's, which a Clear sets and nothing else.
        clear_number: How often tasks of the run were cleared. None if that is unknown.
        retries: The task's in this try. None if that is unknown.
    """

    number: int
    max_tries: int
    clear_number: int | None = None
    retries: int | None = None

    @classmethod
    def of(cls, ti: Any, dag_run: Any = None) -> Try:
        """Return the try that a worker runs.

        Args:
            ti: The running task instance, as in a task's context.
            dag_run: Its run, as in a task's context. None if this Airflow does not count each Clear of a run: see
                `airflow_versions.COUNTS_EVERY_CLEAR`.
        """
        return cls(
            number=_whole(ti.try_number) or 0,
            max_tries=_whole(ti.max_tries) or 0,
            clear_number=_whole(getattr(dag_run, "clear_number", None)),
            retries=_whole(getattr(getattr(ti, "task", None), "retries", None)),
        )

    @classmethod
    def from_json(cls, value: object) -> Try | None:
        """Read the result of `to_json`, or the record of an earlier version, which has only the first two numbers.

        Returns:
            None if the two numbers that each version records are missing.
        """
        if not isinstance(value, Mapping):
            return None
        number, max_tries = _whole(value.get("try_number")), _whole(value.get("max_tries"))
        if number is None or max_tries is None:
            return None
        return cls(
            number=number,
            max_tries=max_tries,
            clear_number=_whole(value.get("clear_number")),
            retries=_whole(value.get("retries")),
        )

    def to_json(self) -> dict[str, int]:
        """Return it as plain JSON, without what is unknown."""
        numbers = {
            "try_number": self.number,
            "max_tries": self.max_tries,
            "clear_number": self.clear_number,
            "retries": self.retries,
        }
        return {name: number for name, number in numbers.items() if number is not None}

    def was_cleared_since(self, earlier: Try, *, ended_for_good: bool = False) -> bool:
        """Return whether the task was certainly cleared between two tries.

        A Clear sets `max_tries` to the number of the last try plus `retries`, and a retry leaves it alone. If `retries`
        was lowered in between, a Clear may set the same number again: then the facts have to agree on a Clear, and
        the earlier try must have ended such that Airflow does not retry it.

        Args:
            earlier: A try of the same task instance.
            ended_for_good: Whether the earlier try succeeded, or failed without a retry.
        """
        if self.max_tries != earlier.max_tries:
            return True
        # A worker may be killed after it recorded the end and before Airflow knew of it: even then a retry can follow.
        return ended_for_good and self._may_follow_a_clear_of(earlier)

    def _may_follow_a_clear_of(self, earlier: Try) -> bool:
        """Return whether a Clear since an earlier try explains the numbers, although `max_tries` is the same."""
        if self.retries is None:
            return False
        cleared = self.max_tries - self.retries
        counted = None in (self.clear_number, earlier.clear_number) or self.clear_number != earlier.clear_number
        return earlier.number <= cleared < self.number and counted


def _whole(value: object) -> int | None:
    # In Python a bool is an int as well.
    return value if isinstance(value, int) and not isinstance(value, bool) else None
