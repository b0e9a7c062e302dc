"""Tasks that ask for the same image in the same folder at the same time share one payment."""

from pathlib import Path
from typing import Any

import pytest

from airflow_provider_qwenimage import QwenImageGenerateOperator
from airflow_provider_qwenimage.sandbox import Sandbox
from tests.events import UNTIL_SECOND_POLL, finish_images, run_when, status_reads
from tests.integration.dag_runs import TaskEnd, TestDag, visible_files
from tests.integration.interruptions import crash, handling_signal, send_signal

in_both_ways = pytest.mark.parametrize("deferrable", [False, True], ids=["in the worker", "deferred"])

# Not the seconds after which `draw_at_second_poll` finishes an image.
_NEVER = 2 * UNTIL_SECOND_POLL


def _finishing_for_retries(api: Sandbox) -> Any:
    """Return a `pre_execute` that finishes every image before the second tries."""
    api.configure(seconds_per_image=_NEVER)

    def finish(context: Any) -> None:
        if context["ti"].try_number == 2:
            finish_images(api)

    return finish


def _three(api: Sandbox, folder: Path, **arguments: Any) -> TestDag:
    """Return a DAG with three equal mapped tasks; none finds an image before all have tried."""
    dag = TestDag()
    with dag:
        QwenImageGenerateOperator.partial(
            **{
                "task_id": "draw",
                "poll_interval": 0.01,
                "timeout": 0.2,
                "output_path": str(folder),
                "pre_execute": _finishing_for_retries(api),
            }
            | arguments
        ).expand(prompt=["A tin robot"] * 3)
    return dag


def _assert_paid_once(ends: list[TaskEnd], api: Sandbox, folder: Path) -> None:
    (submission,) = api.submissions
    assert [end.state for end in ends] == ["success"] * len(ends)
    assert {end.returned["task_id"] for end in ends} == {submission.task_id}
    assert len({tuple(end.returned["paths"]) for end in ends}) == 1
    assert len(visible_files(folder)) == 2
    # The credits belong to the task that submitted.
    assert sorted(end.returned["reused"] for end in ends) == [False] + [True] * (len(ends) - 1)
    assert sorted(end.returned["consumed_credits"] for end in ends) == [0] * (len(ends) - 1) + [5]
    for end in ends:
        assert end.returned["consumed_credits"] == end.xcoms["consumed_credits"]
        assert (end.returned["consumed_credits"] == 0) == end.returned["reused"]


@in_both_ways
def test_equal_mapped_tasks_with_a_seed_share_one_payment(
    connected_api: Sandbox, tmp_path: Path, deferrable: bool
) -> None:
    ends = _three(connected_api, tmp_path, seed=7, deferrable=deferrable).run().mapped("draw")

    _assert_paid_once(ends, connected_api, tmp_path)
    assert [end.tries for end in ends] == [2] * 3


@in_both_ways
def test_equal_mapped_tasks_with_a_random_seed_are_images_of_their_own(
    connected_api: Sandbox, tmp_path: Path, deferrable: bool
) -> None:
    run = _three(connected_api, tmp_path, deferrable=deferrable).run()

    assert run.state == "success"
    assert len(connected_api.submissions) == 3
    ends = run.mapped("draw")
    assert {end.returned["task_id"] for end in ends} == {each.task_id for each in connected_api.submissions}
    assert [end.returned["reused"] for end in ends] == [False] * 3
    assert len(visible_files(tmp_path)) == 6


def _two_tasks(folder: Path, **arguments: Any) -> TestDag:
    dag = TestDag()
    with dag:
        for name in ("ash", "birch"):
            QwenImageGenerateOperator(
                task_id=name, prompt="A boat", poll_interval=0.01, output_path=str(folder), **arguments
            )
    return dag


@in_both_ways
@pytest.mark.parametrize("seed", [-1, 7])
def test_two_tasks_that_ask_for_the_same_image_share_one_payment(
    connected_api: Sandbox, tmp_path: Path, deferrable: bool, seed: int
) -> None:
    finishing = _finishing_for_retries(connected_api)
    run = _two_tasks(tmp_path, seed=seed, deferrable=deferrable, timeout=0.2, pre_execute=finishing).run()

    _assert_paid_once([run["ash"], run["birch"]], connected_api, tmp_path)
    assert (run["ash"].tries, run["birch"].tries) == (2, 2)


@in_both_ways
def test_a_task_takes_over_the_image_of_an_equal_one_that_crashed_after_its_submission(
    connected_api: Sandbox, tmp_path: Path, deferrable: bool
) -> None:
    connected_api.configure(seconds_per_image=0, hang_seconds=3600)
    connected_api.script("status", "hang")
    dag = _two_tasks(tmp_path, seed=7, deferrable=deferrable)
    with handling_signal(crash), run_when(lambda: status_reads(connected_api), send_signal):
        run = dag.run()

    ends = [run["ash"], run["birch"]]
    _assert_paid_once(ends, connected_api, tmp_path)
    (crashed,) = (end for end in ends if end.errors)
    # The image of the crashed task is stored by the other one, and stays its own.
    assert (crashed.tries, crashed.returned["reused"], crashed.returned["consumed_credits"]) == (2, False, 5)


def _draw_boat(folder: Path, **arguments: Any) -> TaskEnd:
    """Run a new DAG with one task."""
    dag = TestDag()
    with dag:
        QwenImageGenerateOperator(
            task_id="draw", prompt="A boat", poll_interval=0.01, output_path=str(folder), **arguments
        )
    return dag.run()["draw"]


@in_both_ways
@pytest.mark.parametrize("seed", [-1, 7])
def test_another_run_fetches_what_a_dead_run_has_paid_for(
    connected_api: Sandbox, tmp_path: Path, deferrable: bool, seed: int
) -> None:
    connected_api.configure(seconds_per_image=_NEVER)
    dead = _draw_boat(tmp_path, seed=seed, deferrable=deferrable, timeout=0.1)
    (submission,) = connected_api.submissions
    assert dead.state == "failed"
    finish_images(connected_api)

    draw = _draw_boat(tmp_path, seed=seed, deferrable=deferrable)
    assert len(connected_api.submissions) == 1
    assert (draw.state, draw.returned["task_id"]) == ("success", submission.task_id)
    assert (draw.returned["reused"], draw.returned["consumed_credits"]) == (True, 0)
    assert len(visible_files(tmp_path)) == 2


@in_both_ways
def test_a_new_request_is_submitted_beside_what_a_dead_run_has_paid_for(
    connected_api: Sandbox, tmp_path: Path, deferrable: bool
) -> None:
    connected_api.configure(seconds_per_image=_NEVER)
    assert _draw_boat(tmp_path, seed=7, timeout=0.1, retries=0).state == "failed"
    finish_images(connected_api)

    draw = _draw_boat(tmp_path, seed=8, deferrable=deferrable)
    _, submission = connected_api.submissions
    assert (draw.state, draw.returned["task_id"]) == ("success", submission.task_id)


@in_both_ways
def test_an_equal_task_stops_at_a_submission_without_an_answer_and_names_the_task_that_made_it(
    connected_api: Sandbox, tmp_path: Path, deferrable: bool
) -> None:
    connected_api.script("generate", "drop_after")
    started: list[str] = []
    run = _two_tasks(
        tmp_path,
        seed=7,
        deferrable=deferrable,
        timeout=3,
        retries=0,
        pre_execute=lambda context: started.append(context["ti"].task_id),
    ).run()

    assert len(connected_api.submissions) == 1
    assert (run["ash"].state, run["birch"].state) == ("failed", "failed")
    first, second = started
    assert first in str(run[second].error)
