"""Paces requests so that a client never exceeds a rate. No I/O."""

from __future__ import annotations


class RateLimit:
    """Gives every request its moment, evenly spaced.

    Args:
        per_second: How many requests a second are allowed, or None for no limit.
    """

    def __init__(self, per_second: float | None) -> None:
        self._spacing = 1.0 / per_second if per_second else 0.0
        self._next = float("-inf")

    def reserve(self, now: float) -> float:
        """Reserve the next free moment and return how many seconds it is away.

        Args:
            now: The time on a clock that never goes back, in seconds.
        """
        moment = max(now, self._next)
        self._next = moment + self._spacing
        return moment - now
