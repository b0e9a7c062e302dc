"""Says which Airflow task instance is at work: its name for files, and what a sidecar tells of it. No I/O."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def writer_of(made_by: Mapping[str, Any]) -> str:
    """Return a name for the Airflow task that writes: the same in each of its tries.

    Args:
        made_by: What tells of the task: at least `dag_id`, `run_id`, `task_id` and `map_index`, or nothing.
    """
    identity = json.dumps([made_by.get(name) for name in ("dag_id", "run_id", "task_id", "map_index")])
    return hashlib.sha256(identity.encode()).hexdigest()[:16]


def description_of(ti: Any) -> dict[str, Any]:
    """Return what a sidecar tells of a task instance. It changes when the task is cleared, not when it is retried."""
    names = ("dag_id", "run_id", "task_id", "map_index", "max_tries")
    return {name: getattr(ti, name) for name in names}


def place_of(ti: Any) -> int:
    """Return a task instance's place among its like: its map index, or 0 where it is not mapped."""
    return max(0, ti.map_index or 0)
