"""What version 0.1.0 wrote about its submissions is understood: a task that it paid for goes back to its image."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_qwenimage.hooks import QwenImageHook
from airflow_provider_qwenimage.sandbox import Sandbox
from tests.airflows import HAS_TASK_STATES
from tests.integration.dag_runs import TaskEnd, TestDag, dag_that_draws, visible_files, with_aims

PROMPT = "A red kite over the sea"

# As version 0.1.0 wrote it before it submitted.
_INTENT: dict[str, Any] = {
    "request": {"prompt": PROMPT, "size": "1024*1024", "seed": -1, "output_format": "jpeg"},
    "fingerprint": "0de13645e7aadc3b4d685a81af7b19063c685605368622846bb5ec4cd23afa3e",
    "intended_at": "2026-11-26T13:07:40+00:00",
    "try_number": 1,
    "max_tries": 2,
    "image_task_id": None,
    "finished": False,
    "failure": None,
    "refused": False,
    "reported": False,
    "missed": False,
    "counted": False,
    "spent": 0.0,
}
_ACCEPTED = _INTENT | {"image_task_id": "…"}
_FINISHED = _ACCEPTED | {"finished": True, "counted": True}
_FAILED = _ACCEPTED | {
    "failure": "Image task n43ce306e7b92dbqwenimg failed: The image could not be drawn. It cost 0 credits. Submit the "
    "prompt again for a new image."
}
_REFUSED = _ACCEPTED | {
    "failure": "Image task n43cb88b5303cf2qwenimg failed: Content policy violation detected. It cost 0 credits. Change "
    "the prompt: the same one will be refused again.",
    "refused": True,
}
_REPORTED = _INTENT | {"reported": True}

with_any_record = with_aims(
    "submitted", "waited for", "waited for, deferred", "stored", "stored, deferred", recorded=True
)
waiting = with_aims("waited for", "waited for, deferred", "stored", "stored, deferred", recorded=True)


def _draws_after(record: dict[str, Any], aim: dict[str, Any], folder: Path, **arguments: Any) -> TestDag:
    """Return a DAG whose task finds in its second try what its first try wrote under version 0.1.0."""

    def write(context: Any) -> None:
        if context["ti"].try_number != 1:
            return
        if HAS_TASK_STATES:
            from airflow.sdk import NEVER_EXPIRE  # type: ignore[attr-defined,unused-ignore]

            retention = {} if record["finished"] else {"retention": NEVER_EXPIRE}
            context["task_state_store"].set("qwenimage_submission", record, **retention)
        elif not record["finished"]:
            # The file of a finished submission was removed.
            _record_file(folder, context["ti"]).write_text(json.dumps(record) + "\n")
        raise RuntimeError("The worker was killed.")

    return dag_that_draws(**aim, prompt=PROMPT, pre_execute=write, **arguments)


def _record_file(folder: Path, ti: Any) -> Path:
    identity = json.dumps([ti.dag_id, ti.run_id, ti.task_id, ti.map_index])
    return folder / f".submission-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.json"


@pytest.fixture
def paid(connected_api: Sandbox) -> str:
    """The id of an image task that version 0.1.0 submitted."""
    with QwenImageHook() as hook:
        return hook.generate(PROMPT)


def _returned_id(draw: TaskEnd) -> str:
    return str(draw.returned if isinstance(draw.returned, str) else draw.returned["task_id"])


@with_any_record
def test_the_retry_of_a_task_that_was_paid_goes_back_to_its_image(
    connected_api: Sandbox, paid: str, aim: dict[str, Any], tmp_path: Path
) -> None:
    draw = _draws_after(_ACCEPTED | {"image_task_id": paid}, aim, tmp_path).run()["draw"]

    assert (draw.state, draw.tries) == ("success", 2)
    assert _returned_id(draw) == draw.xcoms["task_id"] == paid
    assert len(connected_api.submissions) == 1
    assert len(visible_files(tmp_path)) == (2 if "output_path" in aim else 0)


@with_any_record
def test_clearing_a_task_that_was_paid_goes_back_to_its_image(
    connected_api: Sandbox, paid: str, aim: dict[str, Any], tmp_path: Path
) -> None:
    # With retries=0, Airflow's max_tries was 0.
    record = _ACCEPTED | {"image_task_id": paid, "max_tries": 0}
    dag = _draws_after(record, aim, tmp_path, retries=0)
    assert dag.run().state == "failed"

    draw = dag.clear("draw")["draw"]
    assert (draw.state, _returned_id(draw)) == ("success", paid)
    assert len(connected_api.submissions) == 1


@with_any_record
def test_a_submission_without_an_answer_stops_the_retry_and_a_clear_submits_once(
    connected_api: Sandbox, aim: dict[str, Any], tmp_path: Path
) -> None:
    dag = _draws_after(_INTENT, aim, tmp_path)
    draw = dag.run()["draw"]

    assert (draw.state, draw.tries, connected_api.submissions) == ("failed", 2, [])
    assert "QwenImageSubmissionUnknownError" in str(draw.errors[-1])
    assert "Try 1 of this task" in str(draw.errors[-1])
    assert dag.clear("draw").state == "success"
    assert len(connected_api.submissions) == 1


@with_any_record
def test_a_reported_submission_without_an_answer_is_submitted_by_the_first_clear(
    connected_api: Sandbox, aim: dict[str, Any], tmp_path: Path
) -> None:
    dag = _draws_after(_REPORTED | {"max_tries": 0}, aim, tmp_path, retries=0)
    assert dag.run().state == "failed"

    assert dag.clear("draw").state == "success"
    assert len(connected_api.submissions) == 1


@with_aims("submitted", "waited for", "waited for, deferred", recorded=True)
def test_the_retry_of_a_task_that_was_finished_returns_its_image(
    connected_api: Sandbox, paid: str, aim: dict[str, Any], tmp_path: Path
) -> None:
    draw = _draws_after(_FINISHED | {"image_task_id": paid}, aim, tmp_path).run()["draw"]

    assert (draw.state, _returned_id(draw)) == ("success", paid)
    assert len(connected_api.submissions) == 1


@with_aims("submitted", "waited for", "waited for, deferred", recorded=True)
def test_clearing_a_task_that_was_finished_draws_a_new_image(
    connected_api: Sandbox, paid: str, aim: dict[str, Any], tmp_path: Path
) -> None:
    dag = _draws_after(_FINISHED | {"image_task_id": paid, "max_tries": 0}, aim, tmp_path, retries=0)
    assert dag.run().state == "failed"

    draw = dag.clear("draw")["draw"]
    assert (draw.state, len(connected_api.submissions)) == ("success", 2)
    assert _returned_id(draw) != paid


@waiting
@pytest.mark.parametrize("refused", [False, True], ids=["failed", "refused"])
def test_a_failure_is_submitted_again_by_a_retry_unless_the_prompt_was_refused(
    connected_api: Sandbox, aim: dict[str, Any], tmp_path: Path, refused: bool
) -> None:
    record = (_REFUSED if refused else _FAILED) | {"image_task_id": "n43ce306e7b92dbqwenimg"}
    draw = _draws_after(record, aim, tmp_path).run()["draw"]

    assert (draw.state, draw.tries) == ("failed" if refused else "success", 2)
    assert len(connected_api.submissions) == (0 if refused else 1)


@waiting
def test_the_credits_that_were_spent_count_for_the_limit(
    connected_api: Sandbox, aim: dict[str, Any], tmp_path: Path
) -> None:
    record = _FAILED | {"image_task_id": "n43ce306e7b92dbqwenimg", "spent": 8.0}
    draw = _draws_after(record, aim, tmp_path, max_credits=12).run()["draw"]

    assert (draw.state, draw.tries, connected_api.submissions) == ("failed", 2, [])
    assert "max_credits is 12" in str(draw.errors[-1])


@with_any_record
@pytest.mark.parametrize("unreadable", [{"finished": False}, {"a": "record of a later version", "finished": False}])
def test_a_record_that_cannot_be_read_stops_the_retry(
    connected_api: Sandbox, aim: dict[str, Any], tmp_path: Path, unreadable: dict[str, Any]
) -> None:
    dag = _draws_after(unreadable, aim, tmp_path)
    draw = dag.run()["draw"]

    assert (draw.state, draw.tries, connected_api.submissions) == ("failed", 2, [])
    assert "QwenImageSubmissionUnknownError" in str(draw.errors[-1])
    assert dag.clear("draw").state == "success"
    assert len(connected_api.submissions) == 1


@with_aims("stored", "stored, deferred")
def test_an_image_that_was_stored_is_reused(
    connected_api: Sandbox, aim: dict[str, Any], tmp_path: Path, task_log: Callable[[], str]
) -> None:
    first = dag_that_draws(**aim, prompt=PROMPT).run()["draw"]
    sidecar = tmp_path / "a-red-kite-over-the-sea-0de13645e7aadc3b.json"
    written = json.loads(sidecar.read_text())
    # Only these fields, and the time, differ between runs of version 0.1.0.
    as_before = {name: written[name] for name in _SIDECAR} | {"package_version": "0.1.0"}
    sidecar.write_text(json.dumps(as_before, indent=2))

    again = dag_that_draws(**aim, prompt=PROMPT).run()["draw"]
    assert again.returned == first.returned | {"reused": True, "consumed_credits": 0}
    assert len(connected_api.submissions) == 1
    assert visible_files(tmp_path) == ["a-red-kite-over-the-sea-0de13645e7aadc3b.jpg", sidecar.name]


_SIDECAR = (
    "image",
    "image_number",
    "image_count",
    "request",
    "fingerprint",
    "task_id",
    "status",
    "consumed_credits",
    "image_url",
    "width",
    "height",
    "output_format",
    "size_bytes",
    "sha256",
    "created_at",
    "stored_at",
    "made_by",
)
