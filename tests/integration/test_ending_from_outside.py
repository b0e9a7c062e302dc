"""Tasks of a running Airflow that are marked, cleared or killed: no image is lost or paid twice."""

import contextlib
import hashlib
import json
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import airflow_provider_qwenimage
from airflow_provider_qwenimage.sandbox import Sandbox
from tests.airflows import AIRFLOW_3
from tests.events import finish_images, status_reads
from tests.integration.dag_runs import visible_files
from tests.integration.standalone import StandaloneAirflow, wait_for

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not AIRFLOW_3, reason="starts Airflow 3"),
]

_WAITED_FOR = {"wait_for_completion": True, "deferrable": False}
_DEFERRED = {"output_path": "…", "deferrable": True}
# By DAG id: the arguments of its only task, "draw". Each DAG has its own sandbox API and folder.
_CASES: dict[str, dict[str, Any]] = {
    "marked": _DEFERRED,
    "cleared_deferred": _DEFERRED,
    "cleared_running": {"output_path": "…", "deferrable": False},
    "moved_from_a_dead_triggerer": _DEFERRED,
    "moved_from_an_ended_triggerer": _DEFERRED,
    "finished": _DEFERRED,
    "killed_waiting": _WAITED_FOR,
    "killed_submitting": {"retries": 1},
    "killed_at_the_end": {"retries": 1},
    "together": {"output_path": "…", "deferrable": True, "seed": 7},
}
_ALL_TOGETHER = 4
_ENDS = "Airflow ends this wait"

_DAGS = """
import time

import pendulum
from airflow.providers.common.compat.sdk import DAG

from airflow_provider_qwenimage import QwenImageGenerateOperator


def linger(context, result):
    if context["ti"].try_number == 1:
        print("The task has only to end.")
        time.sleep(3600)


for name, arguments in {cases!r}.items():
    arguments = {{"retries": 2, "retry_delay": 0, "qwenimage_conn_id": name, "poll_interval": 1}} | arguments
    if name == "killed_at_the_end":
        arguments["post_execute"] = linger
    with DAG(name, schedule=None, start_date=pendulum.datetime(2024, 1, 1)) as dag:
        draw = QwenImageGenerateOperator.partial(task_id="draw", **arguments)
        draw.expand(prompt=["A boat"] * ({together} if name == "together" else 1))
    globals()[name] = dag
"""


@dataclass(frozen=True)
class Case:
    """A run of one of the DAGs, with the sandbox API of its connection."""

    airflow: StandaloneAirflow
    api: Sandbox
    folder: Path
    dag_id: str
    run_id: str

    @property
    def state(self) -> str | None:
        return self.airflow.states(self.dag_id, self.run_id).get(("draw", 0))

    @property
    def log(self) -> str:
        return self.airflow.log(self.dag_id, self.run_id, "draw")

    @property
    def returned(self) -> Any:
        return self.airflow.returned(self.dag_id, self.run_id, "draw", 0)

    @property
    def image_task_id(self) -> str:
        """The id of the only image task."""
        (submission,) = self.api.submissions
        return submission.task_id

    def wait_until_polled(self) -> None:
        """Wait until the worker polls the image task."""
        wait_for("a status read", lambda: status_reads(self.api))

    def wait_until_deferred(self) -> None:
        wait_for("the deferral", lambda: self.state == "deferred")
        self.wait_for_another_poll("the trigger's first poll")

    def wait_for_another_poll(self, what: str) -> None:
        polls = status_reads(self.api)
        wait_for(what, lambda: status_reads(self.api) > polls)

    def wait_until_resumed(self) -> None:
        """Wait until the next try polls the image task of the previous try."""
        wait_for("the resumption", lambda: f"Resuming image task {self.image_task_id}" in self.log)
        self.wait_for_another_poll("the next try's poll")

    def finish_images(self) -> None:
        finish_images(self.api)

    def wait_for_success(self) -> None:
        self.airflow.wait_for_run(self.dag_id, self.run_id)
        assert self.state == "success", self.log

    def kill(self) -> None:
        """Kill the process that runs the task."""
        os.kill(self.airflow.tasks(self.dag_id, self.run_id)["draw", 0]["pid"], signal.SIGKILL)

    def clear(self) -> None:
        self.airflow.clear(self.dag_id, self.run_id)

    def assert_stored_once(self) -> None:
        """Assert that one image task was paid, and that its image is stored and intact."""
        assert self.returned["task_id"] == self.image_task_id
        assert self.returned["consumed_credits"] == 5
        assert self.api.credits_charged == 5
        assert self.returned["reused"] is False
        (path,) = self.returned["paths"]
        assert len(list(self.folder.iterdir())) == 2
        with Image.open(path) as image:
            image.load()


StartCase = Callable[..., Case]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartCase]:
    """Return a function that starts a run of a case and can script the API's answers to submissions."""
    home = tmp_path_factory.mktemp("airflow")
    folders = {name: tmp_path_factory.mktemp(name) for name in _CASES}
    airflow = StandaloneAirflow(home, Path(airflow_provider_qwenimage.__file__).parents[1])
    cases = {
        name: arguments | ({"output_path": str(folders[name])} if "output_path" in arguments else {})
        for name, arguments in _CASES.items()
    }
    (airflow.dags / "cases.py").write_text(_DAGS.format(cases=cases, together=_ALL_TOGETHER))
    with contextlib.ExitStack() as stack:
        apis = {
            # Each test finishes its images itself.
            name: stack.enter_context(Sandbox(seconds_per_image=3600, hang_seconds=3600))
            for name in _CASES
        }

        def start_case(name: str, *behaviours: str) -> Case:
            if behaviours:
                apis[name].script("generate", *behaviours)
            return Case(airflow, apis[name], folders[name], name, airflow.trigger(name, {}))

        connections = {
            name: {"conn_type": "qwenimage", "host": api.url, "password": api.api_key} for name, api in apis.items()
        }
        airflow.prepare(json.dumps(connections))
        stack.callback(airflow.stop)
        airflow.start(*_CASES)
        yield start_case


def _ended_from_outside(image_task_id: str) -> str:
    return f"{_ENDS} (or moves it). Image task {image_task_id} goes on"


def test_marking_a_deferred_task_failed_logs_how_to_get_its_image(start: StartCase) -> None:
    case = start("marked")
    case.wait_until_deferred()
    case.airflow.mark_failed(case.dag_id, case.run_id, "draw")

    wait_for("the log", lambda: _ended_from_outside(case.image_task_id) in case.log)
    assert case.log.count(_ENDS) == 1
    assert "the API cannot cancel it, and it stays paid (5 credits, as the API last reported)" in case.log
    assert "clear this task, or wait for that id with a QwenImageStatusSensor" in case.log
    assert f"Submitted image task {case.image_task_id}" in case.log
    assert case.state == "failed"


def test_clearing_a_deferred_task_resumes_its_image(start: StartCase) -> None:
    case = start("cleared_deferred")
    case.wait_until_deferred()
    case.clear()
    # The trigger is cancelled before the image is finished.
    wait_for("the end of the wait", lambda: _ended_from_outside(case.image_task_id) in case.log)
    case.wait_until_resumed()
    case.finish_images()
    case.wait_for_success()

    case.assert_stored_once()
    assert f"Resuming image task {case.image_task_id}" in case.log
    assert _ended_from_outside(case.image_task_id) in case.log


def test_clearing_a_running_task_resumes_its_image(start: StartCase) -> None:
    case = start("cleared_running")
    case.wait_until_polled()
    case.clear()
    case.wait_until_resumed()
    case.finish_images()
    case.wait_for_success()

    case.assert_stored_once()
    assert f"Resuming image task {case.image_task_id}" in case.log
    assert case.log.count(_ended_from_outside(case.image_task_id)) == 1
    assert "it stays paid (5 credits, as the API last reported)" in case.log


@pytest.mark.parametrize("dag_id", ["moved_from_a_dead_triggerer", "moved_from_an_ended_triggerer"])
def test_a_wait_that_moves_to_another_triggerer_continues(start: StartCase, dag_id: str) -> None:
    case = start(dag_id)
    case.wait_until_deferred()
    if "dead" in dag_id:
        case.airflow.kill_triggerer()
    else:
        case.airflow.end_triggerer()
    case.airflow.start_triggerer()
    case.wait_for_another_poll("a poll of the other triggerer")
    case.finish_images()
    case.wait_for_success()

    case.assert_stored_once()
    assert case.airflow.tasks(case.dag_id, case.run_id)["draw", 0]["try_number"] == 1
    assert _ENDS not in case.log


def test_clearing_a_finished_run_spends_nothing(start: StartCase) -> None:
    case = start("finished")
    case.wait_until_deferred()
    case.finish_images()
    case.wait_for_success()
    before = case.returned
    requests = len(case.api.requests)
    case.clear()
    case.wait_for_success()

    assert case.returned == before | {"reused": True, "consumed_credits": 0}
    assert case.api.credits_charged == 5
    assert len(case.api.requests) == requests


def test_the_retry_resumes_after_a_worker_is_killed_while_waiting(start: StartCase) -> None:
    case = start("killed_waiting")
    case.wait_until_polled()
    case.kill()
    case.wait_until_resumed()
    case.finish_images()
    case.wait_for_success()

    assert case.returned["task_id"] == case.image_task_id
    assert case.returned["consumed_credits"] == case.api.credits_charged == 5
    assert f"Resuming image task {case.image_task_id}, submitted by try 1" in case.log


def test_the_retry_stops_until_cleared_after_a_worker_is_killed_while_submitting(start: StartCase) -> None:
    case = start("killed_submitting", "hang_after")
    wait_for("the submission", lambda: case.api.submissions)
    case.kill()
    case.airflow.wait_for_run(case.dag_id, case.run_id)

    assert case.state == "failed"
    assert len(case.api.submissions) == 1
    assert case.log.count("Try 1 of this task ended while it submitted the request") >= 1
    case.clear()
    case.wait_for_success()
    assert len(case.api.submissions) == 2
    assert case.returned == case.api.submissions[-1].task_id


def test_the_retry_returns_the_submitted_task_id_after_a_worker_is_killed_at_the_end(start: StartCase) -> None:
    case = start("killed_at_the_end")
    wait_for("the end of the task's work", lambda: "The task has only to end." in case.log)
    case.kill()
    case.wait_for_success()

    assert case.returned == case.image_task_id
    assert f"Resuming image task {case.image_task_id}" in case.log


def test_tasks_that_ask_for_the_same_image_at_once_share_one_payment_and_leave_it_intact(start: StartCase) -> None:
    case = start("together")

    def all_deferred() -> bool:
        states = case.airflow.states(case.dag_id, case.run_id)
        return [states.get(("draw", index)) for index in range(_ALL_TOGETHER)] == ["deferred"] * _ALL_TOGETHER

    wait_for("the deferral of all", all_deferred)
    case.finish_images()
    case.wait_for_success()

    returned = [case.airflow.returned(case.dag_id, case.run_id, "draw", index) for index in range(_ALL_TOGETHER)]
    (image,) = {Path(path) for each in returned for path in each["paths"]}
    sidecar = json.loads(image.with_suffix(".json").read_text())
    assert sidecar["sha256"] == hashlib.sha256(image.read_bytes()).hexdigest()
    assert sidecar["task_id"] == case.image_task_id
    assert len(visible_files(case.folder)) == 2
    assert sorted(each["reused"] for each in returned) == [False, True, True, True]
    assert sum(each["consumed_credits"] for each in returned) == case.api.credits_charged == 5
