"""Clearing a task: the first clear resumes an unfinished image, the second draws a lost image again."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_qwenimage.exceptions import QwenImageNotFoundError
from airflow_provider_qwenimage.hooks import QwenImageHook
from airflow_provider_qwenimage.sandbox import Sandbox
from airflow_provider_qwenimage.tasks.ledger import Ledger
from tests.integration.dag_runs import DagRun, TaskEnd, TestDag, crash_once, dag_that_draws, stored_files, with_aims

in_storage = with_aims("stored", "stored, deferred")
waiting = with_aims("waited for", "waited for, deferred", "stored", "stored, deferred", recorded=True)

# One failed read ends the task.
ONE_READ: dict[str, Any] = {"max_consecutive_failures": 1, "retries": 0}


def _ends(run: DagRun) -> list[TaskEnd]:
    assert run.state == "success"
    return run.mapped("draw") or [run["draw"]]


@with_aims("submitted", "waited for", "waited for, deferred", "submitted, mapped")
def test_clearing_a_finished_task_that_stores_nothing_draws_a_new_image(
    connected_api: Sandbox, aim: dict[str, Any]
) -> None:
    dag = dag_that_draws(**aim)
    before = _ends(dag.run())
    after = _ends(dag.clear("draw"))

    assert len(connected_api.submissions) == len(before) * 2
    task_ids = {end.xcoms["task_id"] for end in [*before, *after]}
    assert task_ids == {submission.task_id for submission in connected_api.submissions}


@with_aims("submitted", "waited for", "waited for, deferred", "stored", "stored, deferred")
@pytest.mark.parametrize("fault", ["drop_after", "malformed"])
def test_a_clear_submits_once_after_a_lost_answer(connected_api: Sandbox, aim: dict[str, Any], fault: str) -> None:
    connected_api.script("generate", fault)
    dag = dag_that_draws(**aim)
    lost = dag.run()["draw"]
    assert (lost.state, lost.tries, len(connected_api.submissions)) == ("failed", 1, 1)

    (end,) = _ends(dag.clear("draw"))
    assert end.tries == 2
    assert len(connected_api.submissions) == 2
    assert end.xcoms["task_id"] == connected_api.submissions[-1].task_id


@waiting
def test_clearing_a_failed_task_resumes_the_paid_image(
    connected_api: Sandbox, aim: dict[str, Any], task_log: Callable[[], str]
) -> None:
    connected_api.script("status", "not_found")
    dag = dag_that_draws(**aim, **ONE_READ)
    failed = dag.run()["draw"]
    assert (failed.state, failed.tries) == ("failed", 1)
    task_log()

    (end,) = _ends(dag.clear("draw"))
    (submission,) = connected_api.submissions
    assert end.returned["task_id"] == submission.task_id
    assert (end.returned["consumed_credits"], end.returned["reused"]) == (5, False)
    assert f"Resuming image task {submission.task_id}" in task_log()


@waiting
def test_the_second_clear_submits_a_new_image_if_the_image_task_is_gone(
    connected_api: Sandbox, aim: dict[str, Any], task_log: Callable[[], str]
) -> None:
    connected_api.script("status", "not_found", "not_found")
    dag = dag_that_draws(**aim, **ONE_READ)
    assert dag.run().state == "failed"

    missed = dag.clear("draw")["draw"]
    (submission,) = connected_api.submissions
    assert (missed.state, missed.tries) == ("failed", 2)
    assert isinstance(missed.error, QwenImageNotFoundError)
    assert submission.task_id in str(missed.error)
    assert "Clear the task again to submit (and pay for) a new image" in task_log()

    (end,) = _ends(dag.clear("draw"))
    assert end.returned["task_id"] == connected_api.submissions[-1].task_id
    assert len(connected_api.submissions) == 2
    log = task_log()
    assert "This task was cleared, and its image could not be fetched: it submits a new image" in log
    assert f"The earlier image task, {submission.task_id}, may be paid" in log


@in_storage
def test_the_second_clear_submits_a_new_image_if_the_image_is_gone(
    connected_api: Sandbox, aim: dict[str, Any], tmp_path: Path, quick_downloads: None
) -> None:
    # Each try downloads up to six times, and the task has three tries before the clear and three after it.
    connected_api.script("image", ("not_found", 2 * 3 * 6))
    dag = dag_that_draws(**aim)
    for runs in (1, 2):
        draw = dag.run()["draw"] if runs == 1 else dag.clear("draw")["draw"]
        assert (draw.state, draw.tries) == ("failed", 3 * runs)
        assert len(connected_api.submissions) == 1
        assert stored_files(tmp_path) == []

    (end,) = _ends(dag.clear("draw"))
    assert end.returned["task_id"] == connected_api.submissions[-1].task_id
    assert len(connected_api.submissions) == 2
    assert len(stored_files(tmp_path)) == 2


@waiting
def test_a_cleared_task_whose_request_has_changed_submits_the_new_request(
    connected_api: Sandbox, aim: dict[str, Any], task_log: Callable[[], str]
) -> None:
    numbers = itertools.count(100)
    connected_api.script("status", "not_found")
    dag = dag_that_draws(
        TestDag(user_defined_macros={"next_number": numbers.__next__}),
        **aim,
        **ONE_READ,
        prompt="Boat {{ next_number() }}",
    )
    assert dag.run().state == "failed"
    task_log()

    (end,) = _ends(dag.clear("draw"))
    first, second = connected_api.submissions
    assert first.request["prompt"] != second.request["prompt"]
    assert end.returned["task_id"] == second.task_id
    assert end.xcoms["request"] == second.request
    log = task_log()
    assert "the request has changed since" in log
    assert f"The earlier image task, {first.task_id}, may be paid" in log


@waiting
def test_a_retry_resumes_after_a_crash_at_the_end_of_a_cleared_task(
    connected_api: Sandbox, aim: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    connected_api.script("status", ("not_found", 3))
    dag = dag_that_draws(**aim, max_consecutive_failures=1)
    assert dag.run().state == "failed"
    crash_once(monkeypatch, Ledger, "finish", after=True)

    (end,) = _ends(dag.clear("draw"))
    (submission,) = connected_api.submissions
    assert (end.tries, [str(error) for error in end.errors]) == (5, ["finish"])
    assert end.returned["task_id"] == submission.task_id
    assert (end.returned["consumed_credits"], end.returned["reused"]) == (5, False)


@waiting
def test_a_clear_submits_a_refused_prompt_again(connected_api: Sandbox, aim: dict[str, Any]) -> None:
    connected_api.script("generate", "policy")
    dag = dag_that_draws(**aim)
    assert dag.run()["draw"].tries == 1

    assert dag.clear("draw").state == "success"
    assert len(connected_api.submissions) == 2


@waiting
def test_a_retry_that_resumes_a_refused_prompt_stops(
    connected_api: Sandbox, aim: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    connected_api.script("generate", "policy")
    crash_once(monkeypatch, QwenImageHook, "check")
    draw = dag_that_draws(**aim).run()["draw"]

    assert (draw.state, draw.tries) == ("failed", 2)
    assert "QwenImageContentPolicyError" in str(draw.errors[-1])
    assert len(connected_api.submissions) == 1


@waiting
def test_a_retry_that_finds_the_image_failed_submits_again_in_the_same_try(
    connected_api: Sandbox, aim: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    connected_api.configure(seconds_per_image=0)
    connected_api.script("generate", "failure")
    crash_once(monkeypatch, Ledger, "accept", after=True)
    (end,) = _ends(dag_that_draws(**aim).run())

    assert (end.tries, len(end.errors)) == (2, 1)
    assert [submission.charged for submission in connected_api.submissions] == [0, 5]
    assert end.returned["task_id"] == connected_api.submissions[-1].task_id
    assert end.xcoms["consumed_credits"] == 5


@waiting
@pytest.mark.parametrize(("outcome", "submissions"), [("failure", 2), ("policy", 1)])
def test_a_clear_that_finds_the_image_failed_submits_again_unless_the_prompt_is_refused(
    connected_api: Sandbox, aim: dict[str, Any], outcome: str, submissions: int
) -> None:
    connected_api.script("generate", outcome)
    connected_api.script("status", ("not_found", 3))
    dag = dag_that_draws(**aim, max_consecutive_failures=1)
    assert dag.run().state == "failed"

    draw = dag.clear("draw")["draw"]
    assert len(connected_api.submissions) == submissions
    assert draw.state == ("success" if outcome == "failure" else "failed")
    assert dag.clear("draw").state == "success"


@waiting
@pytest.mark.parametrize(("outcome", "submissions"), [("failure", 2), ("policy", 1)])
def test_a_crash_after_a_failure_is_recorded_changes_nothing(
    connected_api: Sandbox, aim: dict[str, Any], monkeypatch: pytest.MonkeyPatch, outcome: str, submissions: int
) -> None:
    connected_api.script("generate", outcome)
    crash_once(monkeypatch, Ledger, "fail", after=True)
    draw = dag_that_draws(**aim).run()["draw"]

    assert (draw.state, draw.tries) == ("success" if outcome == "failure" else "failed", 2)
    assert len(connected_api.submissions) == submissions
