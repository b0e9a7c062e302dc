"""Resume methods fail closed: only a complete success event counts as a success."""

import json
import re
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException, TaskDeferred

from airflow_provider_qwenimage import QwenImageGenerateOperator, QwenImageStatusSensor
from airflow_provider_qwenimage.contract import GenerateRequest
from airflow_provider_qwenimage.exceptions import QwenImageContractError, QwenImageError
from airflow_provider_qwenimage.hooks import QwenImageHook
from airflow_provider_qwenimage.rules.callbacks import digest_of, new_secret
from airflow_provider_qwenimage.rules.image_identity import ImageIdentity
from airflow_provider_qwenimage.rules.made_by import description_of
from airflow_provider_qwenimage.rules.submissions import Asking, Resume
from airflow_provider_qwenimage.sandbox import Sandbox
from airflow_provider_qwenimage.storage.paths import open_output_path
from airflow_provider_qwenimage.tasks.ledger import Ledger
from airflow_provider_qwenimage.tasks.opening import open_ledger, try_of
from tests.events import finish_images, status_reads

_SUCCEEDED = {
    "task_id": "n43resumedqwenimg",
    "status": "SUCCESS",
    "consumed_credits": 5,
    "error_message": None,
    "created_at": "2024-12-19T10:00:00Z",
    "request": {"prompt": "A boat"},
    "response": ["https://cdn.example.com/image.png"],
}

invalid_events = pytest.mark.parametrize(
    "event",
    [
        {},
        [],
        "success",
        {"status": "success"},
        {"status": "success", "snapshot": None},
        {"status": "success", "snapshot": {}},
        {"status": "success", "snapshot": _SUCCEEDED | {"status": "IN_PROGRESS"}},
        {"status": "success", "snapshot": _SUCCEEDED | {"status": "FAILED"}},
        {"status": "success", "snapshot": _SUCCEEDED | {"response": None}},
        {"status": "success", "snapshot": _SUCCEEDED | {"response": []}},
        {"status": "finished", "snapshot": _SUCCEEDED},
        {"status": "SUCCESS", "snapshot": _SUCCEEDED},
        {"snapshot": _SUCCEEDED},
        {"status": "error"},
        {"status": "error", "message": None},
    ],
    ids=str,
)


class _TaskInstance:
    """The part of a task instance that the resume methods use."""

    dag_id = "fox"
    run_id = "daily"
    task_id = "draw"
    map_index = -1
    try_number = 1
    max_tries = 2

    def __init__(self) -> None:
        self.xcoms: dict[str, Any] = {"task_id": "n43resumedqwenimg"}

    def xcom_push(self, key: str, value: Any) -> None:
        self.xcoms[key] = value

    def xcom_pull(self, *, task_ids: str, key: str, map_indexes: int) -> Any:
        return self.xcoms.get(key)


@pytest.fixture
def context() -> Any:
    return {"ti": _TaskInstance()}


@pytest.fixture
def sensor() -> QwenImageStatusSensor:
    return QwenImageStatusSensor(task_id="sense", image_task_id="n43resumedqwenimg")


@pytest.fixture
def operator() -> QwenImageGenerateOperator:
    """An operator whose submission is not recorded."""
    return QwenImageGenerateOperator(task_id="draw", prompt="A boat", wait_for_completion=True, deferrable=True)


@pytest.fixture
def recorded_operator(tmp_path: Path, context: Any) -> QwenImageGenerateOperator:
    """An operator whose submission is recorded in its output folder."""
    ledger = _ledger(context, tmp_path)
    ledger.intend(_asking(context))
    ledger.accept("n43resumedqwenimg")
    return QwenImageGenerateOperator(task_id="draw", prompt="A boat", output_path=str(tmp_path), deferrable=True)


def _ledger(context: Any, folder: Path) -> Ledger:
    instance = description_of(context["ti"])
    return open_ledger(context, open_output_path(str(folder)), instance, durable=True, number=1)


def _asking(context: Any) -> Asking:
    return Asking(identity=ImageIdentity(GenerateRequest(prompt="A boat")), made_in=try_of(context))


def test_a_sensor_accepts_a_complete_success_event(sensor: QwenImageStatusSensor, context: Any) -> None:
    event = {"status": "success", "snapshot": _SUCCEEDED}

    assert sensor.execute_complete(context, event) == ["https://cdn.example.com/image.png"]
    assert context["ti"].xcoms["consumed_credits"] == 5


def test_an_operator_accepts_a_complete_success_event(operator: QwenImageGenerateOperator, context: Any) -> None:
    result = operator.execute_complete(context, {"status": "success", "snapshot": _SUCCEEDED})

    assert result["image_urls"] == ["https://cdn.example.com/image.png"]
    assert result["task_id"] == "n43resumedqwenimg"


@invalid_events
def test_a_sensor_rejects_an_invalid_event(sensor: QwenImageStatusSensor, context: Any, event: Any) -> None:
    with pytest.raises((QwenImageContractError, AirflowFailException)):
        sensor.execute_complete(context, event)
    assert "consumed_credits" not in context["ti"].xcoms


@invalid_events
def test_an_operator_rejects_an_invalid_event_and_is_not_retried(
    operator: QwenImageGenerateOperator, context: Any, event: Any
) -> None:
    with pytest.raises(AirflowFailException, match="n43resumedqwenimg"):
        operator.execute_complete(context, event)
    assert "consumed_credits" not in context["ti"].xcoms


@invalid_events
def test_a_retry_resumes_if_the_submission_is_recorded(
    recorded_operator: QwenImageGenerateOperator, context: Any, event: Any, tmp_path: Path
) -> None:
    with pytest.raises(QwenImageContractError):
        recorded_operator.execute_complete(context, event)
    assert "consumed_credits" not in context["ti"].xcoms
    step = _ledger(context, tmp_path).look_at_own(_asking(context))
    assert isinstance(step, Resume)
    assert step.image_task_id == "n43resumedqwenimg"


@pytest.mark.parametrize("name", ["NoSuchError", "TaskSnapshot", "annotations", "", None])
def test_an_error_event_of_an_unknown_class_fails_the_task(
    operator: QwenImageGenerateOperator, context: Any, name: Any
) -> None:
    with pytest.raises(AirflowFailException, match="it broke"):
        operator.execute_complete(context, {"status": "error", "message": "it broke", "error": name})


@pytest.mark.parametrize("name", ["NoSuchError", "TaskSnapshot", "annotations", "", None])
def test_an_error_event_of_an_unknown_class_allows_a_retry_if_the_submission_is_recorded(
    recorded_operator: QwenImageGenerateOperator, context: Any, name: Any
) -> None:
    with pytest.raises(QwenImageError, match="it broke"):
        recorded_operator.execute_complete(context, {"status": "error", "message": "it broke", "error": name})


def test_a_retry_resumes_after_a_broken_trigger_if_the_submission_is_recorded(
    recorded_operator: QwenImageGenerateOperator, context: Any, tmp_path: Path
) -> None:
    with pytest.raises(Exception, match=r"[Tt]rigger") as caught:
        recorded_operator.resume_execution("__fail__", {"error": "Trigger failure"}, context)
    assert not isinstance(caught.value, AirflowFailException)
    assert isinstance(_ledger(context, tmp_path).look_at_own(_asking(context)), Resume)


def test_an_operator_does_not_pay_again_after_a_broken_trigger(
    operator: QwenImageGenerateOperator, context: Any
) -> None:
    with pytest.raises(AirflowFailException, match="n43resumedqwenimg is submitted and may be paid"):
        operator.resume_execution("__fail__", {"error": "Trigger failure"}, context)


def test_a_broken_trigger_fails_the_sensor(sensor: QwenImageStatusSensor, context: Any) -> None:
    with pytest.raises(Exception, match=r"[Tt]rigger"):
        sensor.resume_execution("__fail__", {"error": "Trigger failure"}, context)


@pytest.fixture
def drawing(connected_api: Sandbox) -> str:
    """The id of an image task in progress."""
    with QwenImageHook() as hook:
        return hook.generate("A boat")


def test_a_sensor_without_an_event_reads_the_status(connected_api: Sandbox, drawing: str, context: Any) -> None:
    """`airflow dags test` beside a running scheduler resumes a task without an event."""
    sensor = QwenImageStatusSensor(task_id="sense", image_task_id=drawing, deferrable=True)
    with pytest.raises(TaskDeferred):
        sensor.execute_complete(context, None)
    assert status_reads(connected_api) == 1
    finish_images(connected_api)
    assert len(sensor.execute_complete(context, None)) == 1
    assert context["ti"].xcoms["consumed_credits"] == 5


def test_an_operator_without_an_event_reads_the_status_and_submits_nothing(
    operator: QwenImageGenerateOperator, connected_api: Sandbox, drawing: str, context: Any
) -> None:
    context["ti"].xcoms["task_id"] = drawing
    with pytest.raises(TaskDeferred):
        operator.execute_complete(context, None)
    finish_images(connected_api)
    assert operator.execute_complete(context, None)["task_id"] == drawing
    assert len(connected_api.submissions) == 1


@pytest.mark.parametrize("try_number", [1, 2])
def test_a_false_callback_leaves_the_deadline_and_the_callback_of_a_wait_as_they_were(
    connected_api: Sandbox, context: Any, tmp_path: Path, try_number: int
) -> None:
    connected_api.configure(seconds_per_image=3600)
    with QwenImageHook() as hook:
        drawing = hook.generate("A boat")
    digest = digest_of(new_secret())
    ledger = _ledger(context, tmp_path)
    ledger.intend(_asking(context), digest)
    ledger.accept(drawing)
    operator = QwenImageGenerateOperator(
        task_id="draw",
        prompt="A boat",
        output_path=str(tmp_path),
        deferrable=True,
        timeout=100,
        execution_timeout=timedelta(seconds=60),
    )
    before = time.time()
    # A later try has only resumed the image task.
    context["ti"].try_number = try_number
    started = before - 20
    if try_number == 1:
        (record,) = [file for file in tmp_path.rglob("*") if file.is_file() and digest in file.read_text()]
        written = json.loads(record.read_text())
        moment = datetime.fromtimestamp(started, UTC).isoformat()
        record.write_text(re.sub(r'("intended_at": ?)"[^"]*"', rf'\1"{moment}"', json.dumps(written)))
        assert moment in record.read_text()
    else:
        context["ti"].start_date = datetime.fromtimestamp(started, UTC)
    deadlines = []
    for _ in range(2):
        with pytest.raises(TaskDeferred) as deferred:
            operator.execute_complete(context, None)
        arguments = deferred.value.trigger.serialize()[1]
        assert arguments["callback"] == digest
        deadlines.append(arguments["end_time"])
    # The limit is 60 s, of which a tenth is left to store the image.
    assert deadlines == pytest.approx([started + 54] * 2, abs=0.01)


def test_a_sensor_accepts_an_event_of_an_earlier_version(sensor: QwenImageStatusSensor, context: Any) -> None:
    """Its event contained the API's complete answer."""
    odd = {"request": {"prompt": "A boat", "callback_url": "https://example.com/?token=1"}, "queue": {"place": 10**31}}
    event = {
        "status": "success",
        "message": "Image task n43resumedqwenimg is SUCCESS.",
        "image_task_id": "n43resumedqwenimg",
        "snapshot": _SUCCEEDED | odd,
        "try_number": 1,
    }
    assert sensor.execute_complete(context, event) == ["https://cdn.example.com/image.png"]
    assert context["ti"].xcoms["request"] == {"prompt": "A boat"}
