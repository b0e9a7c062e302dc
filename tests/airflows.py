"""Which Airflow the tests run on, and what it has. Airflow itself is asked, not the README's table."""

from __future__ import annotations

from airflow import __version__
from airflow.triggers.base import BaseTrigger

AIRFLOW = tuple(int(part) for part in __version__.split(".")[:2])
AIRFLOW_3 = AIRFLOW >= (3, 0)
# Task states came to Airflow together with kills of triggers, in 3.3.
HAS_TASK_STATES = hasattr(BaseTrigger, "on_kill")
