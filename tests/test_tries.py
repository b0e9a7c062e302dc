"""Whether a task was cleared between two of its tries, for each way in which Airflow changes its numbers."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_qwenimage.rules.tries import Try


@dataclass
class Task:
    """A task of a run, as Airflow's scheduler keeps it."""

    counts_every_clear: bool
    retries: int
    number: int = 1
    max_tries: int = 0
    clear_number: int = 0

    def __post_init__(self) -> None:
        self.max_tries = self.retries

    def happens(self, event: tuple[str, int]) -> None:
        name, retries = event
        if name == "clear":
            self.retries = retries
            self.max_tries = self.number + self.retries
        if name in ("clear", "clear another task"):
            self.clear_number += self.counts_every_clear
        if name in ("clear", "retry"):
            self.number += 1
        if name == "edit":
            self.retries = retries

    def now(self) -> Try:
        return Try(
            number=self.number,
            max_tries=self.max_tries,
            clear_number=self.clear_number if self.counts_every_clear else None,
            retries=self.retries,
        )


def events(*names: str) -> st.SearchStrategy[list[tuple[str, int]]]:
    return st.lists(st.tuples(st.sampled_from(names), st.integers(0, 4)), max_size=6)


tasks = st.builds(Task, counts_every_clear=st.booleans(), retries=st.integers(0, 4))
anything = events("retry", "clear", "edit", "clear another task")


def tries(task: Task, before: list[tuple[str, int]], between: list[tuple[str, int]]) -> tuple[Try, Try]:
    for event in before:
        task.happens(event)
    earlier = task.now()
    for event in between:
        task.happens(event)
    return earlier, task.now()


@given(task=tasks, before=anything, between=events("retry", "edit", "clear another task"))
def test_a_retry_never_looks_like_a_clear(
    task: Task, before: list[tuple[str, int]], between: list[tuple[str, int]]
) -> None:
    earlier, now = tries(task, before, between)
    assert not now.was_cleared_since(earlier)


@given(
    task=tasks,
    before=anything,
    between=st.one_of(events("retry", "edit"), events("retry", "clear another task")),
)
def test_a_retry_of_a_worker_killed_right_after_its_end_looks_like_no_clear(
    task: Task, before: list[tuple[str, int]], between: list[tuple[str, int]]
) -> None:
    """A worker records the end of its task before Airflow knows it."""
    task.counts_every_clear = True
    # What an edited DAG file says applies from the next Clear on.
    task.happens(("clear", task.retries))
    earlier, now = tries(task, [event for event in before if event[0] != "edit"], between)
    assert not now.was_cleared_since(earlier, ended_for_good=True)


@given(task=tasks, before=anything, between=anything, retries=st.integers(0, 4), after=events("retry"))
def test_a_clear_of_a_task_that_has_ended_is_seen_whatever_its_retries_were(
    task: Task,
    before: list[tuple[str, int]],
    between: list[tuple[str, int]],
    retries: int,
    after: list[tuple[str, int]],
) -> None:
    earlier, now = tries(task, before, [*between, ("clear", retries), *after])
    assert now.was_cleared_since(earlier, ended_for_good=True)


FIRST = Try(number=1, max_tries=2, clear_number=0, retries=2)
# `retries` was lowered from 2 to 1; then the task was cleared after its first try: 1 + 1 is 2 again.
CLEARED = Try(number=2, max_tries=2, clear_number=1, retries=1)


def test_a_clear_after_retries_were_lowered_is_seen_once_the_earlier_try_has_ended() -> None:
    assert CLEARED.was_cleared_since(FIRST, ended_for_good=True)
    assert not CLEARED.was_cleared_since(FIRST)


def test_the_same_max_tries_needs_facts_that_agree_on_a_clear() -> None:
    """Without `retries`, or if no Clear of the run was counted, a retry explains the numbers as well."""
    for doubtful in (
        replace(CLEARED, retries=None),
        replace(CLEARED, retries=2),
        replace(CLEARED, clear_number=0),
        replace(CLEARED, number=1),
    ):
        assert not doubtful.was_cleared_since(FIRST, ended_for_good=True)
    assert replace(CLEARED, clear_number=None).was_cleared_since(FIRST, ended_for_good=True)
    assert CLEARED.was_cleared_since(replace(FIRST, clear_number=None, retries=None), ended_for_good=True)


@pytest.mark.parametrize("max_tries", [0, 1, 3, 4])
def test_another_max_tries_is_a_clear(max_tries: int) -> None:
    assert replace(CLEARED, max_tries=max_tries).was_cleared_since(FIRST)


def test_a_deferred_task_that_continues_its_try_was_not_cleared() -> None:
    assert not FIRST.was_cleared_since(FIRST, ended_for_good=True)


def test_a_try_is_read_from_the_context_of_a_task() -> None:
    ti = SimpleNamespace(try_number=2, max_tries=4, task=SimpleNamespace(retries=3))
    assert Try.of(ti, SimpleNamespace(clear_number=1)) == Try(number=2, max_tries=4, clear_number=1, retries=3)
    assert Try.of(ti) == Try(number=2, max_tries=4, retries=3)
    assert Try.of(SimpleNamespace(try_number=1, max_tries=0)) == Try(number=1, max_tries=0)


numbers = st.none() | st.integers(0, 99)


@given(st.builds(Try, number=st.integers(0, 99), max_tries=st.integers(0, 99), clear_number=numbers, retries=numbers))
def test_a_recorded_try_is_read_again(one: Try) -> None:
    assert Try.from_json(json.loads(json.dumps(one.to_json()))) == one


def test_the_record_of_an_earlier_version_is_read() -> None:
    record = {"request": {}, "try_number": 1, "max_tries": 2, "image_task_id": "n43"}
    assert Try.from_json(record) == Try(number=1, max_tries=2)


@pytest.mark.parametrize(
    "value",
    [None, [], "1", {}, {"try_number": 1}, {"try_number": True, "max_tries": 2}, {"try_number": 1, "max_tries": "2"}],
)
def test_what_is_no_record_of_a_try_is_not_read(value: object) -> None:
    assert Try.from_json(value) is None


@given(st.dictionaries(st.sampled_from(["try_number", "max_tries", "clear_number", "retries"]), st.from_type(object)))
def test_any_record_is_read_without_an_error(value: dict[str, object]) -> None:
    read = Try.from_json(value)
    assert read is None or read == Try.from_json(read.to_json())
