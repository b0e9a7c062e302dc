"""Counts in Airflow's metrics (StatsD or OpenTelemetry)."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, cast

from airflow.providers.common.compat.sdk import Stats


def count(name: str, number: float = 1, tags: dict[str, Any] | None = None) -> None:
    """Count something; an error of the metrics must not lose a paid image.

    Args:
        name: The name of the metric.
        number: How much to count.
        tags: Its tags, for backends that have some.
    """
    with suppress(Exception):
        # Airflow declares integers, but its backends take floats, and credits are floats.
        Stats.incr(name, cast("int", number), tags=tags)
