"""Decide which faults the sandbox injects: scripted ones first, then random ones. No I/O."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable, Mapping

from airflow_provider_qwenimage.sandbox.settings import (
    CALLBACKS,
    FAULT_PATHS,
    REQUEST_SHARES,
    TASK_SHARES,
    SandboxSettings,
)

OK = "ok"

_EVERY_ROUTE = (
    OK,
    "rate_limit",
    "server_error",
    "unauthorized",
    "payment",
    "forbidden",
    "not_found",
    "redirect",
    "html",
    "empty",
    "drop",
    "drop_after",
    "hang",
    "hang_after",
)
_API = ("created", "error_after", "html_after", "malformed", "wrong_shape", "unknown_status")
_IMAGE = ("truncate", "truncate_with_length", "wrong_format", "wrong_size", "oversized", "garbage")

# These change the new task, not the answer to the request.
_OUTCOMES = ("failure", "policy")
_CALLBACKS = {f"callback_{name}": name for name in CALLBACKS}
_TASK = (*_OUTCOMES, "slow", *_CALLBACKS)

BEHAVIOURS: Mapping[str, tuple[str, ...]] = {
    "generate": (*_EVERY_ROUTE, *_API, *_TASK),
    "status": (*_EVERY_ROUTE, *_API),
    "image": (*_EVERY_ROUTE, *_IMAGE),
}
"""The behaviours that can be scripted for each route."""

ScriptItem = str | tuple[str, int]

_SLOW_FACTOR = 10
_MAGIC_WORDS = {"[policy]": "policy", "[fail]": "failure"}
_MOST_TIMES = 1_000_000


class FaultPlan:
    """The faults to come: a queue of scripted behaviours for each route, and a random generator.

    Args:
        settings: Only the `fault_seed` is used.
    """

    def __init__(self, settings: SandboxSettings) -> None:
        self._scripts: dict[str, deque[str]] = {route: deque() for route in FAULT_PATHS}
        self._random = random.Random(settings.fault_seed)  # noqa: S311  faults, not secrets

    def reseed(self, fault_seed: int | None) -> None:
        """Restart the random faults from a seed; None draws a random seed."""
        self._random = random.Random(fault_seed)  # noqa: S311  faults, not secrets

    def script(self, route: str, items: Iterable[ScriptItem]) -> None:
        """Append behaviours for the next requests of a route.

        Args:
            route: ``generate``, ``status`` or ``image``.
            items: Names of behaviours, or pairs of a name and a number of times.

        Raises:
            ValueError: If the route, a behaviour or a number is not allowed. Nothing is appended then.
        """
        if route not in BEHAVIOURS:
            raise ValueError(f"route is {route!r}; it must be one of {', '.join(BEHAVIOURS)}.")
        behaviours: list[str] = []
        left = _MOST_TIMES - len(self._scripts[route])
        for item in items:
            name, times = _read_item(item)
            if times > left - len(behaviours):
                raise ValueError(f"The script of {route} is too long; it must be at most {_MOST_TIMES} behaviours.")
            if name not in BEHAVIOURS[route]:
                raise ValueError(
                    f"behaviour is {name!r}; for {route} it must be one of {', '.join(BEHAVIOURS[route])}."
                )
            behaviours += [name] * times
        self._scripts[route].extend(behaviours)

    def clear(self) -> None:
        """Drop every scripted behaviour that is still to come."""
        for queue in self._scripts.values():
            queue.clear()

    def waiting(self) -> dict[str, list[str]]:
        """Return the scripted behaviours that are still to come, for each route."""
        return {route: list(queue) for route, queue in self._scripts.items()}

    def next_behaviour(self, route: str, settings: SandboxSettings) -> str:
        """Return the behaviour of the next request of a route: a scripted one, else a random one."""
        try:
            return self._scripts[route].popleft()
        except IndexError:
            pass
        if route not in settings.fault_paths:
            return OK
        behaviour = self._draw(REQUEST_SHARES, settings)
        return behaviour if behaviour in BEHAVIOURS[route] else OK

    def next_outcome(self, prompt: str, behaviour: str, settings: SandboxSettings) -> str:
        """Return how a new task ends: ``ok``, ``failure`` or ``policy``.

        The behaviour of its request takes precedence over the magic words of its prompt, and these over the shares.
        """
        if behaviour in _OUTCOMES:
            return behaviour
        lowered = prompt.lower()
        for word, outcome in _MAGIC_WORDS.items():
            if word in lowered:
                return outcome
        return self._draw(TASK_SHARES, settings)

    def _draw(self, shares: Mapping[str, str], settings: SandboxSettings) -> str:
        weights = [(getattr(settings, name), behaviour) for name, behaviour in shares.items()]
        if not any(share for share, _ in weights):
            return OK
        drawn = self._random.random()
        for share, behaviour in weights:
            drawn -= share
            if drawn < 0:
                return behaviour
        return OK


def task_seconds(prompt: str, behaviour: str, settings: SandboxSettings) -> float:
    """Return how long a new task takes, in seconds: ten times as long with ``[slow]`` in its prompt."""
    slow = behaviour == "slow" or "[slow]" in prompt.lower()
    return settings.seconds_per_image * (_SLOW_FACTOR if slow else 1)


def callback_of(behaviour: str, settings: SandboxSettings) -> str:
    """Return when the `callback_url` of a new task is called: as scripted, else as set; one of `CALLBACKS`."""
    return _CALLBACKS.get(behaviour, settings.callback)


def callback_times(callback: str, ends_at: float, delay: float) -> tuple[float, ...]:
    """Return the times at which the `callback_url` of a task is called, in epoch seconds.

    Args:
        callback: One of `CALLBACKS`.
        ends_at: When the task ends, in epoch seconds.
        delay: The setting `callback_delay_seconds`.
    """
    return {
        "on_time": (ends_at,),
        "late": (ends_at + delay,),
        "twice": (ends_at, ends_at + delay),
        "early": (ends_at - delay, ends_at),
    }.get(callback, ())


def _read_item(item: object) -> tuple[str, int]:
    if isinstance(item, str):
        return item, 1
    if isinstance(item, list | tuple) and len(item) == 2:  # noqa: PLR2004  a pair
        name, times = item
        whole = isinstance(times, int) and not isinstance(times, bool)
        if isinstance(name, str) and whole and 1 <= times <= _MOST_TIMES:
            return name, times
    raise ValueError(
        f"A scripted item is {item!r}; it must be the name of a behaviour, or a pair of a name and how many times "
        f"(1 to {_MOST_TIMES})."
    )
