"""The trigger: how Airflow stores it, which events it fires, and how the resumed task reads them."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from typing import Any

import pytest

from airflow_provider_qwenimage.contract import TaskSnapshot, TaskStatus
from airflow_provider_qwenimage.exceptions import (
    QwenImageAuthError,
    QwenImageContentPolicyError,
    QwenImageContractError,
    QwenImageError,
    QwenImageNotFoundError,
    QwenImageRateLimitError,
    QwenImageServerError,
    QwenImageTaskFailedError,
    QwenImageTimeoutError,
)
from airflow_provider_qwenimage.rules import polling
from airflow_provider_qwenimage.rules.polling import Done, GiveUp
from airflow_provider_qwenimage.rules.snapshots import task_failure
from airflow_provider_qwenimage.sandbox import Sandbox
from airflow_provider_qwenimage.triggers import QwenImageStatusTrigger, event_of, snapshot_of
from tests.events import finish_images, status_reads, wait_until

DONE = TaskSnapshot(
    task_id="n43", status=TaskStatus.SUCCESS, consumed_credits=5, image_urls=("https://cdn.example.com/1.png",)
)
FAILED = TaskSnapshot(
    task_id="n43", status=TaskStatus.FAILED, consumed_credits=0, error_message="Content policy violation detected"
)


async def payload_of(trigger: QwenImageStatusTrigger) -> dict[str, Any]:
    payloads: list[Any] = [event.payload async for event in trigger.run()]
    (payload,) = payloads
    assert json.loads(json.dumps(payload)) == payload
    return dict(payload)


def fired(trigger: QwenImageStatusTrigger) -> dict[str, Any]:
    return asyncio.run(payload_of(trigger))


@pytest.fixture
def sandbox(qwenimage_sandbox: Sandbox) -> Sandbox:
    return qwenimage_sandbox


def submitted(prompt: str = "a fox") -> str:
    from airflow_provider_qwenimage.hooks import QwenImageHook

    with QwenImageHook() as hook:
        return hook.generate(prompt)


def test_a_serialized_trigger_contains_only_ids_and_numbers_and_makes_an_equal_trigger() -> None:
    trigger = QwenImageStatusTrigger(
        image_task_id="n43",
        qwenimage_conn_id="c",
        poll_interval=2.5,
        end_time=123.5,
        max_consecutive_failures=3,
        try_number=2,
    )
    path, kwargs = trigger.serialize()
    assert path == "airflow_provider_qwenimage.triggers.QwenImageStatusTrigger"
    assert kwargs == {
        "image_task_id": "n43",
        "qwenimage_conn_id": "c",
        "poll_interval": 2.5,
        "end_time": 123.5,
        "max_consecutive_failures": 3,
        "try_number": 2,
    }
    assert QwenImageStatusTrigger(**json.loads(json.dumps(kwargs))).serialize() == (path, kwargs)


def test_a_trigger_that_waits_for_a_callback_has_one_argument_more_that_older_triggerers_do_not_know() -> None:
    trigger = QwenImageStatusTrigger(image_task_id="n43", callback="d" * 64)
    path, kwargs = trigger.serialize()
    without = QwenImageStatusTrigger(image_task_id="n43").serialize()
    assert (path, {name: value for name, value in kwargs.items() if name != "callback"}) == without
    assert QwenImageStatusTrigger(**json.loads(json.dumps(kwargs))).serialize() == (path, kwargs)


@pytest.mark.parametrize(
    ("callback", "trigger_id", "interval", "seconds"),
    [(None, 7, 2.0, 2.0), ("d" * 64, 7, 2.0, 30.0), ("d" * 64, 7, 60.0, 60.0), ("d" * 64, None, 2.0, 2.0)],
    ids=["no callback", "callback", "a slower pace", "dag.test()"],
)
def test_a_triggerer_that_waits_for_a_callback_polls_every_30_seconds(
    callback: str | None, trigger_id: int | None, interval: float, seconds: float
) -> None:
    trigger = QwenImageStatusTrigger(image_task_id="n43", poll_interval=interval, end_time=5.0, callback=callback)
    trigger.trigger_id = trigger_id
    policy = trigger._policy()
    assert policy.poll_interval == seconds
    assert (policy.end_time, policy.max_consecutive_failures) == (5.0, trigger.policy.max_consecutive_failures)


def test_a_triggerer_fires_no_event_while_the_deferred_process_may_still_be_ending(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL", "1")
    monkeypatch.setattr(polling, "_SCHEDULER_SECONDS", 0.1)
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    found = QwenImageStatusTrigger(image_task_id=submitted(), poll_interval=0.05)
    unusable = QwenImageStatusTrigger(image_task_id="n43", qwenimage_conn_id="missing")
    started = time.monotonic()

    async def fire(trigger: QwenImageStatusTrigger) -> tuple[str, bool]:
        trigger.trigger_id = 7
        payload = await payload_of(trigger)
        return payload["status"], time.monotonic() - started >= 1.1

    async def fire_both() -> list[tuple[str, bool]]:
        return list(await asyncio.gather(fire(found), fire(unusable)))

    assert asyncio.run(fire_both()) == [("success", True), ("error", True)]


def test_a_success_is_fired_once_with_its_whole_snapshot(sandbox: Sandbox) -> None:
    task_id = submitted()
    event = fired(QwenImageStatusTrigger(image_task_id=task_id, poll_interval=0.05))
    assert (event["status"], event["image_task_id"]) == ("success", task_id)
    assert snapshot_of(event).image_urls[0].startswith("http")


def test_the_first_poll_is_about_one_interval_after_the_start(sandbox: Sandbox) -> None:
    sandbox.configure(seconds_per_image=0)
    task_id = submitted()
    started = time.time()
    fired(QwenImageStatusTrigger(image_task_id=task_id, poll_interval=0.5))
    (poll,) = [record for record in sandbox.requests if record.route == "status"]
    assert poll.time - started >= 0.25


@pytest.mark.parametrize(
    ("word", "error_class"), [("[policy]", QwenImageContentPolicyError), ("[fail]", QwenImageTaskFailedError)]
)
def test_a_failed_task_is_fired_with_the_apis_reason(
    sandbox: Sandbox, word: str, error_class: type[QwenImageError]
) -> None:
    event = fired(QwenImageStatusTrigger(image_task_id=submitted(word), poll_interval=0.05))
    with pytest.raises(QwenImageTaskFailedError) as caught:
        snapshot_of(event)
    assert type(caught.value) is error_class
    assert caught.value.snapshot is not None


def test_a_deadline_is_kept_by_a_trigger_that_starts_late(sandbox: Sandbox) -> None:
    sandbox.configure(seconds_per_image=3600)
    event = fired(QwenImageStatusTrigger(image_task_id=submitted(), poll_interval=3600.0, end_time=time.time() - 5))
    with pytest.raises(QwenImageTimeoutError, match="did not end before the deadline"):
        snapshot_of(event)


def connect_with(monkeypatch: pytest.MonkeyPatch, sandbox: Sandbox, password: str) -> None:
    connection = json.loads(sandbox.connection_json) | {"password": password}
    monkeypatch.setenv("AIRFLOW_CONN_QWENIMAGE_DEFAULT", json.dumps(connection))


def test_a_connection_without_a_key_is_fired_as_a_permanent_error(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    task_id = submitted()
    connect_with(monkeypatch, sandbox, "")
    event = fired(QwenImageStatusTrigger(image_task_id=task_id, poll_interval=0.05))
    with pytest.raises(QwenImageError, match="API key") as caught:
        snapshot_of(event)
    assert caught.value.permanent


def test_a_rejected_key_is_fired_as_an_error_that_airflow_retries(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    task_id = submitted()
    connect_with(monkeypatch, sandbox, "sk-wrong")
    event = fired(QwenImageStatusTrigger(image_task_id=task_id, poll_interval=0.01, max_consecutive_failures=3))
    with pytest.raises(QwenImageAuthError, match="connection 'qwenimage_default' was rejected") as caught:
        snapshot_of(event)
    assert not caught.value.permanent
    assert status_reads(sandbox) == 3


def test_an_unknown_task_is_fired_as_an_error_that_airflow_retries(sandbox: Sandbox) -> None:
    event = fired(QwenImageStatusTrigger(image_task_id="no-such-task", poll_interval=0.01))
    with pytest.raises(QwenImageNotFoundError, match="after 10 failed reads in a row") as caught:
        snapshot_of(event)
    assert not caught.value.permanent


@pytest.mark.parametrize("error", [QwenImageAuthError("no", code=401), QwenImageNotFoundError("no", code=404)])
def test_an_event_of_an_earlier_version_does_not_end_a_wait_for_good(error: QwenImageError) -> None:
    with pytest.raises(type(error)) as caught:
        snapshot_of(event_of(GiveUp(error), "n43") | {"permanent": True})
    assert not caught.value.permanent


def test_a_few_failed_polls_do_not_end_the_wait(sandbox: Sandbox) -> None:
    task_id = submitted()
    sandbox.script("status", *["server_error"] * 5)
    assert fired(QwenImageStatusTrigger(image_task_id=task_id, poll_interval=0.02))["status"] == "success"


def test_too_many_failures_in_a_row_are_fired_as_an_error(sandbox: Sandbox) -> None:
    task_id = submitted()
    sandbox.script("status", *["server_error"] * 5)
    event = fired(QwenImageStatusTrigger(image_task_id=task_id, poll_interval=0.02, max_consecutive_failures=3))
    with pytest.raises(QwenImageServerError, match="after 3 failed reads in a row"):
        snapshot_of(event)


def test_a_trigger_only_reads_and_never_submits(sandbox: Sandbox) -> None:
    task_id = submitted()
    for _ in range(2):
        fired(QwenImageStatusTrigger(image_task_id=task_id, poll_interval=0.02))
    assert {record.method for record in sandbox.requests[1:]} == {"GET"}
    assert len(sandbox.submissions) == 1


def test_a_cancelled_trigger_leaves_no_connection_open(sandbox: Sandbox) -> None:
    sandbox.configure(seconds_per_image=3600)
    task_id = submitted()

    async def cancel() -> None:
        import gc

        import aiohttp

        def all_sessions() -> list[aiohttp.ClientSession]:
            return [found for found in gc.get_objects() if type(found) is aiohttp.ClientSession]

        # Sessions of other tests, for example of s3fs, live as long as the process.
        others = all_sessions()
        running = asyncio.create_task(consume(QwenImageStatusTrigger(image_task_id=task_id, poll_interval=0.02)))
        await until_polled(sandbox, 2)
        sessions = [found for found in all_sessions() if found not in others]
        assert any(not session.closed for session in sessions)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert all(session.closed for session in sessions)

    asyncio.run(cancel())


@pytest.mark.parametrize(
    "error",
    [
        QwenImageServerError("no", code=500),
        QwenImageRateLimitError("too many", code=429, retry_after=90.0),
        QwenImageTimeoutError("late"),
        QwenImageContractError("odd"),
        task_failure(FAILED),
    ],
)
def test_an_error_reaches_the_resumed_task_unchanged(error: QwenImageError) -> None:
    with pytest.raises(QwenImageError) as caught:
        snapshot_of(json.loads(json.dumps(event_of(GiveUp(error), "n43"))))
    assert type(caught.value) is type(error)
    assert (str(caught.value), caught.value.permanent) == (str(error), error.permanent)
    assert getattr(caught.value, "retry_after", None) == getattr(error, "retry_after", None)


def test_a_snapshot_reaches_the_resumed_task_unchanged() -> None:
    assert snapshot_of(json.loads(json.dumps(event_of(Done(DONE), "n43")))) == DONE


@pytest.mark.parametrize(
    "event",
    [
        None,
        {},
        [],
        "success",
        {"status": "success"},
        {"status": "success", "snapshot": None},
        {"status": "success", "snapshot": {"task_id": "n43", "status": "SUCCESS"}},
        {"status": "success", "snapshot": FAILED.to_data()},
        {"status": "SUCCESS", "snapshot": DONE.to_data()},
        {"status": "done", "snapshot": DONE.to_data()},
        {"status": "error"},
        {"status": "error", "message": 5},
        {"status": "error", "message": "no", "error": "SystemExit"},
        {"status": "error", "message": "no", "error": "TaskSnapshot"},
        {"status": "error", "message": "no", "error": "QwenImageTaskFailedError", "snapshot": 5},
    ],
)
def test_an_event_that_is_not_a_complete_success_is_an_error(event: object) -> None:
    with pytest.raises(QwenImageError):
        snapshot_of(event)


@pytest.fixture
def trigger_log(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """Capture the log of triggers: Airflow 3 uses a logger for them that pytest does not see."""
    monkeypatch.setattr(QwenImageStatusTrigger, "_log", logging.getLogger(__name__))
    caplog.set_level(logging.WARNING, __name__)
    return caplog


async def until_polled(sandbox: Sandbox, times: int) -> None:
    await asyncio.to_thread(wait_until, lambda: status_reads(sandbox) >= times, f"poll {times}")


async def consume(trigger: QwenImageStatusTrigger) -> None:
    async for _ in trigger.run():
        pass


def test_a_kill_logs_the_paid_image_task_and_sends_no_request(
    sandbox: Sandbox, trigger_log: pytest.LogCaptureFixture
) -> None:
    sandbox.configure(seconds_per_image=3600)
    task_id = submitted()
    trigger = QwenImageStatusTrigger(image_task_id=task_id, poll_interval=0.02)
    # No third poll may be under way while the requests are counted.
    sandbox.script("status", "ok", "hang")

    async def kill_as_airflow_does() -> None:
        running = asyncio.create_task(consume(trigger))
        await until_polled(sandbox, 2)
        running.cancel("Trigger cancelled by user action")
        with pytest.raises(asyncio.CancelledError):
            await running
        sent = len(sandbox.requests)
        trigger_log.clear()
        await trigger.on_kill()
        assert len(sandbox.requests) == sent

    asyncio.run(kill_as_airflow_does())
    (record,) = trigger_log.records
    assert record.levelno == logging.WARNING
    for part in (task_id, "5 credits, as the API last reported", "clear this task", "QwenImageStatusSensor"):
        assert part in record.getMessage()
    assert {record.method for record in sandbox.requests[1:]} == {"GET"}
    assert [submission.task_id for submission in sandbox.submissions] == [task_id]


def test_a_kill_before_the_first_answer_logs_the_documented_price(trigger_log: pytest.LogCaptureFixture) -> None:
    asyncio.run(QwenImageStatusTrigger(image_task_id="n43").on_kill())
    assert "n43" in trigger_log.text
    assert "5 credits, as documented" in trigger_log.text


def test_a_task_that_a_callback_has_woken_is_no_cause_for_alarm(trigger_log: pytest.LogCaptureFixture) -> None:
    trigger_log.set_level(logging.INFO, __name__)
    asyncio.run(QwenImageStatusTrigger(image_task_id="n43", callback="d" * 64).on_kill())
    (record,) = trigger_log.records
    assert record.levelno == logging.INFO
    assert "n43" in record.getMessage()


@pytest.mark.parametrize(
    "times",
    [
        pytest.param(1, marks=pytest.mark.airflow_feature("triggerer stops", "logs what is paid")),
        pytest.param(0, marks=pytest.mark.airflow_feature("triggerer stops", "silent")),
    ],
)
def test_a_cancelled_wait_is_logged_if_airflow_does_not_distinguish_kills_from_moves(
    sandbox: Sandbox, trigger_log: pytest.LogCaptureFixture, times: int
) -> None:
    sandbox.configure(seconds_per_image=3600)
    trigger = QwenImageStatusTrigger(image_task_id=submitted(), poll_interval=0.02)

    async def cancel() -> None:
        running = asyncio.create_task(consume(trigger))
        await until_polled(sandbox, 2)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    asyncio.run(cancel())
    messages = [record.getMessage() for record in trigger_log.records]
    assert [trigger.image_task_id in message for message in messages] == [True] * times
    assert all("5 credits, as the API last reported" in message for message in messages)


def test_a_moved_wait_continues_in_another_triggerer(sandbox: Sandbox) -> None:
    sandbox.configure(seconds_per_image=3600)
    task_id, end_time = submitted(), time.time() + 3600
    trigger = QwenImageStatusTrigger(image_task_id=task_id, poll_interval=0.02, end_time=end_time)

    async def move() -> None:
        running = asyncio.create_task(consume(trigger))
        await until_polled(sandbox, 2)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    asyncio.run(move())
    path, kwargs = trigger.serialize()
    moved = QwenImageStatusTrigger(**json.loads(json.dumps(kwargs)))
    assert moved.serialize() == (path, kwargs)
    assert kwargs["end_time"] == end_time
    finish_images(sandbox)
    assert snapshot_of(fired(moved)).task_id == task_id
    assert len(sandbox.submissions) == 1
