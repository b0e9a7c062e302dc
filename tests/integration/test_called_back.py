"""A running Airflow that the API calls back: in time, early, twice, falsely, and while parts of it are down."""

from __future__ import annotations

import contextlib
import json
import re
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import requests

import airflow_provider_qwenimage
from airflow_provider_qwenimage.airflow_versions import HAS_PLUGIN_PAGES
from airflow_provider_qwenimage.sandbox import Sandbox
from tests.events import finish_image, finish_images, status_reads
from tests.integration.standalone import StandaloneAirflow, wait_for

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not HAS_PLUGIN_PAGES, reason="Airflow has no route for callbacks"),
]

_DAG = """
import datetime
import pendulum
from airflow.providers.common.compat.sdk import DAG

from airflow_provider_qwenimage import QwenImageGenerateOperator

for name, arguments in {tasks!r}.items():
    arguments = {{
        "task_id": "draw",
        "qwenimage_conn_id": name,
        "output_path": {folder!r},
        "deferrable": True,
        "timeout": 1800,
        "retry_delay": datetime.timedelta(0),
    }} | arguments
    if "execution_timeout" in arguments:
        arguments["execution_timeout"] = datetime.timedelta(seconds=arguments["execution_timeout"])
    with DAG(name, schedule=None, start_date=pendulum.datetime(2024, 1, 1)):
        if name == "mapped":
            QwenImageGenerateOperator.partial(**arguments).expand(prompt=["A fox, mapped 0", "A fox, mapped 1"])
        else:
            QwenImageGenerateOperator(prompt=f"A fox, {{name}}", **arguments)
"""

# By DAG, which is also its connection and so has an API of its own. Triggers poll so late that only callbacks count.
_LATE = {"poll_interval": 600}
_TASKS: dict[str, dict[str, Any]] = {
    # The API calls by itself.
    "in_time": _LATE,
    # The tests call, as the API does.
    "early": _LATE,
    "too_soon": {"poll_interval": 1},
    "falsely": _LATE,
    "retried": {"retries": 1, "max_consecutive_failures": 1, **_LATE},
    "cleared": _LATE,
    "without_triggerer": _LATE,
    "without_server": _LATE,
    # Started by their tests, so that not all tasks start at once.
    "drawn_again": {"overwrite": True, **_LATE},
    "mapped": _LATE,
    "marked": _LATE,
    "timed": {"execution_timeout": 120, **_LATE},
}
_STARTED_LATER = {"drawn_again", "mapped", "marked", "timed"}
_SECONDS_FOR_A_FALSE_CALLBACK = 60
_SECONDS_OF_AN_IMAGE = 15.0
_RESUMED = "The task was resumed without a result"
_FALSE_ALARM = re.compile(r"Traceback|\[error|\[critical|state mismatch|\"level\": ?\"(warning|error|critical)\"")


@dataclass
class Run:
    """A DAG run with one image.

    Attributes:
        first: The arguments of its first trigger.
    """

    airflow: StandaloneAirflow
    api: Sandbox
    name: str
    run_id: str = ""
    first: dict[str, Any] = field(default_factory=dict)

    def start(self) -> Run:
        self.run_id = self.run_id or self.airflow.trigger(self.name, {})
        return self

    @property
    def url(self) -> str:
        """The callback URL that the API was given."""
        return self.urls(1)[0]

    def urls(self, submissions: int) -> list[str]:
        """Return the callback URLs of so many submissions."""
        wait_for(f"the submissions of {self.name}", lambda: len(self.api.submissions) >= submissions)
        return [str(submission.request["callback_url"]) for submission in self.api.submissions]

    @property
    def state(self) -> str:
        return str(self.task["state"])

    @property
    def task(self) -> dict[str, Any]:
        return self.airflow.tasks(self.name, self.run_id)["draw", -1]

    @property
    def log(self) -> str:
        return self.airflow.log(self.name, self.run_id, "draw")

    def call_back(self, url: str | None = None) -> int:
        return requests.post(url or self.url, json={"forged": "x"}, timeout=60).status_code

    def await_deferral(self, other_than: object = None) -> dict[str, Any]:
        """Wait until the task is deferred, and return the arguments of its trigger, and when that was created.

        Args:
            other_than: When the trigger of an earlier deferral was created: SQLite gives a new one the same id.
        """

        def trigger() -> dict[str, Any] | None:
            with contextlib.closing(sqlite3.connect(f"file:{self.airflow.database}?mode=ro", uri=True)) as database:
                query = (
                    "SELECT t.created_date, t.kwargs FROM trigger t JOIN task_instance i ON i.trigger_id = t.id "
                    "WHERE i.dag_id = ? AND i.state = 'deferred'"
                )
                row = database.execute(query, (self.name,)).fetchone()
            return None if row is None or row[0] == other_than else {"created": row[0], **_plain(json.loads(row[1]))}

        wait_for(f"the deferral of {self.name}", trigger)
        found = trigger()
        assert found is not None
        return found

    def end(self) -> dict[str, Any]:
        self.airflow.wait_for_run(self.name, self.run_id)
        assert self.state == "success", self.log
        returned: dict[str, Any] = self.airflow.returned(self.name, self.run_id, "draw")
        assert [Path(path).stat().st_size > 0 for path in returned["paths"]] == [True]
        return returned


def _plain(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a trigger as they are, however this Airflow stores them."""
    stored: dict[str, Any] = kwargs.get("__var", kwargs)
    return stored


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Run]]:
    """One run of each DAG; some were called back, falsely or early, as soon as they were deferred."""
    home, folder = tmp_path_factory.mktemp("airflow"), tmp_path_factory.mktemp("images")
    # Without a key, the arguments of triggers are readable.
    settings = {"AIRFLOW__CORE__FERNET_KEY": ""}
    root = Path(airflow_provider_qwenimage.__file__).parents[1]
    airflow = StandaloneAirflow(home, root, settings, is_called_back=True)
    (airflow.dags / "called_back.py").write_text(_DAG.format(tasks=_TASKS, folder=str(folder)))
    with contextlib.ExitStack() as stack:
        by_test = {"seconds_per_image": 3600.0, "callback": "never"}
        apis: dict[str, Sandbox] = {
            name: stack.enter_context(
                Sandbox(seconds_per_image=_SECONDS_OF_AN_IMAGE) if name == "in_time" else Sandbox(**by_test)
            )
            for name in _TASKS
        }
        airflow.prepare(json.dumps({name: json.loads(api.connection_json) for name, api in apis.items()}))
        stack.callback(airflow.stop)
        airflow.start(*_TASKS)
        runs = {name: Run(airflow, apis[name], name) for name in _TASKS}
        for name in _TASKS.keys() - _STARTED_LATER:
            runs[name].start()
        # Its worker is still at work.
        assert runs["too_soon"].call_back() in {202, 404}
        finish_images(apis["too_soon"])
        for name in ("early", "falsely", "retried", "cleared"):
            runs[name].first = runs[name].await_deferral()
        # It gives the task another id. In SQLite, the scheduler may fail if it updates several tasks meanwhile, so this
        # comes before the others are resumed.
        airflow.clear("cleared", runs["cleared"].run_id)
        finish_images(apis["early"])
        apis["retried"].script("status", "server_error")
        for name in ("early", "falsely", "retried"):
            assert runs[name].call_back() in {200, 202}
        yield runs


def test_a_callback_of_the_api_resumes_the_task_and_the_triggerer_polls_not_at_all(runs: dict[str, Run]) -> None:
    run = runs["in_time"]
    run.end()
    assert _RESUMED in run.log
    # Before the deferral, and after the callback.
    assert status_reads(run.api) == 2
    assert [record.status in {200, 202} for record in run.api.callbacks] == [True]
    assert run.call_back() == 404


def test_an_early_callback_resumes_the_task_as_soon_as_that_is_safe(runs: dict[str, Run]) -> None:
    run = runs["early"]
    run.end()
    assert _RESUMED in run.log
    assert status_reads(run.api) == 2
    assert run.task["try_number"] == 1


def test_a_task_whose_callback_came_before_its_deferral_is_polled(runs: dict[str, Run]) -> None:
    run = runs["too_soon"]
    run.end()
    assert status_reads(run.api) <= 3


def test_a_false_callback_lets_the_task_defer_again_with_the_same_deadline_and_secret(runs: dict[str, Run]) -> None:
    run = runs["falsely"]
    again = run.await_deferral(other_than=run.first["created"])
    assert again["callback"] == run.first["callback"]
    assert run.first["end_time"] - 60 < again["end_time"] <= run.first["end_time"]
    finish_images(run.api)
    assert {run.call_back(), run.call_back()} <= {200, 202, 404}
    run.end()
    assert status_reads(run.api) == 3


@pytest.mark.parametrize("name", ["retried", "cleared"])
def test_the_callback_of_an_earlier_try_resumes_the_present_one(runs: dict[str, Run], name: str) -> None:
    run = runs[name]
    run.await_deferral(other_than=run.first["created"])
    assert run.task["try_number"] == 2
    assert run.task["id"] not in run.url
    finish_images(run.api)
    assert run.call_back() in {200, 202}
    run.end()
    assert len(run.api.submissions) == 1


def test_after_a_clear_that_submits_again_only_the_new_secret_resumes_the_task(runs: dict[str, Run]) -> None:
    run = runs["drawn_again"].start()
    run.await_deferral()
    finish_image(run.api, run.api.submissions[0].task_id)
    assert run.call_back() in {200, 202}
    first = run.end()
    run.airflow.clear(run.name, run.run_id)
    again = run.await_deferral()
    old, new = run.urls(2)
    assert run.task["id"] in new
    forged = f"{new.rpartition('/')[0]}/{old.rpartition('/')[2]}"
    assert {run.call_back(url) for url in (old, forged)} == {404}
    assert run.await_deferral() == again
    finish_image(run.api, run.api.submissions[1].task_id)
    assert run.call_back(new) in {200, 202}
    second = run.end()
    assert (run.task["try_number"], first["task_id"] == second["task_id"]) == (2, False)
    assert {run.call_back(url) for url in (old, new)} == {404}
    assert [submission.charged for submission in run.api.submissions] == [5, 5]


def test_each_mapped_task_is_resumed_by_its_own_callback_also_after_a_clear(runs: dict[str, Run]) -> None:
    run = runs["mapped"].start()

    def are_deferred(tries: int) -> bool:
        tasks = run.airflow.tasks(run.name, run.run_id).values()
        return [(task["state"], task["try_number"]) for task in tasks] == 2 * [("deferred", tries)]

    wait_for("both deferrals", lambda: are_deferred(1))
    run.airflow.clear(run.name, run.run_id)
    wait_for("both deferrals after the Clear", lambda: are_deferred(2))
    by_prompt = {str(each.request["prompt"]): each for each in run.api.submissions}
    second, first = (by_prompt[f"A fox, mapped {index}"] for index in (1, 0))
    finish_image(run.api, second.task_id)
    assert run.call_back(str(second.request["callback_url"])) in {200, 202}
    states = run.airflow.states
    wait_for("the end of the second", lambda: states(run.name, run.run_id)["draw", 1] == "success")
    assert states(run.name, run.run_id)["draw", 0] == "deferred"
    finish_image(run.api, first.task_id)
    assert run.call_back(str(first.request["callback_url"])) in {200, 202}
    run.airflow.wait_for_run(run.name, run.run_id)
    returned = [run.airflow.returned(run.name, run.run_id, "draw", index) for index in (0, 1)]
    assert [image["task_id"] for image in returned] == [first.task_id, second.task_id]
    assert [submission.charged for submission in run.api.submissions] == [5, 5]


def test_a_callback_does_not_resume_a_task_whose_run_was_marked_while_it_was_deferred(runs: dict[str, Run]) -> None:
    run = runs["marked"].start()
    run.await_deferral()
    run.airflow.mark_run_succeeded(run.name, run.run_id)
    wait_for("the end of the task", lambda: run.state != "deferred")
    marked = run.task
    finish_images(run.api)
    assert {run.call_back(), run.call_back()} == {404}
    assert run.task == marked
    assert (run.airflow.run_state(run.name, run.run_id), status_reads(run.api)) == ("success", 1)


def test_a_false_callback_shortly_before_the_deadline_does_not_change_how_the_task_ends(runs: dict[str, Run]) -> None:
    run = runs["timed"].start()
    first = run.await_deferral()
    wait_for("the time of the callback", lambda: time.time() > first["end_time"] - _SECONDS_FOR_A_FALSE_CALLBACK)
    assert run.call_back() in {200, 202}
    again = run.await_deferral(other_than=first["created"])
    assert again["end_time"] <= first["end_time"]
    finish_images(run.api)
    run.end()
    # Before each deferral, and at the deadline.
    assert status_reads(run.api) == 3


def test_without_a_triggerer_a_callback_resumes_the_task(runs: dict[str, Run]) -> None:
    run = runs["without_triggerer"]
    run.await_deferral()
    run.airflow.kill_triggerer()
    finish_images(run.api)
    assert run.call_back() in {200, 202}
    run.end()
    run.airflow.start_triggerer()


def test_after_a_crash_of_the_api_server_the_next_callback_resumes_the_task(runs: dict[str, Run]) -> None:
    run = runs["without_server"]
    run.await_deferral()
    run.airflow.kill_api_server()
    finish_images(run.api)
    with pytest.raises(requests.ConnectionError):
        run.call_back()
    run.airflow.start_api_server()
    assert run.call_back() in {200, 202}
    run.end()


def test_every_image_was_paid_once_no_secret_is_anywhere_and_nothing_looks_wrong(runs: dict[str, Run]) -> None:
    paid = {"drawn_again": 2, "mapped": 2}
    for run in runs.values():
        run.airflow.wait_for_run(run.name, run.run_id)
        assert run.airflow.run_state(run.name, run.run_id) == "success"
        assert [submission.charged for submission in run.api.submissions] == paid.get(run.name, 1) * [5]
        if run.name not in {"retried", "cleared"}:
            assert not _FALSE_ALARM.search(run.log), run.log
    secrets = [url.rpartition("/")[2].encode() for run in runs.values() for url in run.urls(1)]
    home = runs["in_time"].airflow.home
    files = [file for folder in (home, home.parent) for file in folder.rglob("*") if file.is_file()]
    assert any(file.name == "standalone.out" for file in files)
    for file in files:
        content = file.read_bytes()
        assert not any(secret in content for secret in secrets), file
