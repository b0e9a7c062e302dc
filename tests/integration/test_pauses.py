"""A submission that the API has refused, or that was not sent yet, is known not to be accepted."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowTaskTimeout

from airflow_provider_qwenimage.sandbox import Sandbox
from tests.integration.dag_runs import Crash, TaskEnd, TestDag, dag_that_draws, with_aims
from tests.integration.interruptions import (
    Write,
    around_each_write,
    crash,
    in_the_pause_after_a_refusal,
    needs_task_state,
    submitting,
)
from tests.stores import MemoryStore, attach

with_any_record = with_aims("submitted", "waited for", "stored", "stored, deferred", recorded=True)
# Airflow's limit of a try, which only the test makes pass.
_LONG = timedelta(hours=1)


def _time_out() -> None:
    raise AirflowTaskTimeout("Timeout")


def _assert_submitted_by_the_retry(draw: TaskEnd, api: Sandbox) -> None:
    (submission,) = api.submissions
    assert [str(error) for error in draw.errors if "may have been accepted" in str(error)] == []
    assert (draw.state, draw.tries) == ("success", 2)
    assert draw.xcoms["task_id"] == submission.task_id


@with_any_record
@pytest.mark.parametrize("end", [_time_out, crash], ids=["execution_timeout", "crash"])
def test_a_try_that_ends_in_the_pause_after_a_429_has_submitted_nothing(
    connected_api: Sandbox, aim: dict[str, Any], end: Callable[[], None]
) -> None:
    connected_api.configure(retry_after=30)
    connected_api.script("generate", "rate_limit")
    dag = dag_that_draws(**aim, execution_timeout=_LONG)
    with in_the_pause_after_a_refusal(connected_api, end):
        draw = dag.run()["draw"]

    assert len(submitting(connected_api)) == 2
    _assert_submitted_by_the_retry(draw, connected_api)


@needs_task_state
@with_any_record
@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("is_written", [False, True], ids=["before it is written", "after it is written"])
def test_a_try_that_times_out_while_it_writes_before_the_submission_has_submitted_nothing(
    connected_api: Sandbox, aim: dict[str, Any], monkeypatch: pytest.MonkeyPatch, number: int, is_written: bool
) -> None:
    timed_out = _time_out_at_write(connected_api, monkeypatch, number, is_written=is_written)
    draw = dag_that_draws(**aim, execution_timeout=_LONG).run()["draw"]

    if not timed_out:
        assert number > 0
        assert (draw.state, draw.tries, len(connected_api.submissions)) == ("success", 1, 1)
        return
    _assert_submitted_by_the_retry(draw, connected_api)


def _time_out_at_write(api: Sandbox, monkeypatch: pytest.MonkeyPatch, number: int, *, is_written: bool) -> list[bool]:
    """Have the `execution_timeout` pass during one of the writes before the submission.

    Returns:
        A list that is empty until then.
    """
    timed_out: list[bool] = []
    writes: list[Write] = []

    def time_out_once(write: Write) -> None:
        writes.append(write)
        is_time = len(writes) == number + 1 and not (api.submissions or timed_out)
        if is_written or not is_time:
            write()
        if is_time:
            timed_out.append(True)
            _time_out()

    around_each_write(monkeypatch, time_out_once)
    return timed_out


@needs_task_state
@with_any_record
def test_a_crash_before_the_first_write_arrives_has_submitted_nothing(
    connected_api: Sandbox, aim: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    crashes: list[bool] = []

    def crash_once(write: Write) -> None:
        if not crashes:
            crashes.append(True)
            raise Crash("while writing")
        write()

    around_each_write(monkeypatch, crash_once)
    _assert_submitted_by_the_retry(dag_that_draws(**aim).run()["draw"], connected_api)


class _StoreThatTimesOut(MemoryStore):
    """Has the `execution_timeout` pass after one of the writes before the submission."""

    def __init__(self, api: Sandbox, number: int) -> None:
        super().__init__("memory")
        self.api, self.number, self.writes = api, number, 0

    def pipe_file(self, path: str, value: bytes, **kwargs: Any) -> None:
        super().pipe_file(path, value, **kwargs)
        self.writes += 1
        if self.writes == self.number and not self.api.submissions:
            _time_out()


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("deferrable", [False, True], ids=["in the worker", "deferred"])
def test_a_try_that_times_out_while_it_writes_to_the_folder_before_the_submission_has_submitted_nothing(
    connected_api: Sandbox, number: int, deferrable: bool
) -> None:
    store = _StoreThatTimesOut(connected_api, number)
    folder = f"{attach(store, 'memory')}bucket/images"
    draw = dag_that_draws(output_path=folder, deferrable=deferrable, execution_timeout=_LONG).run()["draw"]

    assert len(connected_api.submissions) == 1
    assert draw.state == "success"


def _that_can_be_killed(aim: dict[str, Any]) -> tuple[TestDag, Callable[[], None]]:
    """Return a DAG, and a function that ends its running task as Airflow does if the task is marked as failed."""
    running: list[Any] = []
    # Not the task of the context: in Airflow 3.0 that is another copy of it.
    dag = dag_that_draws(**aim, retries=0, pre_execute=lambda context: running.append(context["ti"]))

    def kill() -> None:
        # Airflow calls it in the handler of a signal, which then returns to what it has interrupted.
        running[-1].task.on_kill()

    return dag, kill


def _assert_submitted_after_a_clear(dag: TestDag, draw: TaskEnd, api: Sandbox, sent: int) -> None:
    assert len(submitting(api)) == sent
    assert api.submissions == []
    assert draw.state != "success"

    assert dag.clear("draw").state == "success"
    assert len(api.submissions) == 1


@with_aims("submitted", "waited for", "waited for, deferred", "stored", "stored, deferred")
def test_a_task_that_is_marked_failed_in_the_pause_after_a_refusal_sends_nothing_more(
    connected_api: Sandbox, aim: dict[str, Any]
) -> None:
    connected_api.configure(retry_after=2)
    connected_api.script("generate", "rate_limit")
    dag, kill = _that_can_be_killed(aim)
    with in_the_pause_after_a_refusal(connected_api, kill):
        draw = dag.run()["draw"]

    _assert_submitted_after_a_clear(dag, draw, connected_api, sent=1)


@needs_task_state
@with_any_record
def test_a_task_that_is_marked_failed_before_it_submits_sends_nothing(
    connected_api: Sandbox, aim: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    dag, kill = _that_can_be_killed(aim)
    killed: list[bool] = []

    def kill_once(write: Write) -> None:
        if not killed:
            killed.append(True)
            kill()
        write()

    around_each_write(monkeypatch, kill_once)
    draw = dag.run()["draw"]

    _assert_submitted_after_a_clear(dag, draw, connected_api, sent=0)
