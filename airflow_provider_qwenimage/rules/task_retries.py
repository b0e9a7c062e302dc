"""Decides what an error means for the retries of its Airflow task. No I/O."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from airflow_provider_qwenimage.exceptions import (
    QwenImageBatchError,
    QwenImageBudgetError,
    QwenImageError,
    QwenImageRateLimitError,
)

# Airflow's own limit for the pause before a retry, and the longest `Retry-After` that is read.
DEFAULT_MAX_DELAY = 86_400.0
DEFAULT_MAX_RESCHEDULES = 10

# Tasks that were refused together must not all come back together.
_SPREAD = 0.1
_LONGEST_SPREAD = 600.0
# A loop of causes is followed once, but a chain has no limit of its own.
_MOST_ERRORS = 1000


@dataclass(frozen=True)
class NoRetry:
    """A retry would only meet the same error, or pay again."""

    reason: str


@dataclass(frozen=True)
class RetryLater:
    """A try can get further later: the server asked to come back, or a budget resets then.

    Attributes:
        seconds: How long to wait.
        is_only_early: Whether nothing but a 429 or a budget is the cause, so that the try itself did nothing wrong.
        reason: Why so long.
    """

    seconds: float
    is_only_early: bool
    reason: str


RetryAdvice: TypeAlias = NoRetry | RetryLater | None


def advise_retry(
    error: BaseException, max_delay: float = DEFAULT_MAX_DELAY, draw: Callable[[], float] = random.random
) -> RetryAdvice:
    """Return what the error of a try means for a retry; None if nothing is known that the task's settings don't.

    An error that was raised ``from`` another one counts as that one, and a group of errors as all its members. A plain
    ValueError means nothing: the function of the task may have raised it itself.

    Args:
        error: What the try ended with.
        max_delay: The most seconds to wait.
        draw: Returns a random number from 0 to 1. A wait is up to a tenth longer than asked, and
            at most ten minutes.
    """
    errors = _errors_behind(error)
    for each in errors:
        if isinstance(each, QwenImageError) and each.permanent:
            return NoRetry(f"{type(each).__name__}: a retry would not help.")
    waits = [(_asked_seconds(each), each) for each in errors]
    asked, by = max(waits, key=lambda wait: wait[0], default=(0.0, error))
    if asked <= 0:
        return None
    asked = min(asked, max_delay)
    return RetryLater(
        seconds=min(asked + min(_SPREAD * asked, _LONGEST_SPREAD) * draw(), max_delay),
        is_only_early=all(isinstance(each, QwenImageRateLimitError | QwenImageBudgetError) for each in errors),
        reason=_reason(by),
    )


def _reason(error: BaseException) -> str:
    asked = _asked_seconds(error)
    if isinstance(error, QwenImageBudgetError | QwenImageBatchError):
        return f"{type(error).__name__}: a budget resets in {asked:.0f} s."
    return f"{type(error).__name__}: the server asked to wait {min(asked, DEFAULT_MAX_DELAY):.0f} s."


def _errors_behind(error: BaseException) -> list[BaseException]:
    """Return this package's errors that an error is raised from or made of, and the last of all other causes."""
    found: list[BaseException] = []
    seen: set[int] = set()
    left: list[BaseException] = [error]
    while left and len(seen) < _MOST_ERRORS:
        each = left.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, QwenImageError):
            # Not its own causes: a wait that gave up after a 404 may go on.
            found.append(each)
        elif isinstance(each, BaseExceptionGroup):
            left.extend(each.exceptions)
        elif each.__cause__ is not None:
            left.append(each.__cause__)
        else:
            found.append(each)
    return found


def _asked_seconds(error: BaseException) -> float:
    seconds = getattr(error, "retry_after", None) if isinstance(error, QwenImageError) else None
    # NaN is not above 0.
    return seconds if isinstance(seconds, int | float) and seconds > 0 else 0.0
