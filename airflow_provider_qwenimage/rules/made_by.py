"""Identifies an Airflow task instance: for links, for the names of its files, and in sidecars. No I/O."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, NamedTuple
from uuid import UUID

_ITERATION = "iteration"
# A map index is below this: in Airflow's database it has 32 bits and a sign.
_MAP_INDEXES = 2**31


class Instance(NamedTuple):
    """A task instance as Airflow's pages and XComs address it; `map_index` is -1 if the task is not mapped."""

    dag_id: str
    run_id: str
    task_id: str
    map_index: int


class Region(NamedTuple):
    """What tells the task instances of a loop's iterations apart, as Airflow's pages address it (3.4 and later).

    Attributes:
        id: Airflow's id of the loop, or of a mapped task in one iteration of it.
        position: The iteration, or the map index of the mapped task: Airflow's `region_index`.
    """

    id: str
    position: int


def instance_of(ti: Any) -> Instance:
    """Return the address of a task instance, or of its key."""
    return Instance(ti.dag_id, ti.run_id, ti.task_id, map_index_of(ti))


def map_index_of(ti: Any) -> int:
    """Return the map index of a task instance, or -1 if it is not mapped."""
    return -1 if ti.map_index is None else int(ti.map_index)


def is_mapped(map_index: int | None) -> bool:
    """Whether a map index is that of a mapped task: Airflow has -1 or None for others."""
    return map_index is not None and map_index >= 0


def iteration_of(ti: Any) -> int | None:
    """Return the iteration of the loop that a running task instance is in, counted from 0; None outside loops.

    Since Airflow 3.4 a task in a loop has a task instance in each iteration. A Clear may move it to another region, but
    not to another iteration.
    """
    region = getattr(ti, "region_id", None)
    # The region with the number 0 is none.
    if region is None or not UUID(str(region)).int:
        return None
    # A mapped task has a region of its own in each iteration, and outside loops as well: only the loop itself counts.
    context_of = getattr(ti, "get_template_context", None)
    loop = None if context_of is None else context_of().get("loop")
    if loop is not None:
        return int(loop.index)
    return int(ti.region_index) if map_index_of(ti) < 0 <= ti.region_index else None


def region_of(ti: Any) -> Region | None:
    """Return the region of a running task instance in a loop; None outside loops, where the map index is enough."""
    return None if iteration_of(ti) is None else Region(str(ti.region_id), int(ti.region_index))


def variant_of(ti: Any) -> int:
    """Return what tells a task instance's request from equal ones: 0, if it is neither mapped nor in a loop.

    See `GenerateRequest.fingerprint`. It is the map index in a mapped task, and differs in each iteration of a loop.
    """
    return max(0, map_index_of(ti)) + (iteration_of(ti) or 0) * _MAP_INDEXES


def state_scope_of(ti: Any) -> str:
    """Return the start of a task instance's keys in Airflow's task state: "", or "i2-" in iteration 2 of a loop.

    Airflow 3.4 itself keeps iterations apart. A state store of another make may know only the map index.
    """
    iteration = iteration_of(ti)
    return "" if iteration is None else f"i{iteration}-"


def description_of(ti: Any) -> dict[str, Any]:
    """Return what a sidecar records of a task instance. It changes when the task is cleared, not when it is retried."""
    names = ("dag_id", "run_id", "task_id", "map_index", "max_tries")
    described = {name: getattr(ti, name) for name in names}
    iteration = iteration_of(ti)
    return described if iteration is None else described | {_ITERATION: iteration}


def iteration_in(made_by: Mapping[str, Any]) -> int | None:
    """Return the iteration in what `description_of` returned; None outside loops."""
    return made_by.get(_ITERATION)


def writer_of(made_by: Mapping[str, Any]) -> str:
    """Return 16 hexadecimal digits that name the writer of hidden files: the same in each try of a task instance.

    Args:
        made_by: What `description_of` returned, or nothing.
    """
    identity = [made_by.get(name) for name in Instance._fields]
    # Outside loops the names are those of versions that knew no loops.
    if made_by.get(_ITERATION) is not None:
        identity.append(made_by[_ITERATION])
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
