"""Each submission, image and credit is counted once over all tries of a task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_provider_qwenimage import QwenImageGenerateOperator, QwenImageStatusSensor
from airflow_provider_qwenimage.client import downloads
from airflow_provider_qwenimage.exceptions import QwenImageImageError
from airflow_provider_qwenimage.rules.book_rows import Change
from airflow_provider_qwenimage.rules.retries import RequestRetries
from airflow_provider_qwenimage.sandbox import Sandbox
from airflow_provider_qwenimage.tasks.ledger import Ledger
from tests.recorder import Recorder, failure


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    return Recorder(monkeypatch).sums


class TaskInstance(SimpleNamespace):
    """The part of a task instance that the operator and the sensor use."""

    def __init__(self, **fields: Any) -> None:
        identity = {"dag_id": "foxes", "run_id": "manual__1", "task_id": "draw", "map_index": -1}
        super().__init__(**{**identity, "try_number": 1, "max_tries": 2} | fields)

    def xcom_push(self, key: str, value: Any) -> None:
        pass


def context_of(**fields: Any) -> Any:
    return {"ti": TaskInstance(**fields)}


@pytest.fixture
def sandbox(qwenimage_sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Sandbox:
    monkeypatch.setattr(downloads, "_RETRIES", RequestRetries(limit=0, delay_seconds=0.0))
    return qwenimage_sandbox


def tries(path: Path, prompt: str = "a fox", **kwargs: Any) -> Callable[..., Any]:
    """Return a function that runs a try of a task that stores an image."""

    def one_try(**fields: Any) -> Any:
        operator = QwenImageGenerateOperator(
            task_id="draw", prompt=prompt, poll_interval=0.05, output_path=f"file://{path}", **kwargs
        )
        return operator.execute(context_of(**fields))

    return one_try


DONE = {"qwenimage.submissions": 1, "qwenimage.images": 1, "qwenimage.credits_consumed": 5}


def test_a_task_counts_its_submission_its_image_and_its_credits(
    sandbox: Sandbox, counted: Counter[str], tmp_path: Path
) -> None:
    tries(tmp_path)()
    assert counted == DONE


def test_an_image_that_a_retry_stores_counts_once(sandbox: Sandbox, counted: Counter[str], tmp_path: Path) -> None:
    one_try = tries(tmp_path)
    sandbox.script("image", "server_error", "server_error")
    for number in (1, 2):
        with pytest.raises(QwenImageImageError):
            one_try(try_number=number)
    one_try(try_number=3)
    assert counted == DONE | failure("image", times=2)


def test_an_image_that_cannot_be_stored_counts_with_its_credits(
    sandbox: Sandbox, counted: Counter[str], tmp_path: Path
) -> None:
    sandbox.script("image", "server_error")
    with pytest.raises(QwenImageImageError):
        tries(tmp_path)()
    assert counted == DONE | failure("image")


def killed(ledger: Ledger, paid: Change | None = None) -> NoReturn:
    raise SystemExit


def test_an_image_that_a_killed_try_has_stored_counts(
    sandbox: Sandbox, counted: Counter[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as at_the_end:
        at_the_end.setattr(Ledger, "finish", killed)
        with pytest.raises(SystemExit):
            tries(tmp_path)()
    tries(tmp_path)(try_number=2)
    assert counted == DONE


def test_an_image_that_is_used_again_costs_nothing(sandbox: Sandbox, counted: Counter[str], tmp_path: Path) -> None:
    tries(tmp_path)()
    tries(tmp_path)(run_id="manual__2")
    assert counted == DONE


# A failure is documented as free, but the credits that the API reports count.
COSTS_OF_A_FAILURE = [(0, {}), (4, {"qwenimage.credits_consumed": 4})]


@pytest.mark.parametrize(("cost", "charged"), COSTS_OF_A_FAILURE)
def test_a_failed_image_counts_the_credits_that_the_api_reports(
    sandbox: Sandbox, counted: Counter[str], tmp_path: Path, cost: float, charged: dict[str, float]
) -> None:
    sandbox.configure(failed_credits=cost)
    with pytest.raises(AirflowFailException):
        tries(tmp_path, "[policy]")()
    assert counted == {"qwenimage.submissions": 1} | charged | failure("content_policy")


def test_a_refused_submission_is_not_counted(sandbox: Sandbox, counted: Counter[str], tmp_path: Path) -> None:
    sandbox.script("generate", "payment")
    with pytest.raises(AirflowFailException):
        tries(tmp_path)()
    assert counted == failure("credits")


@pytest.mark.parametrize("prompt", ["a fox", "[policy]"])
@pytest.mark.parametrize(("cost", "charged"), COSTS_OF_A_FAILURE)
def test_the_image_of_a_submit_only_task_counts_in_the_sensor_that_waits_for_it(
    sandbox: Sandbox, counted: Counter[str], prompt: str, cost: float, charged: dict[str, float]
) -> None:
    sandbox.configure(failed_credits=cost)
    submit = QwenImageGenerateOperator(task_id="draw", prompt=prompt)
    image_task_id = submit.execute(context_of())
    assert counted == {"qwenimage.submissions": 1}
    counted.clear()
    wait = QwenImageStatusSensor(task_id="wait", image_task_id=image_task_id, deferrable=False, poke_interval=0.05)
    if prompt == "a fox":
        wait.execute(context_of())
        assert counted == {"qwenimage.images": 1, "qwenimage.credits_consumed": 5}
    else:
        with pytest.raises(AirflowFailException):
            wait.execute(context_of())
        assert counted == charged | failure("content_policy")
