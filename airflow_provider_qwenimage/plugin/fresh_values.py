"""A cache of values for a few seconds, each made by one thread while the others wait for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from airflow_provider_qwenimage.plugin.bounded_cache import BoundedCache

Value = TypeVar("Value")


@dataclass
class _Made:
    """A value, or the error of making it."""

    value: Any = None
    problem: Exception | None = None
    weight: int = 1
    made_at: float = float("-inf")
    lock: threading.Lock = field(default_factory=threading.Lock)


class FreshValues:
    """Values that were made in the last seconds. Threads may share it.

    Args:
        seconds: How long a value, or the error of making it, is used.
        most_weight: The limit of all weights together.
        most_values: The limit of the number of values.
    """

    def __init__(self, seconds: float, *, most_weight: int, most_values: int) -> None:
        self._seconds = seconds
        self._cache: BoundedCache[_Made] = BoundedCache(
            lambda made: made.weight, most_weight=most_weight, most_values=most_values
        )

    def get(self, key: object, make: Callable[[], Value], weigh: Callable[[Value], int], deadline: float) -> Value:
        """Return the value of a key, made first unless there is one.

        Args:
            key: The key. It says for which rights the value is made, if that matters.
            make: Makes the value. What it raises, others are told as well.
            weigh: Returns the weight of the value.
            deadline: How long to wait for another thread that makes it, by `time.monotonic`.

        Raises:
            TimeoutError: If another thread has not made it at the deadline.
        """
        made = self._cache.get_or_add(key, _Made)
        if not made.lock.acquire(timeout=max(0.0, deadline - time.monotonic())):
            raise TimeoutError
        try:
            if time.monotonic() - made.made_at >= self._seconds:
                made.value = made.problem = None
                try:
                    made.value = make()
                    made.weight = weigh(made.value)
                except Exception as error:  # noqa: BLE001  raised below, and for those who ask next
                    made.problem = error
                made.made_at = time.monotonic()
            value: Value = made.value
            problem = made.problem
        finally:
            made.lock.release()
        self._cache.trim()
        if problem is not None:
            raise problem
        return value

    def clear(self) -> None:
        """Drop all values."""
        self._cache.clear()
