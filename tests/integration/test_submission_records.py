"""What the record of a submission contains, and how the next try uses it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_qwenimage.exceptions import (
    QwenImageConnectionError,
    QwenImageRateLimitError,
)
from airflow_provider_qwenimage.sandbox import Sandbox
from airflow_provider_qwenimage.tasks import ledger
from airflow_provider_qwenimage.tasks.ledger import Ledger
from airflow_provider_qwenimage.tasks.records import Records
from tests.integration.dag_runs import (
    crash_once,
    dag_that_draws,
    is_recorded,
    records,
    stored_files,
    with_aims,
)

with_any_record = with_aims("waited for", "stored, deferred", recorded=True)
_UNPROTECTED = "This submission is not recorded"


@with_any_record
def test_the_log_of_a_retry_names_the_image_task_it_resumes(
    connected_api: Sandbox, aim: dict[str, Any], monkeypatch: pytest.MonkeyPatch, task_log: Callable[[], str]
) -> None:
    crash_once(monkeypatch, Ledger, "accept", after=True)
    dag_that_draws(**aim).run()

    (submission,) = connected_api.submissions
    log = task_log()
    # Airflow may print it beside Python's logging.
    assert f"Resuming image task {submission.task_id}, submitted by try 1 of this task" in log
    assert "Nothing is submitted or paid again." in log


@with_any_record
def test_recording_an_image_task_id_is_retried_after_a_storage_error(
    connected_api: Sandbox, aim: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    _break_writing_the_id(monkeypatch, times=2)
    draw = dag_that_draws(**aim).run()["draw"]

    (submission,) = connected_api.submissions
    assert (draw.state, draw.tries) == ("success", 1)
    assert draw.returned["task_id"] == submission.task_id


@with_any_record
def test_an_image_task_id_that_cannot_be_recorded_is_reported_and_not_paid_again(
    connected_api: Sandbox, aim: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    _break_writing_the_id(monkeypatch, times=3)
    dag = dag_that_draws(**aim)
    draw = dag.run()["draw"]

    (submission,) = connected_api.submissions
    assert (draw.state, draw.tries) == ("failed", 1)
    assert f"Image task {submission.task_id} is submitted and may be paid, but its id could not be" in str(draw.error)
    assert draw.xcoms["task_id"] == submission.task_id
    assert dag.clear("draw").state == "failed"
    assert len(connected_api.submissions) == 1


def _break_writing_the_id(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    left: dict[Records, list[int]] = {}
    write = Records.write_id

    def writing(self: Records, submission_id: str, image_task_id: str) -> None:
        if left.setdefault(self, list(range(times))):
            left[self].pop()
            raise OSError("No space left on device")
        write(self, submission_id, image_task_id)

    monkeypatch.setattr(Records, "write_id", writing)
    monkeypatch.setattr(ledger, "_WRITE_PAUSE_SECONDS", 0.01)


@with_any_record
def test_the_callback_url_is_in_no_record(
    connected_api: Sandbox, aim: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crash_once(monkeypatch, Ledger, "accept", after=True)
    dag = dag_that_draws(**aim, retries=0, callback_url=f"{connected_api.url}/called?token=spoken-for")
    dag.run()

    written = "".join(records(dag, tmp_path))
    (submission,) = connected_api.submissions
    assert submission.task_id in written
    assert "callback" not in written
    assert "spoken-for" not in written
    assert dag.clear("draw").state == "success"
    assert all("spoken-for" not in file.read_text() for file in tmp_path.glob("*.json"))
    assert stored_files(tmp_path) == [] or len(stored_files(tmp_path)) == 2


@with_any_record
def test_a_temporarily_refused_submission_is_submitted_by_a_retry(
    connected_api: Sandbox, aim: dict[str, Any], quick_resends: None
) -> None:
    connected_api.configure(retry_after=0)
    # The request is sent once and repeated three times.
    connected_api.script("generate", ("rate_limit", 4))
    draw = dag_that_draws(**aim).run()["draw"]

    assert (draw.state, draw.tries) == ("success", 2)
    assert [type(end) for end in draw.errors] == [QwenImageRateLimitError]
    assert len(connected_api.submissions) == 1


@with_any_record
def test_a_second_plain_500_leaves_the_next_submission_to_a_clear(
    connected_api: Sandbox, aim: dict[str, Any], quick_resends: None
) -> None:
    connected_api.script("generate", ("server_error", 2))
    dag = dag_that_draws(**aim)
    draw = dag.run()["draw"]

    assert (draw.state, draw.tries) == ("failed", 1)
    assert [record.route for record in connected_api.requests] == ["generate"] * 2
    assert "may have been charged" in str(draw.error)
    assert dag.clear("draw").state == "success"
    assert len(connected_api.submissions) == 1


@with_any_record
def test_a_retry_submits_if_the_api_was_unreachable_before(
    connected_api: Sandbox,
    aim: dict[str, Any],
    closed_port: int,
    quick_resends: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nobody = connected_api.connection_json.replace(connected_api.url, f"http://127.0.0.1:{closed_port}")
    monkeypatch.setenv("AIRFLOW_CONN_NOBODY", nobody)
    conn_id = "{{ 'nobody' if ti.try_number == 1 else 'qwenimage_default' }}"
    draw = dag_that_draws(**aim, qwenimage_conn_id=conn_id).run()["draw"]

    assert (draw.state, draw.tries) == ("success", 2)
    assert [type(end) for end in draw.errors] == [QwenImageConnectionError]
    assert len(connected_api.submissions) == 1


@with_any_record
@pytest.mark.parametrize("fault", ["unauthorized", "payment"])
def test_a_clear_submits_a_refused_request(connected_api: Sandbox, aim: dict[str, Any], fault: str) -> None:
    connected_api.script("generate", fault)
    dag = dag_that_draws(**aim)
    assert dag.run()["draw"].tries == 1

    assert dag.clear("draw").state == "success"
    assert len(connected_api.submissions) == 1


@with_any_record
def test_an_unusable_connection_leaves_no_record(
    connected_api: Sandbox, aim: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_QWENIMAGE_DEFAULT", '{"conn_type": "qwenimage"}')
    dag = dag_that_draws(**aim)
    assert dag.run()["draw"].tries == 1
    assert records(dag, tmp_path) == []

    monkeypatch.setenv("AIRFLOW_CONN_QWENIMAGE_DEFAULT", connected_api.connection_json)
    assert dag.clear("draw").state == "success"
    assert len(connected_api.submissions) == 1


@with_aims("submitted", "waited for", "waited for, deferred", "stored", "stored, deferred")
def test_without_durability_a_retry_pays_again(
    connected_api: Sandbox, aim: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crash_once(monkeypatch, Ledger, "accept", after=True)
    dag = dag_that_draws(**aim, durable=False)
    draw = dag.run()["draw"]

    assert (draw.state, draw.tries) == ("success", 2)
    assert connected_api.credits_charged == 10
    assert draw.xcoms["task_id"] == connected_api.submissions[-1].task_id
    assert records(dag, tmp_path) == []


@with_aims("waited for", "stored")
def test_without_durability_an_error_after_a_submission_is_retried_and_paid_again(
    connected_api: Sandbox, aim: dict[str, Any]
) -> None:
    connected_api.script("status", ("server_error", 2))
    draw = dag_that_draws(**aim, durable=False, max_consecutive_failures=2).run()["draw"]

    assert (draw.state, draw.tries) == ("success", 2)
    assert connected_api.credits_charged == 10


@with_aims("submitted", "waited for", "waited for, deferred", "stored", "stored, deferred")
def test_a_warning_is_logged_if_a_submission_cannot_be_recorded(
    connected_api: Sandbox, aim: dict[str, Any], task_log: Callable[[], str]
) -> None:
    assert dag_that_draws(**aim).run().state == "success"

    assert task_log().count(_UNPROTECTED) == (0 if is_recorded(aim) else 1)


def test_no_warning_is_logged_if_recording_is_turned_off(connected_api: Sandbox, task_log: Callable[[], str]) -> None:
    assert dag_that_draws(durable=False).run().state == "success"

    assert _UNPROTECTED not in task_log()


@pytest.mark.airflow_feature("killed worker, no `output_path`", "the retry pays again")
@with_aims("submitted", "waited for", "waited for, deferred")
def test_a_retry_after_a_crash_pays_again_if_the_submission_cannot_be_recorded(
    connected_api: Sandbox, aim: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    crash_once(monkeypatch, Ledger, "accept", after=True)
    draw = dag_that_draws(**aim).run()["draw"]

    assert (draw.state, draw.tries) == ("success", 2)
    assert connected_api.credits_charged == 10


@pytest.mark.airflow_feature("killed worker, no `output_path`", "the retry resumes")
@pytest.mark.parametrize("aim", ["submitted", "waited for", "waited for, deferred"], indirect=True)
def test_a_retry_after_a_crash_does_not_pay_again_if_airflow_records_the_submission(
    connected_api: Sandbox, aim: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    crash_once(monkeypatch, Ledger, "accept", after=True)
    draw = dag_that_draws(**aim).run()["draw"]

    assert (draw.state, draw.tries) == ("success", 2)
    assert connected_api.credits_charged == 5


@with_aims("stored", "stored, deferred")
def test_a_record_in_the_output_folder_is_hidden_and_removed_once_the_image_is_stored(
    connected_api: Sandbox, aim: dict[str, Any], tmp_path: Path
) -> None:
    connected_api.script("status", "not_found")
    dag = dag_that_draws(**aim, max_consecutive_failures=1, retries=0)
    assert dag.run().state == "failed"
    assert stored_files(tmp_path) == []
    hidden = [file.name for file in tmp_path.iterdir()]
    assert hidden
    assert all(name.startswith(".submission-") and name.endswith(".json") for name in hidden)

    assert dag.clear("draw").state == "success"
    assert len(list(tmp_path.iterdir())) == len(stored_files(tmp_path)) == 2


@with_aims("waited for", "waited for, deferred", recorded=True)
def test_each_run_has_a_record_of_its_own(connected_api: Sandbox, aim: dict[str, Any], tmp_path: Path) -> None:
    connected_api.script("status", ("not_found", 4))
    dag = dag_that_draws(**aim, max_consecutive_failures=1, retries=0)
    runs = 2
    for _ in range(runs):
        assert dag.run().state == "failed"

    submitted = [submission.task_id for submission in connected_api.submissions]
    assert len(submitted) == runs * len(aim.get("prompts", [1]))
    recorded = [task_id for record in records(dag, tmp_path) for task_id in submitted if task_id in record]
    assert sorted(recorded) == sorted(submitted)
