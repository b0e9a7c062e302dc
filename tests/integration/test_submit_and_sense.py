"""The classic pair, submit and sense, in every mode of the sensor."""

from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import (
    AirflowException,
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowSkipException,
)

from airflow_provider_qwenimage import QwenImageGenerateOperator, QwenImageStatusSensor
from airflow_provider_qwenimage.rules import polling
from airflow_provider_qwenimage.sandbox import Sandbox
from tests.events import pass_deadlines, pass_execution_timeout, run_when, status_reads
from tests.integration.dag_runs import WAITS, DagRun, TestDag

in_every_mode = pytest.mark.parametrize("wait", WAITS.values(), ids=WAITS)
# "reschedule" pokes as "poke" does, so tests of the poke itself skip it.
deferred_and_poking = pytest.mark.parametrize("wait", [WAITS["deferrable"], WAITS["poke"]], ids=["deferrable", "poke"])


def _submit_and_sense(prompt: str, **sensor: Any) -> DagRun:
    dag = TestDag()
    with dag:
        submit = QwenImageGenerateOperator(task_id="submit", prompt=prompt)
        QwenImageStatusSensor(task_id="sense", image_task_id=submit.output, **{"poke_interval": 0.01} | sensor)
    return dag.run()


def _sense(**sensor: Any) -> DagRun:
    dag = TestDag()
    with dag:
        QwenImageStatusSensor(task_id="sense", **{"poke_interval": 0.01} | sensor)
    return dag.run()


def _passing_timeout(monkeypatch: pytest.MonkeyPatch, wait: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a sensor in this mode, with a timeout that passes once it waits."""
    if wait is not WAITS["deferrable"]:
        # Each poll is the last one, and may take long.
        monkeypatch.setattr(polling, "LAST_READ_SECONDS", 250.0)
        return wait | {"timeout": 0.1}
    pass_deadlines(monkeypatch)
    return wait | {"timeout": 3600}


@in_every_mode
def test_the_sensor_returns_the_urls_of_the_submitted_image(connected_api: Sandbox, wait: dict[str, Any]) -> None:
    run = _submit_and_sense("A lighthouse at dusk", **wait)

    (submission,) = connected_api.submissions
    assert run.state == "success"
    assert run["submit"].xcoms == {
        "request": submission.request,
        "task_id": submission.task_id,
        "return_value": submission.task_id,
    }
    (url,) = run["sense"].returned
    assert submission.task_id in url
    assert run["sense"].xcoms == {
        "task_id": submission.task_id,
        "consumed_credits": 5,
        "request": submission.request,
        "return_value": [url],
    }
    assert connected_api.credits_charged == 5
    assert status_reads(connected_api) == 2, "the image was finished before the sensor had to wait"


@in_every_mode
def test_a_failed_image_fails_the_sensor_at_once_with_the_reason(connected_api: Sandbox, wait: dict[str, Any]) -> None:
    run = _submit_and_sense("Fog [fail]", **wait)

    sense = run["sense"]
    assert (sense.state, sense.tries) == ("failed", 1)
    assert isinstance(sense.error, AirflowFailException)
    assert "The image could not be drawn" in str(sense.error)
    assert "It cost 0 credits" in str(sense.error)
    assert sense.xcoms["consumed_credits"] == 0
    assert sense.xcoms["error"] == {
        "error": "QwenImageTaskFailedError",
        "message": str(sense.error).removeprefix("QwenImageTaskFailedError: "),
    }


@deferred_and_poking
def test_a_refused_prompt_fails_the_sensor_with_the_policy_as_reason(
    connected_api: Sandbox, wait: dict[str, Any]
) -> None:
    sense = _submit_and_sense("A celebrity [policy]", **wait)["sense"]

    assert (sense.state, sense.tries) == ("failed", 1)
    assert "QwenImageContentPolicyError" in str(sense.error)
    assert "Content policy violation detected" in str(sense.error)
    assert "Change the prompt" in str(sense.error)


@pytest.mark.parametrize("softly", ["soft_fail", "never_fail"])
@in_every_mode
def test_a_failed_image_skips_a_sensor_that_fails_softly(
    connected_api: Sandbox, wait: dict[str, Any], softly: str
) -> None:
    sense = _submit_and_sense("Fog [fail]", **{softly: True}, **wait)["sense"]

    assert (sense.state, sense.tries) == ("skipped", 1)
    assert sense.xcoms["error"]["error"] == "QwenImageTaskFailedError"


@pytest.mark.parametrize("softly", ["soft_fail", "never_fail"])
@in_every_mode
def test_a_deadline_skips_a_sensor_that_fails_softly(
    connected_api: Sandbox, wait: dict[str, Any], monkeypatch: pytest.MonkeyPatch, softly: str
) -> None:
    connected_api.configure(seconds_per_image=3600)
    sense = _submit_and_sense("Fog", **{softly: True}, **_passing_timeout(monkeypatch, wait))["sense"]

    assert (sense.state, sense.tries) == ("skipped", 1)
    assert sense.xcoms["error"]["error"] == "QwenImageTimeoutError"


@in_every_mode
def test_an_api_that_only_fails_skips_a_sensor_that_never_fails(connected_api: Sandbox, wait: dict[str, Any]) -> None:
    connected_api.script("status", ("server_error", 1000))
    sense = _submit_and_sense("A lighthouse", never_fail=True, max_consecutive_failures=1, **wait)["sense"]

    assert (sense.state, sense.tries) == ("skipped", 1)
    assert sense.xcoms["error"]["error"] == "QwenImageServerError"


@in_every_mode
def test_an_api_that_only_fails_does_not_skip_a_sensor_that_fails_softly(
    connected_api: Sandbox, wait: dict[str, Any]
) -> None:
    connected_api.script("status", ("server_error", 1000))
    sense = _submit_and_sense("A lighthouse", soft_fail=True, max_consecutive_failures=1, retries=0, **wait)["sense"]

    assert (sense.state, sense.tries) == ("failed", 1)


@in_every_mode
def test_a_sensor_that_fails_silently_keeps_waiting_however_often_a_poll_fails(
    connected_api: Sandbox, wait: dict[str, Any]
) -> None:
    connected_api.script("status", ("server_error", 4))
    sense = _submit_and_sense("A lighthouse", silent_fail=True, max_consecutive_failures=2, **wait)["sense"]

    assert (sense.state, sense.tries) == ("success", 1)


@in_every_mode
def test_a_failed_image_fails_a_sensor_that_fails_silently(connected_api: Sandbox, wait: dict[str, Any]) -> None:
    sense = _submit_and_sense("Fog [fail]", silent_fail=True, **wait)["sense"]

    assert (sense.state, sense.tries) == ("failed", 1)


@pytest.mark.parametrize("softly", [{}, {"soft_fail": True}, {"never_fail": True}])
@pytest.mark.parametrize("error", ["Trigger timeout", "Trigger failure"])
def test_a_trigger_that_airflow_gives_up_is_reported_or_skipped_like_any_other_failure(
    airflow_database: None, error: str, softly: dict[str, Any]
) -> None:
    pushed: dict[str, Any] = {}
    context: Any = {"ti": SimpleNamespace(xcom_push=lambda key, value: pushed.update({key: value}))}
    sensor = QwenImageStatusSensor(task_id="sense", image_task_id="n43anyqwenimg", **softly)

    wanted = AirflowSkipException if softly else AirflowSensorTimeout if "timeout" in error else AirflowException
    with pytest.raises(wanted, match="n43anyqwenimg"):
        sensor.resume_execution("__fail__", {"error": error}, context)
    assert "n43anyqwenimg" in pushed["error"]["message"]


@in_every_mode
def test_an_unknown_image_task_fails_the_sensor_after_the_allowed_reads(
    connected_api: Sandbox, wait: dict[str, Any]
) -> None:
    sense = _sense(image_task_id="n43nobodyknowsqwenimg", max_consecutive_failures=1, retries=1, **wait)["sense"]

    assert (sense.state, sense.tries) == ("failed", 2)
    assert "code 404" in str(sense.errors[-1])
    last = str(sense.errors[-1])
    assert "Check that the image task was submitted with the key in connection 'qwenimage_default'" in last


@deferred_and_poking
def test_a_wrong_key_fails_the_sensor_and_is_not_shown(
    connected_api: Sandbox, wait: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(
        "AIRFLOW_CONN_WRONG_KEY", connected_api.connection_json.replace(connected_api.api_key, "sk-wrong-7d1")
    )
    sense = _sense(
        image_task_id="n43anyqwenimg", qwenimage_conn_id="wrong_key", max_consecutive_failures=2, retries=1, **wait
    )["sense"]

    assert (sense.state, sense.tries) == ("failed", 2)
    assert "code 401" in str(sense.errors[-1])
    assert "The key in connection 'wrong_key' was rejected" in str(sense.errors[-1])
    assert "sk-wrong-7d1" not in str(sense.errors[-1])


@pytest.mark.parametrize("fault", ["unauthorized", "forbidden", "not_found"])
@deferred_and_poking
def test_a_refused_poll_is_a_blip_for_the_sensor(connected_api: Sandbox, wait: dict[str, Any], fault: str) -> None:
    connected_api.script("status", (fault, 2), "ok", fault)
    sense = _submit_and_sense("A lighthouse", **wait)["sense"]

    assert (sense.state, sense.tries) == ("success", 1)


@deferred_and_poking
def test_the_sensor_survives_an_api_that_fails_five_times(connected_api: Sandbox, wait: dict[str, Any]) -> None:
    connected_api.script("status", ("server_error", 5))
    run = _submit_and_sense("A lighthouse", **wait)

    assert (run["sense"].state, run["sense"].tries) == ("success", 1)
    assert len(run["sense"].returned) == 1
    codes = [request.code for request in connected_api.requests if request.route == "status"]
    assert codes[:5] == [500] * 5
    assert connected_api.credits_charged == 5


@deferred_and_poking
def test_an_api_that_only_fails_ends_the_wait_after_the_allowed_number(
    connected_api: Sandbox, wait: dict[str, Any]
) -> None:
    connected_api.script("status", ("server_error", 1000))
    sense = _submit_and_sense("A lighthouse", max_consecutive_failures=4, retries=0, **wait)["sense"]

    assert sense.state == "failed"
    assert "failed reads in a row" in str(sense.error)
    assert "code 500" in str(sense.error)
    polls = [request for request in connected_api.requests if request.route == "status"]
    # The worker's poll before the deferral does not count as one of the trigger's.
    assert len(polls) in (4, 5)


@in_every_mode
def test_the_deadline_fails_the_sensor_without_a_retry_and_reports_how_to_get_the_image_later(
    connected_api: Sandbox, wait: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    connected_api.configure(seconds_per_image=3600)
    sense = _submit_and_sense("A lighthouse", **_passing_timeout(monkeypatch, wait))["sense"]

    (submission,) = connected_api.submissions
    assert (sense.state, sense.tries) == ("failed", 1)
    assert isinstance(sense.error, AirflowSensorTimeout)
    assert sense.xcoms["error"] == {"error": "QwenImageTimeoutError", "message": str(sense.error)}
    assert f"Image task {submission.task_id} did not end before the deadline" in str(sense.error)
    assert "its last status was IN_PROGRESS" in str(sense.error) or "its last status was PENDING" in str(sense.error)
    assert "raise the timeout" in str(sense.error)


@in_every_mode
def test_a_deadline_while_the_api_fails_reports_the_last_error(
    connected_api: Sandbox, wait: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    connected_api.script("status", ("server_error", 100_000))
    arguments = _passing_timeout(monkeypatch, wait) | {"max_consecutive_failures": 90_000}
    sense = _submit_and_sense("A lighthouse", **arguments)["sense"]

    assert (sense.state, sense.tries) == ("failed", 1)
    assert "the last read failed: " in sense.xcoms["error"]["message"]
    assert "code 500" in str(sense.error)


def test_an_execution_timeout_of_a_poking_sensor_names_the_image_task(connected_api: Sandbox) -> None:
    connected_api.configure(seconds_per_image=3600)
    with run_when(lambda: status_reads(connected_api) > 1, pass_execution_timeout):
        sense = _submit_and_sense(
            "A lighthouse", deferrable=False, execution_timeout=timedelta(hours=1), retries=0, timeout=7200
        )["sense"]

    (submission,) = connected_api.submissions
    assert sense.state == "failed"
    assert sense.xcoms["error"]["error"] == "AirflowTaskTimeout"
    assert f"Image task {submission.task_id} did not end" in sense.xcoms["error"]["message"]


def test_an_execution_timeout_bounds_a_deferred_sensor(connected_api: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    connected_api.configure(seconds_per_image=3600)
    ahead = pass_deadlines(monkeypatch)
    sense = _submit_and_sense("A lighthouse", timeout=7200, execution_timeout=timedelta(hours=1), retries=0)["sense"]

    assert (sense.state, sense.tries) == ("failed", 1)
    assert [1800 < seconds < 3600 for seconds in ahead] == [True]
    assert status_reads(connected_api) == 2


@deferred_and_poking
def test_a_mapped_sensor_waits_for_each_image(connected_api: Sandbox, wait: dict[str, Any]) -> None:
    dag = TestDag()
    with dag:
        submit = QwenImageGenerateOperator.partial(task_id="submit").expand(prompt=["One boat", "Two boats"])
        QwenImageStatusSensor.partial(task_id="sense", poke_interval=0.01, **wait).expand(image_task_id=submit.output)
    run = dag.run()

    assert run.state == "success"
    task_ids = [end.returned for end in run.mapped("submit")]
    assert len(set(task_ids)) == 2
    for task_id, sense in zip(task_ids, run.mapped("sense"), strict=True):
        assert len(sense.returned) == 1
        assert task_id in sense.returned[0]


def test_a_sensor_never_submits(connected_api: Sandbox) -> None:
    connected_api.script("status", "not_found")
    _sense(image_task_id="n43anyqwenimg", retries=2, max_consecutive_failures=1)

    assert {request.route for request in connected_api.requests} == {"status"}
    assert connected_api.credits_charged == 0


@pytest.mark.parametrize("argument", [{"poke_interval": 0}, {"max_consecutive_failures": 0}])
def test_a_bad_literal_argument_of_a_sensor_fails_while_the_dag_is_built(argument: dict[str, Any]) -> None:
    (name,) = argument
    with TestDag(), pytest.raises(ValueError, match=name.removeprefix("poke_")):
        QwenImageStatusSensor(task_id="sense", image_task_id="n43anyqwenimg", **argument)


def test_an_empty_image_task_id_fails_the_sensor_without_a_request(connected_api: Sandbox) -> None:
    sense = _sense(image_task_id="{{ params.get('nothing', '') }}")["sense"]

    assert (sense.state, sense.tries) == ("failed", 1)
    assert "image_task_id" in str(sense.error)
    assert connected_api.requests == []
