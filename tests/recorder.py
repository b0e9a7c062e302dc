"""Make Airflow report its metrics to a logger of the test."""

from __future__ import annotations

from collections import Counter
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import Stats

from tests.airflows import AIRFLOW


def metrics_module(module: str) -> Any:
    """Return a module of Airflow's metrics, which have moved in Airflow 3."""
    if find_spec("airflow.metrics") and find_spec(f"airflow.metrics.{module}"):
        return import_module(f"airflow.metrics.{module}")
    return import_module(f"airflow.sdk._shared.observability.metrics.{module}")


def report_to(logger: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make Airflow use a logger for its metrics, as its configuration does."""
    if AIRFLOW >= (3, 3):
        module = import_module(Stats.incr.__module__)
        for name in ("_factory", "_backend", "_export_legacy_names"):
            monkeypatch.setattr(module, name, getattr(module, name))
        Stats.initialize(factory=lambda: logger, export_legacy_names=True)
    else:
        monkeypatch.setattr(Stats, "instance", logger, raising=False)


_NoStatsLogger: Any = metrics_module("base_stats_logger").NoStatsLogger


class Recorder(_NoStatsLogger):
    """A logger that adds up the counters of this package."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sums: Counter[str] = Counter()
        report_to(self, monkeypatch)

    def incr(self, stat: str, count: Any = 1, rate: float = 1, *, tags: dict[str, Any] | None = None) -> None:
        if stat.startswith("qwenimage."):
            self.sums[stat + "".join(f",{name}={value}" for name, value in (tags or {}).items())] += count


def failure(kind: str, times: int = 1) -> dict[str, float]:
    """Return the counters of a number of failures of a kind."""
    return {f"qwenimage.failures,kind={kind}": times, f"qwenimage.failures.{kind}": times}
