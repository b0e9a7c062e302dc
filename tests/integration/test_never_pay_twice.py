"""A try that crashes at any point: the next try does not pay again."""

import os
import signal
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_qwenimage.hooks import QwenImageHook
from airflow_provider_qwenimage.sandbox import Sandbox
from airflow_provider_qwenimage.storage import image_pairs, images
from airflow_provider_qwenimage.tasks import generating
from airflow_provider_qwenimage.tasks.ledger import Ledger
from tests.events import run_when
from tests.integration.dag_runs import (
    AIMS,
    Crash,
    DagRun,
    TaskEnd,
    TestDag,
    crash_once,
    dag_that_draws,
    with_aims,
)

with_every_record = with_aims(*AIMS, recorded=True)
with_any_record = with_aims("waited for", "stored, deferred", recorded=True)
in_storage = with_aims(*(name for name, aim in AIMS.items() if "output_path" in aim))
waiting = with_aims(*(name for name, aim in AIMS.items() if not name.startswith("submitted")), recorded=True)


_ACCEPTED = [(QwenImageHook, "submit_once", True), (Ledger, "accept", False)]


def _ends(run: DagRun) -> list[TaskEnd]:
    return run.mapped("draw") or [run["draw"]]


def _assert_each_image_is_paid_once(run: DagRun, api: Sandbox, aim: dict[str, Any], folder: Path) -> None:
    """Every task has its image, in storage if it stores, and paid for it once."""
    ends = _ends(run)
    assert run.state == "success"
    assert len(api.submissions) == len(ends)
    assert api.credits_charged == 5 * len(ends)
    submitted = [submission.task_id for submission in api.submissions]
    assert sorted(end.xcoms["task_id"] for end in ends) == sorted(submitted)
    for end in ends:
        if end.xcoms.keys() == {"request", "task_id", "return_value"}:
            assert end.returned == end.xcoms["task_id"]
        else:
            assert end.returned["task_id"] == end.xcoms["task_id"]
            assert end.returned["consumed_credits"] == end.xcoms["consumed_credits"] == 5
            assert end.returned["reused"] is False
    stored = [Path(path).name for end in ends if "output_path" in aim for path in end.returned["paths"]]
    assert len(set(stored)) == (len(ends) if "output_path" in aim else 0)
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        name for image in stored for name in (image, f"{Path(image).stem}.json")
    )


def _assert_tried_twice(run: DagRun, crash: str) -> None:
    # Mapped tasks run in any order.
    first, *others = sorted(_ends(run), key=lambda end: -end.tries)
    assert [str(error) for error in first.errors] == [crash]
    assert first.tries == 2
    assert [(end.tries, end.errors) for end in others] == [(1, [])] * len(others)


def _assert_one_crash_is_paid_once(
    monkeypatch: pytest.MonkeyPatch, crash: tuple[Any, str, bool], aim: dict[str, Any], api: Sandbox, folder: Path
) -> None:
    """Crash a task at one point; its retry must succeed and pay nothing more."""
    owner, name, after = crash
    crash_once(monkeypatch, owner, name, after=after)
    run = dag_that_draws(**aim).run()
    _assert_tried_twice(run, name)
    _assert_each_image_is_paid_once(run, api, aim, folder)


@with_every_record
def test_a_retry_after_a_crash_before_the_intent_pays_once(
    connected_api: Sandbox, aim: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _assert_one_crash_is_paid_once(monkeypatch, (Ledger, "intend", False), aim, connected_api, tmp_path)


@pytest.mark.parametrize(
    "crash",
    [
        (Ledger, "intend", True),
        (QwenImageHook, "submit_once", False),
        (QwenImageHook, "submit_once", True),
        (Ledger, "accept", False),
    ],
    ids=["after the intent", "before the request", "after the answer", "before the id is recorded"],
)
@with_any_record
def test_after_a_crash_while_submitting_the_retry_stops_and_a_clear_submits_once(
    connected_api: Sandbox, aim: dict[str, Any], monkeypatch: pytest.MonkeyPatch, crash: tuple[Any, str, bool]
) -> None:
    owner, name, after = crash
    crash_once(monkeypatch, owner, name, after=after)
    dag = dag_that_draws(**aim)
    draw = dag.run()["draw"]

    before = 1 if crash in _ACCEPTED else 0
    assert len(connected_api.submissions) == before
    _assert_stopped(draw)

    again = dag.clear("draw")["draw"]
    assert again.state == "success"
    assert again.errors == []
    assert len(connected_api.submissions) == before + 1
    assert again.returned["task_id"] == connected_api.submissions[-1].task_id


def _assert_stopped(draw: TaskEnd) -> None:
    """The first try crashed, and its retry stopped with one clear error and no further retry."""
    crash, error = draw.errors
    assert isinstance(crash, Crash)
    assert (draw.state, draw.tries) == ("failed", 2)
    assert "QwenImageSubmissionUnknownError: Try 1 of this task ended while it submitted the request" in str(error)
    assert "It may have been accepted and paid (5 credits, as documented)" in str(error)
    assert "Compare the credits on your account, then clear the task to submit it again." in str(error)
    assert "task_id" not in draw.xcoms


@pytest.fixture
def crash_on_signal() -> Iterator[None]:
    """Make SIGUSR1 crash the current try."""

    def crash(number: int, frame: object) -> None:
        raise Crash("accepted")

    before = signal.signal(signal.SIGUSR1, crash)
    yield
    signal.signal(signal.SIGUSR1, before)


@with_any_record
def test_after_a_crash_while_awaiting_the_answer_the_retry_stops_and_a_clear_submits_once(
    connected_api: Sandbox, aim: dict[str, Any], crash_on_signal: None
) -> None:
    connected_api.configure(hang_seconds=3600)
    connected_api.script("generate", "hang_after")
    dag = dag_that_draws(**aim)
    with run_when(lambda: connected_api.submissions, lambda: os.kill(os.getpid(), signal.SIGUSR1)):
        draw = dag.run()["draw"]

    _assert_stopped(draw)
    assert len(connected_api.submissions) == 1
    assert dag.clear("draw").state == "success"
    assert len(connected_api.submissions) == 2


@with_any_record
def test_after_a_lost_answer_and_a_crash_the_retry_stops_and_a_clear_submits_once(
    connected_api: Sandbox, aim: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    connected_api.script("generate", "drop_after")
    crash_once(monkeypatch, Ledger, "report")
    dag = dag_that_draws(**aim)

    _assert_stopped(dag.run()["draw"])
    assert len(connected_api.submissions) == 1
    assert dag.clear("draw").state == "success"
    assert len(connected_api.submissions) == 2


@with_any_record
def test_a_clear_submits_again_only_after_the_unknown_outcome_was_reported(
    connected_api: Sandbox, aim: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    crash_once(monkeypatch, Ledger, "accept")
    dag = dag_that_draws(**aim, retries=0)
    assert dag.run().state == "failed"

    reported = dag.clear("draw")["draw"]
    assert reported.state == "failed"
    assert "QwenImageSubmissionUnknownError" in str(reported.error)
    assert len(connected_api.submissions) == 1

    assert dag.clear("draw").state == "success"
    assert len(connected_api.submissions) == 2


@pytest.mark.parametrize(
    "crash",
    [(Ledger, "accept", True), (Ledger, "finish", False), (Ledger, "finish", True)],
    ids=["after the id is recorded", "before the end is recorded", "after the end is recorded"],
)
@with_every_record
def test_a_retry_after_a_crash_that_follows_the_submission_does_not_pay_again(
    connected_api: Sandbox,
    aim: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    crash: tuple[Any, str, bool],
) -> None:
    _assert_one_crash_is_paid_once(monkeypatch, crash, aim, connected_api, tmp_path)


@waiting
def test_a_retry_after_a_crash_while_waiting_does_not_pay_again(
    connected_api: Sandbox, aim: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In the worker before it polls, or in the resumed task before it reads the trigger's event.
    owner, point = (generating, "snapshot_of") if "deferrable" in aim else (QwenImageHook, "check")
    _assert_one_crash_is_paid_once(monkeypatch, (owner, point, False), aim, connected_api, tmp_path)


@pytest.mark.parametrize(
    "crash",
    [
        (images, "fetch", False),
        (images, "verify_and_store", False),
        (image_pairs, "create_bytes", True),
        (image_pairs, "create_json", True),
    ],
    ids=["before the download", "before it is stored", "between image and sidecar", "after the sidecar"],
)
@in_storage
def test_a_retry_after_a_crash_while_storing_does_not_pay_again(
    connected_api: Sandbox,
    aim: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    crash: tuple[Any, str, bool],
) -> None:
    _assert_one_crash_is_paid_once(monkeypatch, crash, aim, connected_api, tmp_path)


@in_storage
def test_an_image_stored_before_a_crash_is_not_downloaded_again(
    connected_api: Sandbox, aim: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crash_once(monkeypatch, Ledger, "finish")
    run = dag_that_draws(**aim).run()

    _assert_each_image_is_paid_once(run, connected_api, aim, tmp_path)
    downloads = [request for request in connected_api.requests if request.route == "image"]
    assert len(downloads) == len(_ends(run))


@in_storage
def test_a_retry_with_overwrite_does_not_pay_again_for_an_image_that_the_previous_try_stored(
    connected_api: Sandbox, aim: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crash_once(monkeypatch, Ledger, "finish", after=True)
    run = dag_that_draws(**aim, overwrite=True).run()

    _assert_tried_twice(run, "finish")
    _assert_each_image_is_paid_once(run, connected_api, aim, tmp_path)


@with_any_record
def test_three_crashes_in_a_row_and_a_clear_pay_once(
    connected_api: Sandbox, aim: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crash_once(monkeypatch, Ledger, "accept", after=True)
    crash_once(monkeypatch, QwenImageHook, "check")
    crash_once(monkeypatch, Ledger, "finish")
    dag = dag_that_draws(**aim)
    draw = dag.run()["draw"]

    assert (draw.state, [str(error) for error in draw.errors]) == ("failed", ["accept", "check", "finish"])
    _assert_each_image_is_paid_once(dag.clear("draw"), connected_api, aim, tmp_path)


@with_every_record
def test_a_retry_whose_templates_render_differently_resumes_the_paid_image(
    connected_api: Sandbox, aim: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds = count(100)
    crash_once(monkeypatch, Ledger, "accept", after=True)
    dag = TestDag(user_defined_macros={"next_seed": seeds.__next__})
    run = dag_that_draws(dag, **aim, seed="{{ next_seed() }}").run()

    _assert_tried_twice(run, "accept")
    _assert_each_image_is_paid_once(run, connected_api, aim, tmp_path)
    for end in _ends(run):
        (paid,) = (one for one in connected_api.submissions if one.task_id == end.xcoms["task_id"])
        assert end.xcoms["request"] == paid.request
        if isinstance(end.returned, dict):
            assert end.returned["seed"] == paid.seed
    assert next(seeds) > 100 + len(connected_api.submissions), (
        "the templates were rendered only once, so this test proves nothing"
    )
