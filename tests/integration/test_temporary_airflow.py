"""`qwenimage_airflow` runs whole DAGs in an Airflow of its own, and shows how they ended."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from airflow.providers.common.compat.sdk import DAG, AirflowSkipException, BaseOperator, task
from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_provider_qwenimage import QwenImageBatchOperator, QwenImageGenerateOperator, QwenImageStatusSensor
from airflow_provider_qwenimage.airflow_versions import HAS_SUPERVISOR
from airflow_provider_qwenimage.sandbox import Sandbox
from airflow_provider_qwenimage.testing import TemporaryAirflow
from airflow_provider_qwenimage.testing.pytest_plugin import pytest_assertrepr_compare

START = datetime(2024, 1, 1, tzinfo=UTC)
_PICTURES: dict[str, str] = {}
_BAD_SECONDS = (0, -1, float("nan"), float("inf"), "60", True, None)


def _dag(dag_id: str = "pictures", **arguments: Any) -> DAG:
    return DAG(dag_id, schedule=None, start_date=START, **arguments)


@pytest.fixture
def quick() -> dict[str, Any]:
    return {"poll_interval": 0.05}


def test_a_whole_dag_of_a_test_runs_and_shows_its_images(
    qwenimage_sandbox: Sandbox,
    qwenimage_airflow: TemporaryAirflow,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    quick: dict[str, Any],
) -> None:
    from airflow.providers.common.compat.sdk import Variable

    monkeypatch.setenv("AIRFLOW_VAR_ANIMALS", "fox owl")
    with _dag(params={"more": "hare"}) as dag:

        @task
        def animals(**context: Any) -> list[str]:
            return [f"A {name}" for name in [*Variable.get("animals").split(), context["params"]["more"]]]

        folder = str(tmp_path / "{{ ds }}")
        drawn = QwenImageGenerateOperator.partial(task_id="draw", output_path=folder, deferrable=True, **quick).expand(
            prompt=animals()
        )
        submit = QwenImageGenerateOperator(task_id="submit", prompt="A lynx", **quick)
        sensor = QwenImageStatusSensor(
            task_id="wait", image_task_id=submit.output, deferrable=False, mode="reschedule", poke_interval=0.05
        )
        batch = QwenImageBatchOperator(
            task_id="batch",
            requests=["A heron\u2028in reeds", "A [policy] crane"],
            output_path=folder,
            max_failures=1,
            **quick,
        )
        drawn >> submit >> sensor >> batch

    run = qwenimage_airflow.run(dag, conf={"more": "badger"}, logical_date=datetime(2024, 5, 17, tzinfo=UTC))

    assert run.state == "success", repr(run)
    assert {(*key, end.state, end.tries) for key, end in run.tasks.items()} == {
        *(("draw", index, "success", 1) for index in range(3)),
        *((task_id, -1, "success", 1) for task_id in ("animals", "submit", "wait", "batch")),
    }
    assert run["animals"].returned == ["A fox", "A owl", "A badger"]
    assert len(run["wait"].returned) == 1
    assert run["batch"].xcoms["progress"]["failed"] == 1
    assert [image.open().size for end in run.mapped("draw") for image in end.images] == [(1024, 1024)] * 3
    stored = [image.path for image in run.images]
    assert len(stored) == 4
    assert all(path and "2024-05-17" in path for path in stored)
    assert all(image.url and image.url.startswith("http://127.0.0.1:") for image in run.images)
    assert qwenimage_sandbox.credits_charged == 25
    with pytest.raises(KeyError, match="draw is a mapped task; use mapped"):
        run["draw"]
    with pytest.raises(KeyError, match="paint is not a task of the run; it has animals, batch, draw, submit, wait"):
        run["paint"]


def test_a_failed_run_says_which_tasks_failed_and_why(
    qwenimage_airflow: TemporaryAirflow, request: pytest.FixtureRequest
) -> None:
    tries = []
    with _dag() as dag:

        @task(retries=2)
        def steady() -> None:
            # With its delay of five minutes by default.
            tries.append(1)
            if len(tries) < 3:
                raise LookupError(f"try {len(tries)}")

        @task
        def broken() -> None:
            raise ValueError("the brush is broken")

        @task
        def skipped() -> None:
            raise AirflowSkipException("not today")

        @task
        def late() -> None:
            """Run after a task that failed."""

        steady() >> skipped()
        broken() >> late()

    run = qwenimage_airflow.run(dag)

    assert run.state == "failed"
    assert {name: (end.state, end.tries) for (name, _), end in run.tasks.items()} == {
        "steady": ("success", 3),
        "broken": ("failed", 1),
        "skipped": ("skipped", 1),
        "late": ("upstream_failed", 0),
    }
    assert [str(error) for error in run["steady"].errors] == ["try 1", "try 2"]
    assert isinstance(run["broken"].error, ValueError)
    assert run["late"].error is None
    assert [end.name for end in run.failures] == ["broken"]
    assert repr(run) == "<DAG run of pictures: failed; broken failed: ValueError: the brush is broken>"
    # What pytest shows of a failed assertion, and below any failed test.
    reason = "broken failed: ValueError: the brush is broken"
    assert pytest_assertrepr_compare("==", run.state, "success") == ["'failed' == 'success'", reason]
    assert ("call", "errors of the DAG run pictures", reason) in request.node._report_sections


class FailingTrigger(BaseTrigger):
    def __init__(self) -> None:
        """Take no arguments."""

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return f"{__name__}.FailingTrigger", {}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        yield TriggerEvent(_PICTURES["no such picture"])


class Deferring(BaseOperator):
    def execute(self, context: Any) -> None:
        self.defer(trigger=FailingTrigger(), method_name="execute")


def test_the_error_of_a_trigger_is_the_error_of_its_task(
    qwenimage_airflow: TemporaryAirflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2])
    with _dag() as dag:
        Deferring(task_id="wait")

    run = qwenimage_airflow.run(dag, timeout=30)

    assert run.state == "failed"
    assert isinstance(run["wait"].error, KeyError), run["wait"].errors


def test_dags_of_one_name_and_repeated_runs_do_not_get_mixed_up(qwenimage_airflow: TemporaryAirflow) -> None:
    def dag_with(*names: str) -> DAG:
        with _dag() as dag:
            for name in names:
                task(task_id=name)(lambda: 7)()
        return dag

    first, second = dag_with("one"), dag_with("two", "three")
    date = datetime(2024, 5, 17, tzinfo=UTC)
    runs = [qwenimage_airflow.run(dag, logical_date=date) for dag in (first, first, second)]
    assert [sorted(name for name, _ in run.tasks) for run in runs] == [["one"], ["one"], ["three", "two"]]


@pytest.mark.parametrize("waits", ["sleeping", "rescheduled"])
def test_a_run_that_takes_too_long_is_ended_and_the_next_one_works(
    waits: str, qwenimage_airflow: TemporaryAirflow
) -> None:
    with _dag() as dag:
        if waits == "sleeping":

            @task(retries=3)
            def wait() -> None:
                time.sleep(600)

        else:

            @task.sensor(poke_interval=1, timeout=600, mode="reschedule")
            def wait() -> bool:
                return False

        @task
        def after() -> None:
            """Never run."""

        wait() >> after()
    began = time.monotonic()
    for timeout in (3, 10, 30):
        with pytest.raises(TimeoutError) as caught:
            qwenimage_airflow.run(dag, timeout=timeout)
        # On a busy machine the run may not have begun with the task by then.
        if "Not ended" in str(caught.value):
            break
    assert time.monotonic() - began < 100
    # Its state depends on where an interruption finds it.
    message = r"The run of pictures did not end within \d+ s\. Not ended: .*\bwait \(\w+\)\. Where it was interrupted "
    assert re.match(message, str(caught.value)), caught.value
    with _dag() as quick_dag:
        task(task_id="quick")(lambda: 7)()
    assert qwenimage_airflow.run(quick_dag)["quick"].returned == 7


def test_a_query_that_was_interrupted_does_not_lock_the_database_of_the_next_run(
    qwenimage_airflow: TemporaryAirflow,
) -> None:
    with _dag() as dag:

        @task
        def read() -> None:
            from airflow import settings

            # A sleep stands for what an interruption rarely meets: a query that has begun and has rows left.
            rows = iter(settings.engine.connect().exec_driver_sql("SELECT name FROM sqlite_master"))
            next(rows)
            time.sleep(600)

        read()
    with pytest.raises(TimeoutError) as caught:
        qwenimage_airflow.run(dag, timeout=10)
    assert "read (running)" in str(caught.value)
    with _dag() as quick_dag:
        task(task_id="quick")(lambda: 7)()
    assert qwenimage_airflow.run(quick_dag)["quick"].returned == 7
    # The test keeps the error, and with it what the interrupted code held.
    assert isinstance(caught.value.__cause__, BaseException)


@pytest.mark.skipif(not HAS_SUPERVISOR, reason="In Airflow 2, tasks write to the database themselves.")
def test_an_interruption_in_a_request_of_the_api_server_does_not_lock_the_database_of_the_next_run(
    qwenimage_airflow: TemporaryAirflow,
) -> None:
    from airflow import settings

    interrupted: list[str] = []

    def interrupt(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        of_the_api_server = threading.current_thread() is not threading.main_thread()
        if of_the_api_server and statement.startswith("UPDATE task_instance") and not interrupted:
            interrupted.append(statement)
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGVTALRM)

    sqlalchemy.event.listen(settings.engine, "after_cursor_execute", interrupt)
    with _dag() as dag:
        task(task_id="quick")(lambda: 7)()
    with pytest.raises(TimeoutError):
        qwenimage_airflow.run(dag)
    assert interrupted
    assert qwenimage_airflow.run(dag)["quick"].returned == 7


def test_nothing_of_the_airflow_around_it_changes(
    airflow_database: None, airflow_home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from airflow import configuration, settings
    from airflow.models.dagrun import DagRun
    from airflow.providers.common.compat.sdk import Variable
    from airflow.utils.session import create_session
    from sqlalchemy import select

    elsewhere = {
        "AIRFLOW__CORE__EXECUTOR": "CeleryExecutor",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_ENGINE_ARGS": '{"no_such_argument": 1}',
        "AIRFLOW__SECRETS__BACKEND": "airflow.secrets.local_filesystem.LocalFilesystemBackend",
        "AIRFLOW__SECRETS__BACKEND_KWARGS": json.dumps({"variables_file_path": str(tmp_path / "variables.json")}),
    }
    (tmp_path / "variables.json").write_text('{"place": "elsewhere"}')
    for name, value in elsewhere.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(configuration, "secrets_backend_list", configuration.initialize_secrets_backends())

    def everything() -> Any:
        names = ("engine", "Session", "NonScopedSession", "SQL_ALCHEMY_CONN", "DAGS_FOLDER", "async_engine")
        values = [getattr(settings, name, None) for name in names]
        with create_session() as session:
            runs = session.scalars(select(DagRun.run_id)).all()
        files = sorted(path for path in airflow_home.rglob("*") if path.suffix != ".log")
        return values, dict(os.environ), list(configuration.secrets_backend_list), runs, files

    before = everything()
    with _dag() as dag:

        @task
        def look() -> list[str]:
            return [os.environ["AIRFLOW_HOME"], str(settings.engine.url), Variable.get("place", "nowhere")]

        look()
    with TemporaryAirflow() as airflow:
        run = airflow.run(dag)
    assert run.state == "success", repr(run)
    home, url, place = run["look"].returned
    assert home not in (str(airflow_home), before[1]["AIRFLOW_HOME"])
    assert url == f"sqlite:///{home}/airflow.db"
    assert place == "nowhere"
    assert not Path(home).exists()
    assert everything() == before
    with pytest.raises(RuntimeError, match="This Airflow is gone, because its test has ended"):
        airflow.run(dag)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dag": "daily_fox"}, r"dag is 'daily_fox'; it must be a DAG\.$"),
        ({"dag": lambda: None}, r"must be a DAG\. Call the function that @dag decorates\."),
        ({"dag": DAG("empty", schedule=None)}, "has no tasks"),
        ({"conf": ["a"]}, r"conf is \['a'\]; it must be a dict\."),
        ({"conf": {"a": START}}, "conf is .*; it must be a dict that JSON can express"),
        ({"conf": {"a": float("nan")}}, "JSON can express"),
        ({"logical_date": "2024-05-17"}, "logical_date is '2024-05-17'; it must be a datetime"),
        *(({"timeout": value}, "timeout is .*; it must be a number of seconds above 0") for value in _BAD_SECONDS),
    ],
)
def test_bad_arguments_are_refused(
    arguments: dict[str, Any], message: str, qwenimage_airflow: TemporaryAirflow
) -> None:
    with _dag() as dag:
        task(task_id="quick")(lambda: 7)()
    with pytest.raises(ValueError, match=message):
        qwenimage_airflow.run(**{"dag": dag} | arguments)
