"""Failures of the operator: whatever goes wrong after a submission, it is paid once."""

import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException, AirflowTaskTimeout

from airflow_provider_qwenimage.exceptions import (
    QwenImageImageError,
    QwenImageServerError,
    QwenImageTaskFailedError,
    QwenImageTimeoutError,
)
from airflow_provider_qwenimage.sandbox import Sandbox
from tests.events import at_second_polls, pass_deadlines, pass_execution_timeout, run_when
from tests.integration.dag_runs import TaskEnd, dag_that_draws, is_recorded, stored_files, with_aims

in_both_ways = pytest.mark.parametrize("deferrable", [False, True], ids=["in the worker", "deferred"])


in_all_aims = with_aims("waited for", "waited for, deferred", "stored", "stored, deferred")


def _draw(**arguments: Any) -> TaskEnd:
    return dag_that_draws(**arguments).run()["draw"]


def _assert_failed_at_once(draw: TaskEnd, api: Sandbox, advice: str) -> None:
    (submission,) = api.submissions
    assert (draw.state, draw.tries) == ("failed", 1)
    assert isinstance(draw.error, AirflowFailException)
    assert f"Image task {submission.task_id} is submitted and may be paid" in str(draw.error)
    assert advice in str(draw.error)
    assert draw.xcoms["task_id"] == submission.task_id


def _assert_failed_after_resuming(draw: TaskEnd, api: Sandbox, error: type[BaseException]) -> None:
    (submission,) = api.submissions
    assert (draw.state, draw.tries) == ("failed", 3)
    assert [type(end) for end in draw.errors] == [error] * 3
    assert draw.xcoms["task_id"] == submission.task_id


_FREE_CLEAR = "Clear this task to resume it; that costs nothing."
_COSTLY_CLEAR = "Get the image with a QwenImageStatusSensor for that id, or clear this task to pay for a new one."


@in_all_aims
def test_a_failed_image_is_submitted_again_by_a_retry(connected_api: Sandbox, aim: dict[str, Any]) -> None:
    connected_api.script("generate", "failure")
    draw = _draw(**aim)

    assert (draw.state, draw.tries) == ("success", 2)
    (error,) = draw.errors
    assert isinstance(error, QwenImageTaskFailedError)
    assert "The image could not be drawn" in str(error)
    assert draw.returned["task_id"] == connected_api.submissions[-1].task_id
    assert [submission.charged for submission in connected_api.submissions] == [0, 5]


@in_all_aims
def test_a_retry_does_not_poll_a_failed_image_again(connected_api: Sandbox, aim: dict[str, Any]) -> None:
    connected_api.configure(seconds_per_image=0)
    connected_api.script("generate", "failure")
    assert _draw(**aim).tries == 2

    failed = connected_api.submissions[0].task_id
    about = [request.route for request in connected_api.requests if request.task_id == failed]
    assert about == ["generate", "status"]


@in_all_aims
def test_an_image_that_always_fails_is_submitted_by_each_try_and_the_price_is_pushed(
    connected_api: Sandbox, aim: dict[str, Any]
) -> None:
    connected_api.configure(failed_credits=4)
    draw = _draw(prompt="Fog [fail]", **aim)

    assert (draw.state, draw.tries) == ("failed", 3)
    assert len(connected_api.submissions) == 3
    assert draw.xcoms["task_id"] == connected_api.submissions[-1].task_id
    assert draw.xcoms["consumed_credits"] == 4
    assert ["It cost 4 credits" in str(error) for error in draw.errors] == [True] * 3
    assert "return_value" not in draw.xcoms


@in_all_aims
def test_a_refused_prompt_is_not_submitted_again(connected_api: Sandbox, aim: dict[str, Any]) -> None:
    draw = _draw(prompt="A celebrity [policy]", **aim)

    assert (draw.state, draw.tries) == ("failed", 1)
    assert "Content policy violation detected" in str(draw.error)
    assert "It cost 0 credits" in str(draw.error)
    assert draw.xcoms["consumed_credits"] == 0
    assert len(connected_api.submissions) == 1


@in_both_ways
def test_waiting_survives_an_api_that_fails_five_times(connected_api: Sandbox, deferrable: bool) -> None:
    connected_api.script("status", ("server_error", 5))
    draw = _draw(wait_for_completion=True, deferrable=deferrable)

    assert (draw.state, draw.tries) == ("success", 1)
    assert len(connected_api.submissions) == 1


@in_all_aims
def test_a_retry_polls_again_after_too_many_failed_polls_and_pays_once(
    connected_api: Sandbox, aim: dict[str, Any]
) -> None:
    # Before it defers, the worker polls once.
    connected_api.script("status", ("server_error", 3 if "deferrable" in aim else 2))
    draw = _draw(**aim, max_consecutive_failures=2)

    if not is_recorded(aim):
        return _assert_failed_at_once(draw, connected_api, _COSTLY_CLEAR)
    (submission,) = connected_api.submissions
    assert (draw.state, draw.tries) == ("success", 2)
    assert [type(end) for end in draw.errors] == [QwenImageServerError]
    assert draw.returned["task_id"] == draw.xcoms["task_id"] == submission.task_id
    assert draw.returned["consumed_credits"] == draw.xcoms["consumed_credits"] == 5
    return None


@in_all_aims
@pytest.mark.parametrize("behaviour", ["created", "error_after"])
def test_an_accepted_image_is_waited_for_and_paid_once_whatever_status_is_around_it(
    connected_api: Sandbox, aim: dict[str, Any], behaviour: str
) -> None:
    connected_api.configure(unknown_seconds=0.3)
    connected_api.script("generate", (behaviour, 10))
    draw = _draw(**aim, max_consecutive_failures=10_000)

    assert (draw.state, draw.tries) == ("success", 1)
    assert [record.route for record in connected_api.requests].count("generate") == 1
    assert connected_api.credits_charged == 5


@in_all_aims
@pytest.mark.parametrize("fault", ["unauthorized", "forbidden", "not_found", "payment", "html", "empty"])
def test_a_refused_poll_is_a_blip(connected_api: Sandbox, aim: dict[str, Any], fault: str) -> None:
    connected_api.script("status", (fault, 2), "ok", fault)
    draw = _draw(**aim)

    assert (draw.state, draw.tries) == ("success", 1)
    assert len(connected_api.submissions) == 1


@in_all_aims
@pytest.mark.parametrize("fault", ["unauthorized", "not_found"])
def test_a_retry_polls_again_after_too_many_refused_polls_and_pays_once(
    connected_api: Sandbox, aim: dict[str, Any], fault: str
) -> None:
    connected_api.script("status", (fault, 3 if "deferrable" in aim else 2))
    draw = _draw(**aim, max_consecutive_failures=2)

    if not is_recorded(aim):
        return _assert_failed_at_once(draw, connected_api, _COSTLY_CLEAR)
    assert (draw.state, draw.tries) == ("success", 2)
    assert "Check the task id" not in str(draw.errors[0])
    assert "after 2 failed reads in a row" in str(draw.errors[0])
    assert len(connected_api.submissions) == 1
    return None


@in_all_aims
def test_a_retry_resumes_a_wait_past_its_timeout_and_pays_once(
    connected_api: Sandbox, aim: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    connected_api.configure(seconds_per_image=3600)
    ahead = pass_deadlines(monkeypatch)
    draw = _draw(**aim, timeout=3600)

    if is_recorded(aim):
        _assert_failed_after_resuming(draw, connected_api, QwenImageTimeoutError)
    else:
        _assert_failed_at_once(draw, connected_api, _COSTLY_CLEAR)
    assert "did not end before the deadline" in str(draw.errors[-1])
    assert len(ahead) == draw.tries
    assert all(1800 < seconds <= 3600 for seconds in ahead)


@in_all_aims
def test_a_retry_resumes_a_wait_past_the_execution_timeout_and_pays_once(
    connected_api: Sandbox, aim: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    connected_api.configure(seconds_per_image=3600)
    if "deferrable" in aim:
        ahead = pass_deadlines(monkeypatch)
    else:
        ahead = at_second_polls(monkeypatch, lambda _: threading.Thread(target=pass_execution_timeout).start())
    draw = _draw(**aim, timeout=7200, execution_timeout=timedelta(hours=1))

    assert len(ahead) == draw.tries
    if "deferrable" in aim:
        # Shortly before the execution timeout, since Airflow does not enforce it while a task is deferred.
        assert all(1800 < seconds < 3600 for seconds in ahead)
    if not is_recorded(aim):
        return _assert_failed_at_once(draw, connected_api, _COSTLY_CLEAR)
    error = QwenImageTimeoutError if "deferrable" in aim else AirflowTaskTimeout
    return _assert_failed_after_resuming(draw, connected_api, error)


@with_aims("submitted", "stored")
def test_a_submission_cut_off_by_the_execution_timeout_is_not_sent_again(
    connected_api: Sandbox, aim: dict[str, Any]
) -> None:
    connected_api.configure(hang_seconds=3600)
    connected_api.script("generate", "hang_after")
    with run_when(lambda: connected_api.submissions, pass_execution_timeout):
        draw = _draw(**aim, execution_timeout=timedelta(hours=1))

    assert (draw.state, draw.tries) == ("failed", 1)
    assert len(connected_api.submissions) == 1
    assert "the task's execution_timeout passed first" in str(draw.error)
    assert "may have been accepted and paid" in str(draw.error)
    assert "then clear the task to submit it again" in str(draw.error)


@pytest.mark.parametrize("fault", ["truncate", "truncate_with_length", "garbage", "html", "empty", "not_found"])
def test_an_invalid_image_is_neither_stored_nor_paid_again(
    connected_api: Sandbox, tmp_path: Path, quick_downloads: None, fault: str
) -> None:
    connected_api.script("image", (fault, 50))
    draw = _draw(output_path=str(tmp_path), size="768*1024", deferrable=fault == "truncate")

    _assert_failed_after_resuming(draw, connected_api, QwenImageImageError)
    assert stored_files(tmp_path) == []


@pytest.mark.parametrize("fault", ["wrong_format", "wrong_size"])
def test_an_image_of_the_wrong_format_or_size_is_kept_beside_and_not_paid_again(
    connected_api: Sandbox, tmp_path: Path, fault: str
) -> None:
    connected_api.script("image", (fault, 50))
    draw = _draw(output_path=str(tmp_path), size="768*1024")

    _assert_failed_at_once(draw, connected_api, _FREE_CLEAR)
    assert "QwenImageImageError" in str(draw.error)
    (kept,) = (file for file in tmp_path.glob("*.refused.*") if file.suffix != ".json")
    assert str(kept) in str(draw.error)
    assert len(stored_files(tmp_path)) == 2


def test_a_retry_stores_an_image_whose_downloads_were_truncated_before(
    connected_api: Sandbox, tmp_path: Path, quick_downloads: None
) -> None:
    connected_api.script("image", ("truncate", 8))
    draw = _draw(output_path=str(tmp_path))

    (submission,) = connected_api.submissions
    assert (draw.state, draw.tries) == ("success", 2)
    assert draw.returned["task_id"] == submission.task_id
    assert draw.returned["consumed_credits"] == draw.xcoms["consumed_credits"] == 5
    assert len(stored_files(tmp_path)) == 2


def test_an_image_over_the_size_limit_is_neither_stored_nor_paid_again(connected_api: Sandbox, tmp_path: Path) -> None:
    draw = _draw(output_path=str(tmp_path), max_image_bytes=1000)

    _assert_failed_at_once(draw, connected_api, _FREE_CLEAR)
    assert "larger than allowed" in str(draw.error)
    assert stored_files(tmp_path) == []


def test_a_download_that_breaks_is_tried_again(connected_api: Sandbox, tmp_path: Path, quick_downloads: None) -> None:
    connected_api.script("image", "truncate", "html", "drop")
    draw = _draw(output_path=str(tmp_path))

    assert (draw.state, draw.tries) == ("success", 1)
    assert len(stored_files(tmp_path)) == 2
    assert len(connected_api.submissions) == 1


@pytest.mark.parametrize("fault", ["drop_after", "html_after", "malformed", "wrong_shape"])
def test_a_submission_whose_answer_is_lost_is_not_sent_again(connected_api: Sandbox, fault: str) -> None:
    connected_api.script("generate", fault)
    draw = _draw()

    assert (draw.state, draw.tries) == ("failed", 1)
    assert len(connected_api.submissions) == 1
    assert len(connected_api.requests) == 1
    assert isinstance(draw.error, AirflowFailException)
    assert "QwenImageSubmissionUnknownError" in str(draw.error)
    assert "may have been accepted and paid" in str(draw.error)
    assert "Compare the credits on your account, then clear the task" in str(draw.error)


def test_a_submission_that_was_certainly_not_accepted_is_sent_again(
    connected_api: Sandbox, quick_resends: None
) -> None:
    connected_api.script("generate", "server_error")
    draw = _draw()

    assert (draw.state, draw.tries) == ("success", 1)
    assert len(connected_api.submissions) == 1


@pytest.mark.parametrize(
    ("fault", "advice"),
    [
        ("unauthorized", "The key in connection 'qwenimage_default' was rejected. Correct it"),
        ("payment", "Buy credits"),
        ("forbidden", "is not allowed to do this. Correct it"),
    ],
)
def test_a_refused_submission_is_not_retried(connected_api: Sandbox, fault: str, advice: str) -> None:
    connected_api.script("generate", fault)
    draw = _draw()

    assert (draw.state, draw.tries) == ("failed", 1)
    assert advice in str(draw.error)
    assert len(connected_api.requests) == 1


def test_nothing_is_requested_if_storage_cannot_be_reached(connected_api: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    draw = _draw(output_path=str(tmp_path / "file" / "images"), retries=0)

    assert draw.state == "failed"
    assert connected_api.requests == []
