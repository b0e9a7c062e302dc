"""Counts submissions, images, credits and failures in Airflow's metrics (StatsD or OpenTelemetry)."""

from __future__ import annotations

import re

from airflow_provider_qwenimage.client.counters import count
from airflow_provider_qwenimage.exceptions import QwenImageError

_SUBMISSIONS = "qwenimage.submissions"
_IMAGES = "qwenimage.images"
_CREDITS = "qwenimage.credits_consumed"
_FAILURES = "qwenimage.failures"


def count_submission() -> None:
    """Count a submission that the API accepted."""
    count(_SUBMISSIONS)


def count_end(images: int, consumed_credits: float | None) -> None:
    """Count the images and the credits of an image task that ended, as SUCCESS or as FAILED.

    Args:
        images: How many images it returned.
        consumed_credits: What it cost. None, if the API did not report it, counts as nothing.
    """
    if images:
        count(_IMAGES, images)
    if consumed_credits:
        count(_CREDITS, consumed_credits)


def count_failure(error: BaseException) -> None:
    """Count a failed try of a task by the kind of its error: as a metric of its own, and as a tag."""
    kind = kind_of(error)
    count(_FAILURES, tags={"kind": kind})
    # Plain StatsD has no tags.
    count(f"{_FAILURES}.{kind}")


def kind_of(error: BaseException) -> str:
    """Return an error's kind: its class name in lower case, without "QwenImage" and "Error".

    Args:
        error: A `QwenImageError` (``content_policy``, ``submission_unknown``, …), a ValueError
            (``argument``), or any other (``other``).
    """
    if isinstance(error, QwenImageError):
        words = type(error).__name__.removeprefix("QwenImage").removesuffix("Error")
        return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", words).lower() or "other"
    return "argument" if isinstance(error, ValueError) else "other"
