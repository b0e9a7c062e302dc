"""Identifies an Airflow task instance: for links, for the names of its files, and in sidecars. No I/O."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, NamedTuple


class Instance(NamedTuple):
    """A task instance as Airflow's pages and XComs address it; `map_index` is -1 if the task is not mapped."""

    dag_id: str
    run_id: str
    task_id: str
    map_index: int


def instance_of(ti: Any) -> Instance:
    """Return the address of a task instance, or of its key."""
    return Instance(ti.dag_id, ti.run_id, ti.task_id, map_index_of(ti))


def map_index_of(ti: Any) -> int:
    """Return the map index of a task instance, or -1 if it is not mapped."""
    return -1 if ti.map_index is None else int(ti.map_index)


def variant_of(ti: Any) -> int:
    """Return what tells a task instance's request from equal ones: its map index, or 0 if it is not mapped.

    See `GenerateRequest.fingerprint`.
    """
    return max(0, map_index_of(ti))


def description_of(ti: Any) -> dict[str, Any]:
    """Return what a sidecar records of a task instance. It changes when the task is cleared, not when it is retried."""
    names = ("dag_id", "run_id", "task_id", "map_index", "max_tries")
    return {name: getattr(ti, name) for name in names}


def writer_of(made_by: Mapping[str, Any]) -> str:
    """Return 16 hexadecimal digits that name the writer of hidden files: the same in each try of a task instance.

    Args:
        made_by: What `description_of` returned, or nothing.
    """
    identity = json.dumps([made_by.get(name) for name in Instance._fields])
    return hashlib.sha256(identity.encode()).hexdigest()[:16]
