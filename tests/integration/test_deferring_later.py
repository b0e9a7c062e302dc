"""`defer_after`: a deferrable wait is first one of the worker, and defers as ever if the image takes longer."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowTaskTimeout, TaskDeferred, task

from airflow_provider_qwenimage import QwenImageGenerateOperator, QwenImageStatusSensor
from airflow_provider_qwenimage.airflow_versions import HAS_PLUGIN_PAGES
from airflow_provider_qwenimage.exceptions import QwenImageServerError, QwenImageTimeoutError
from airflow_provider_qwenimage.hooks import QwenImageHook
from airflow_provider_qwenimage.rules import polling
from airflow_provider_qwenimage.sandbox import Sandbox
from airflow_provider_qwenimage.triggers import QwenImageStatusTrigger
from tests.events import at_second_polls, finish_images, pass_execution_timeout, status_reads
from tests.integration.dag_runs import DagRun, TestDag, dag_that_draws, is_recorded, with_aims
from tests.integration.interruptions import handling_signal, send_signal

_LONG = 3600
_SHORT: dict[str, Any] = {"defer_after": 0.1, "poll_interval": 0.02}

in_both_aims = with_aims("waited for, deferred", "stored, deferred")


@pytest.fixture
def triggers(connected_api: Sandbox, monkeypatch: pytest.MonkeyPatch) -> list[SimpleNamespace]:
    """The triggers that have started, with the number of polls before each; every image is drawn when one starts."""
    started: list[SimpleNamespace] = []
    run = QwenImageStatusTrigger.run

    async def note_and_run(self: QwenImageStatusTrigger) -> AsyncIterator[Any]:
        started.append(SimpleNamespace(arguments=self.serialize()[1], polls=status_reads(connected_api)))
        finish_images(connected_api)
        async for event in run(self):
            yield event

    monkeypatch.setattr(QwenImageStatusTrigger, "run", note_and_run)
    return started


def _sense(**arguments: Any) -> DagRun:
    dag = TestDag()
    with dag:
        submit = QwenImageGenerateOperator(task_id="submit", prompt="A lighthouse")
        QwenImageStatusSensor(task_id="sense", image_task_id=submit.output, **{"poke_interval": 0.02} | arguments)
    return dag.run()


@in_both_aims
def test_an_image_that_is_quick_needs_no_trigger(
    connected_api: Sandbox, triggers: list[SimpleNamespace], aim: dict[str, Any]
) -> None:
    draw = dag_that_draws(**aim, defer_after=timedelta(hours=1)).run()["draw"]

    assert (draw.state, draw.tries) == ("success", 1)
    assert triggers == []
    assert status_reads(connected_api) == 2
    assert draw.returned["task_id"] == connected_api.submissions[0].task_id
    assert draw.returned["consumed_credits"] == connected_api.credits_charged == 5


@in_both_aims
def test_an_image_that_takes_longer_is_waited_for_in_the_triggerer(
    connected_api: Sandbox, triggers: list[SimpleNamespace], aim: dict[str, Any]
) -> None:
    connected_api.configure(seconds_per_image=3600)
    draw = dag_that_draws(**aim | _SHORT, timeout=7200).run()["draw"]

    assert (draw.state, draw.tries) == ("success", 1)
    (trigger,) = triggers
    assert trigger.polls > 1
    assert trigger.arguments["poll_interval"] == 0.02
    assert len(connected_api.submissions) == 1


def test_without_it_a_task_is_deferred_after_one_poll(connected_api: Sandbox, triggers: list[SimpleNamespace]) -> None:
    dag_that_draws(wait_for_completion=True, deferrable=True).run()
    assert [trigger.polls for trigger in triggers] == [1]


def test_it_has_no_effect_on_a_task_that_is_not_deferrable(
    connected_api: Sandbox, triggers: list[SimpleNamespace]
) -> None:
    connected_api.script("status", ("server_error", 8))
    assert dag_that_draws(wait_for_completion=True, defer_after=0.001).run()["draw"].state == "success"
    for mode in ("poke", "reschedule"):
        assert _sense(deferrable=False, mode=mode, defer_after=0.001)["sense"].state == "success"
    assert triggers == []


def test_a_sensor_waits_in_the_worker_first(connected_api: Sandbox, triggers: list[SimpleNamespace]) -> None:
    sense = _sense(defer_after=3600)["sense"]
    assert (sense.state, len(sense.returned), triggers) == ("success", 1, [])

    connected_api.configure(seconds_per_image=3600)
    before = status_reads(connected_api)
    sense = _sense(defer_after=0.1)["sense"]
    (trigger,) = triggers
    assert (sense.state, trigger.polls - before > 1) == ("success", True)


def test_a_decorated_task_takes_it(connected_api: Sandbox, triggers: list[SimpleNamespace], tmp_path: Path) -> None:
    with (dag := TestDag()).dag:

        @task.qwenimage(output_path=str(tmp_path), deferrable=True, defer_after=3600, poll_interval=0.01)
        def draw() -> str:
            return "A fox"

        draw()
    assert (dag.run()["draw"].state, triggers) == ("success", [])


def test_a_mapped_task_takes_it(connected_api: Sandbox, triggers: list[SimpleNamespace], tmp_path: Path) -> None:
    dag = dag_that_draws(output_path=str(tmp_path), deferrable=True, defer_after=3600, prompts=["A fox", "A hare"])
    assert [end.state for end in dag.run().mapped("draw")] == ["success", "success"]
    assert triggers == []


def test_failed_reads_in_the_worker_are_blips_up_to_the_allowed_number(
    connected_api: Sandbox, triggers: list[SimpleNamespace]
) -> None:
    waiting: dict[str, Any] = {"wait_for_completion": True, "deferrable": True, "defer_after": 3600}
    connected_api.script("status", ("server_error", 5))
    assert dag_that_draws(**waiting).run()["draw"].state == "success"

    connected_api.script("status", ("server_error", 3))
    draw = dag_that_draws(**waiting, max_consecutive_failures=3, retries=0).run()["draw"]
    assert (draw.state, triggers) == ("failed", [])
    assert "after 3 failed reads in a row" in str(draw.error)
    assert isinstance(draw.error if draw.error.__cause__ is None else draw.error.__cause__, QwenImageServerError)


@in_both_aims
def test_the_timeout_ends_a_wait_in_the_worker_that_would_be_deferred_later(
    connected_api: Sandbox, triggers: list[SimpleNamespace], aim: dict[str, Any]
) -> None:
    connected_api.configure(seconds_per_image=3600)
    draw = dag_that_draws(**aim, defer_after=3600, timeout=0.2, retries=0).run()["draw"]

    assert (draw.state, triggers) == ("failed", [])
    assert "did not end before the deadline" in str(draw.error)
    if is_recorded(aim):
        assert isinstance(draw.error, QwenImageTimeoutError)


@in_both_aims
def test_a_retry_resumes_after_an_execution_timeout_in_the_worker_and_pays_once(
    connected_api: Sandbox, triggers: list[SimpleNamespace], aim: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not is_recorded(aim):
        pytest.skip("nothing is recorded for the retry")
    connected_api.configure(seconds_per_image=3600)
    waits = at_second_polls(monkeypatch, lambda _: threading.Thread(target=pass_execution_timeout).start())
    arguments = {"defer_after": 7000, "timeout": 7200, "execution_timeout": timedelta(hours=1), "retries": 1}
    draw = dag_that_draws(**aim | arguments).run()["draw"]

    assert (draw.state, draw.tries, len(waits), triggers) == ("failed", 2, 2, [])
    assert all(isinstance(error, AirflowTaskTimeout) for error in draw.errors)
    assert len(connected_api.submissions) == 1


def test_an_execution_timeout_of_a_sensor_in_the_worker_reports_the_last_status(
    connected_api: Sandbox, triggers: list[SimpleNamespace], monkeypatch: pytest.MonkeyPatch
) -> None:
    connected_api.configure(seconds_per_image=3600)
    at_second_polls(monkeypatch, lambda _: threading.Thread(target=pass_execution_timeout).start())
    sense = _sense(defer_after=7000, timeout=7200, execution_timeout=timedelta(hours=1), retries=0)["sense"]

    assert (sense.state, triggers) == ("failed", [])
    assert sense.xcoms["error"]["error"] == "AirflowTaskTimeout"
    assert f"Image task {connected_api.submissions[0].task_id} did not end" in sense.xcoms["error"]["message"]
    assert "its last status was " in sense.xcoms["error"]["message"]


@pytest.mark.parametrize("kind", ["operator", "sensor"])
def test_what_stays_paid_is_logged_if_a_task_is_ended_from_outside_in_the_worker(
    connected_api: Sandbox,
    triggers: list[SimpleNamespace],
    task_log: Callable[[], str],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    running: list[Any] = []
    arguments: dict[str, Any] = {"defer_after": 3600, "pre_execute": lambda context: running.append(context["ti"])}
    # The image is drawn at the second poll.
    decide = polling.decide

    def interrupt_and_decide(*args: Any, **kwargs: Any) -> polling.Decision:
        if status_reads(connected_api) == 1:
            send_signal()
        return decide(*args, **kwargs)

    monkeypatch.setattr(polling, "decide", interrupt_and_decide)

    def kill() -> None:
        running[-1].task.on_kill()

    with handling_signal(kill):
        if kind == "operator":
            dag_that_draws(wait_for_completion=True, deferrable=True, **arguments).run()
        else:
            _sense(**arguments)

    (submission,) = connected_api.submissions
    assert task_log().count(f"Airflow ends this wait (or moves it). Image task {submission.task_id} goes on") == 1
    assert triggers == []


def test_a_callback_wakes_a_task_that_is_deferred_later(
    connected_api: Sandbox, triggers: list[SimpleNamespace], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__QWENIMAGE__CALLBACK_BASE_URL", "https://airflow.example.com")
    connected_api.configure(seconds_per_image=3600)
    draw = dag_that_draws(wait_for_completion=True, deferrable=True, **_SHORT).run()["draw"]

    (trigger,) = triggers
    assert (draw.state, trigger.polls > 1) == ("success", True)
    # Airflow below 3.1 has nothing that could be called back.
    assert (trigger.arguments.get("callback") is not None) is HAS_PLUGIN_PAGES


def test_a_task_that_a_callback_has_woken_too_early_is_deferred_again_at_once(
    connected_api: Sandbox, tmp_path: Path
) -> None:
    """Whoever calls back may do so often: that must not hold a worker slot."""
    connected_api.configure(seconds_per_image=3600)
    polls: list[int] = []

    class Woken(QwenImageGenerateOperator):
        """Resumes without an event, as after a callback of the API."""

        def execute_complete(self, context: Any, event: Any = None) -> Any:
            before = status_reads(connected_api)
            with pytest.raises(TaskDeferred):
                super().execute_complete(context, None)
            polls.append(status_reads(connected_api) - before)
            finish_images(connected_api)
            return super().execute_complete(context, None)

    dag = TestDag()
    with dag:
        Woken(task_id="draw", prompt="A fox", output_path=str(tmp_path), deferrable=True, timeout=7200, **_SHORT)

    async def fire(self: QwenImageStatusTrigger) -> Any:
        return {"status": "error", "message": "not looked at"}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(QwenImageStatusTrigger, "_wait", fire)
        draw = dag.run()["draw"]
    assert (draw.state, polls) == ("success", [1])


def test_the_hook_polls_once_if_the_time_of_the_deferral_has_passed(connected_api: Sandbox) -> None:
    with QwenImageHook() as hook:
        end = hook.follow(hook.generate("A fox"), polling.PollPolicy(poll_interval=0.01), defer_at=0.0)
    assert isinstance(end, polling.Wait)
    assert status_reads(connected_api) == 1
