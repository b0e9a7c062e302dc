"""Writes to Airflow's task state that arrive late, twice or never lose no image and pay for none twice."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_qwenimage.sandbox import Sandbox
from tests.airflows import AIRFLOW
from tests.integration.changed_answers import Answer, Front
from tests.integration.dag_runs import Crash, TaskEnd, TestDag, dag_that_draws, visible_files, with_aims
from tests.integration.interruptions import Write, around_each_write, clear_running_task, needs_task_state, run_next_try

pytestmark = needs_task_state

with_every_aim = with_aims("submitted", "waited for", "waited for, deferred", "stored", "stored, deferred")


def _assert_paid_once(draw: TaskEnd, api: Sandbox, folder: Path, aim: dict[str, Any]) -> None:
    (submission,) = api.submissions
    assert draw.state == "success"
    assert draw.xcoms["task_id"] == submission.task_id
    returned = draw.returned if isinstance(draw.returned, str) else draw.returned["task_id"]
    assert returned == submission.task_id
    assert len(visible_files(folder)) == (2 if "output_path" in aim else 0)


@with_every_aim
@pytest.mark.parametrize("refused", [0, 1], ids=["accepted at once", "accepted after a 429"])
def test_writes_that_are_repeated_after_the_id_is_written_do_not_take_it_back(
    connected_api: Sandbox, aim: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: int
) -> None:
    made: list[Write] = []
    crashes: list[Crash] = []

    def repeat_after_the_id(write: Write) -> None:
        write()
        if connected_api.submissions and not crashes:
            crashes.append(Crash("after the id"))
            # The oldest arrives last.
            for earlier in reversed(made):
                earlier()
            raise crashes[0]
        made.append(write)

    connected_api.configure(retry_after=0)
    if refused:
        connected_api.script("generate", ("rate_limit", refused))
    around_each_write(monkeypatch, repeat_after_the_id)
    draw = dag_that_draws(**aim).run()["draw"]

    _assert_paid_once(draw, connected_api, tmp_path, aim)


@with_every_aim
@pytest.mark.parametrize("repeated", [0, 1, 2])
def test_a_write_that_is_repeated_at_the_end_of_a_try_changes_nothing_for_its_retry(
    connected_api: Sandbox, aim: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repeated: int
) -> None:
    made: list[Write] = []

    def note(write: Write) -> None:
        write()
        made.append(write)

    def repeat_and_crash(context: Any, result: Any = None) -> None:
        if context["ti"].try_number == 1:
            for late in made[repeated : repeated + 1]:
                late()
            raise Crash("at the end")

    around_each_write(monkeypatch, note)
    draw = dag_that_draws(**aim, post_execute=repeat_and_crash).run()["draw"]

    assert (draw.tries, [str(error) for error in draw.errors]) == (2, ["at the end"])
    _assert_paid_once(draw, connected_api, tmp_path, aim)


def _run_and_clear_while_submitting(api: Sandbox, monkeypatch: pytest.MonkeyPatch, dag: TestDag) -> None:
    """Run a DAG, and clear its task while the answer to the submission is on its way."""
    cleared: list[bool] = []

    def clear_once(route: str, answer: Answer) -> Answer:
        if route == "generate" and not cleared:
            cleared.append(True)
            clear_running_task(dag)
        return answer

    with Front(api, clear_once) as front, monkeypatch.context() as patch:
        patch.setenv("AIRFLOW_CONN_QWENIMAGE_DEFAULT", front.connection_json)
        dag.run()
    assert cleared


@with_aims("stored", "stored, deferred")
def test_a_task_that_is_cleared_while_it_submits_finds_its_image_in_the_folder(
    connected_api: Sandbox, aim: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dag = dag_that_draws(**aim)
    _run_and_clear_while_submitting(connected_api, monkeypatch, dag)

    draw = run_next_try(dag)["draw"]
    _assert_paid_once(draw, connected_api, tmp_path, aim)


@pytest.mark.skipif(AIRFLOW >= (3, 4), reason="Since Airflow 3.4 a cleared try can write until it ends.")
@with_aims("submitted", "waited for", "waited for, deferred")
def test_a_task_that_is_cleared_while_it_submits_without_a_folder_names_the_log_that_has_the_id(
    connected_api: Sandbox, aim: dict[str, Any], monkeypatch: pytest.MonkeyPatch, task_log: Callable[[], str]
) -> None:
    dag = dag_that_draws(**aim)
    _run_and_clear_while_submitting(connected_api, monkeypatch, dag)
    (submission,) = connected_api.submissions
    assert submission.task_id in task_log()

    stopped = run_next_try(dag)["draw"]
    assert (stopped.state, len(connected_api.submissions)) == ("failed", 1)
    error = str(stopped.errors[-1])
    assert "QwenImageSubmissionUnknownError" in error
    assert re.search(r"log of try 1\b|try 1('s)? log\b", error)

    assert dag.clear("draw").state == "success"
    assert len(connected_api.submissions) == 2
