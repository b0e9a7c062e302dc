"""How task instances are told apart: by their map index, and since Airflow 3.4 by the iteration of a loop."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_qwenimage.rules.batch_rows import manifest_name
from airflow_provider_qwenimage.rules.made_by import (
    Region,
    description_of,
    iteration_in,
    iteration_of,
    region_of,
    state_scope_of,
    variant_of,
    writer_of,
)

NO_REGION = UUID(int=0)
REGION = UUID("01a217f6-8cfd-73ab-9385-f49cfd7cde9c")
OTHER_REGION = UUID("01a217f6-8d39-72e2-83a2-0d0f3571678b")


def task_instance(map_index: int | None = -1, **fields: Any) -> SimpleNamespace:
    identity = {"dag_id": "foxes", "run_id": "manual__1", "task_id": "draw", "map_index": map_index, "max_tries": 2}
    return SimpleNamespace(**identity | fields)


def in_loop(iteration: int, map_index: int = -1, region: UUID = REGION) -> SimpleNamespace:
    """A task instance as Airflow 3.4 describes it to a worker."""
    index = iteration if map_index < 0 else map_index
    context = {"loop": SimpleNamespace(index=iteration)}
    return task_instance(map_index, region_id=region, region_index=index, get_template_context=lambda: context)


def manifest_of(ti: SimpleNamespace) -> str:
    made_by = description_of(ti)
    return manifest_name(made_by["map_index"], iteration_in(made_by))


OUTSIDE = {
    "before Airflow 3.4": task_instance(),
    "mapped, before Airflow 3.4": task_instance(3),
    "of Airflow 2, not mapped": task_instance(None),
    "in no region": task_instance(region_id=NO_REGION, region_index=-1, get_template_context=dict),
    "in no region, without its context": task_instance(region_id=NO_REGION, region_index=-1),
    "mapped, in no region": task_instance(3, region_id=NO_REGION, region_index=3, get_template_context=dict),
    "mapped, in a region of its own": task_instance(3, region_id=REGION, region_index=3, get_template_context=dict),
}


@pytest.mark.parametrize("ti", OUTSIDE.values(), ids=OUTSIDE)
def test_outside_loops_the_names_are_those_of_earlier_versions(ti: SimpleNamespace) -> None:
    assert iteration_of(ti) is None
    assert state_scope_of(ti) == ""
    assert region_of(ti) is None
    assert manifest_of(ti) == ("manifest-3.jsonl" if ti.map_index == 3 else "manifest.jsonl")
    assert variant_of(ti) == max(0, ti.map_index or 0)
    assert description_of(ti).keys() == {"dag_id", "run_id", "task_id", "map_index", "max_tries"}
    if ti.map_index is not None:
        assert writer_of(description_of(ti)) == {-1: "95ba0b002661aaea", 3: "b434adf10fceed97"}[ti.map_index]


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(-1, 2**31 - 1)), min_size=2, max_size=2, unique=True))
def test_each_iteration_of_a_loop_has_names_of_its_own(places: list[tuple[int, int]]) -> None:
    one, other = (in_loop(iteration, map_index) for iteration, map_index in places)
    assert writer_of(description_of(one)) != writer_of(description_of(other))
    assert manifest_of(one) != manifest_of(other)
    assert region_of(one) == Region(str(REGION), one.region_index)
    # A task is mapped in all iterations or in none, so that -1 and 0 never meet.
    if (one.map_index < 0) == (other.map_index < 0):
        assert variant_of(one) != variant_of(other)
        assert (state_scope_of(one), one.map_index) != (state_scope_of(other), other.map_index)


def test_the_first_iteration_has_other_records_than_the_same_task_without_a_loop() -> None:
    outside = task_instance()
    assert writer_of(description_of(in_loop(0))) != writer_of(description_of(outside))
    assert (state_scope_of(in_loop(0)), state_scope_of(in_loop(12))) == ("i0-", "i12-")


def test_an_iteration_keeps_its_names_in_another_region_because_a_clear_can_move_it() -> None:
    before, after = in_loop(2), in_loop(2, region=OTHER_REGION)
    assert description_of(before) == description_of(after) == description_of(task_instance()) | {"iteration": 2}
    assert variant_of(before) == variant_of(after)


def test_the_iteration_is_known_without_the_context_of_the_task() -> None:
    assert iteration_of(task_instance(region_id=REGION, region_index=2)) == 2
