"""Airflow's own retries and Clears: what a task's context tells of them."""

from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException, BaseOperator

from airflow_provider_qwenimage.airflow_versions import COUNTS_EVERY_CLEAR
from airflow_provider_qwenimage.rules.tries import Try
from tests.airflows import AIRFLOW
from tests.integration.dag_runs import TestDag

pytestmark = pytest.mark.usefixtures("airflow_database")

_TRIES: list[Try] = []


class _NotesTries(BaseOperator):
    """Notes each try, and fails in the tries that are given."""

    def __init__(self, *, failures: dict[int, type[Exception]], **arguments: Any) -> None:
        super().__init__(**arguments)
        self.failures = failures

    def execute(self, context: Any) -> None:
        one = Try.of(context["ti"], context["dag_run"] if COUNTS_EVERY_CLEAR else None)
        _TRIES.append(one)
        if one.number in self.failures:
            raise self.failures[one.number]("This try is to fail.")


@pytest.fixture
def tries() -> list[Try]:
    """The tries of tasks, in order."""
    _TRIES.clear()
    return _TRIES


def _dag(failures: dict[int, type[Exception]] | None = None) -> TestDag:
    dag = TestDag()
    with dag:
        _NotesTries(task_id="draw", failures=failures or {})
    return dag


@pytest.mark.skipif(AIRFLOW == (3, 0), reason="Airflow 3.0 clears a task with the DAG of the run's start.")
@pytest.mark.parametrize("end", [AirflowFailException, None])
def test_a_clear_is_seen_although_fewer_retries_leave_max_tries_as_it_was(
    tries: list[Try], end: type[Exception] | None, changes_seen_at_once: None
) -> None:
    dag = _dag({1: end} if end else {})
    dag.run()
    dag.dag.task_dict["draw"].retries = 1
    dag.clear("draw", with_latest_dag=True)

    first, cleared = tries
    assert (first.max_tries, cleared.max_tries) == (2, 2)
    assert cleared.was_cleared_since(first, ended_for_good=True)
    assert not cleared.was_cleared_since(first)


def test_a_retry_is_no_clear(tries: list[Try]) -> None:
    _dag({1: RuntimeError, 2: RuntimeError}).run()

    first, second, third = tries
    assert [one.number for one in tries] == [1, 2, 3]
    for later in (second, third):
        assert not later.was_cleared_since(first, ended_for_good=True)


def test_a_clear_of_each_try_is_seen(tries: list[Try]) -> None:
    dag = _dag()
    dag.run()
    dag.clear("draw")
    dag.clear("draw")

    first, second, third = tries
    assert second.was_cleared_since(first)
    assert third.was_cleared_since(second)


@pytest.mark.skipif(not COUNTS_EVERY_CLEAR, reason="Before Airflow 3.2 a Clear in a running run is not counted.")
def test_the_run_counts_its_clears(tries: list[Try]) -> None:
    dag = _dag()
    dag.run()
    dag.clear("draw")
    assert [one.clear_number for one in tries] == [0, 1]
