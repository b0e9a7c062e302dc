"""A cache in memory that drops its least recently used values."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class BoundedCache(Generic[Value]):
    """Caches values by key within limits of number and weight. Threads may share it.

    Args:
        weigh: Returns the weight of a value, which may change while it is cached; see `trim`.
        most_weight: The limit of all weights together; the newest value is kept even if it exceeds this alone.
        most_values: The limit of the number of values.
    """

    def __init__(self, weigh: Callable[[Value], int], *, most_weight: int, most_values: int) -> None:
        self.most_weight = most_weight
        self.most_values = most_values
        self._weigh = weigh
        # The least recently used value comes first.
        self._values: dict[object, Value] = {}
        self._lock = threading.Lock()

    def get(self, key: object) -> Value | None:
        """Return the value of a key, or None if it is not cached."""
        with self._lock:
            value = self._values.pop(key, None)
            if value is not None:
                self._values[key] = value
            return value

    def get_or_add(self, key: object, make: Callable[[], Value]) -> Value:
        """Return the value of a key, made first if there is none."""
        with self._lock:
            value = self._values.pop(key, None) or make()
            self._values[key] = value
            return value

    def put(self, key: object, value: Value) -> None:
        """Cache a value in place of the previous one of the key."""
        with self._lock:
            self._values.pop(key, None)
            self._values[key] = value
        self.trim()

    def trim(self) -> None:
        """Drop the least recently used values until the rest is within the limits."""
        with self._lock:
            weights = itertools.accumulate(self._weigh(value) for value in reversed(self._values.values()))
            fitting = sum(1 for _ in itertools.takewhile(lambda weight: weight <= self.most_weight, weights))
            kept = max(1, min(fitting, self.most_values))
            for key in list(self._values)[:-kept]:
                del self._values[key]

    def clear(self) -> None:
        """Drop all values."""
        with self._lock:
            self._values.clear()

    def keys(self) -> list[object]:
        """Return the keys, the least recently used first."""
        with self._lock:
            return list(self._values)
