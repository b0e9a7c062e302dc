"""All waits of an event loop and connection share one client: counted, paced together, closed by the last."""

from __future__ import annotations

import asyncio
import gc
import inspect
import itertools
import json
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_qwenimage import hooks
from airflow_provider_qwenimage.client import shared_clients, transport
from airflow_provider_qwenimage.exceptions import QwenImageError
from airflow_provider_qwenimage.hooks import QwenImageAsyncHook, QwenImageHook
from airflow_provider_qwenimage.rules import polling
from airflow_provider_qwenimage.rules.polling import PollPolicy
from airflow_provider_qwenimage.rules.rate_limit import RateLimit
from airflow_provider_qwenimage.sandbox import Sandbox
from airflow_provider_qwenimage.triggers import QwenImageStatusTrigger
from tests.events import finish_image, run_when, wait_until
from tests.sending import note_sending

CONNECTION = "AIRFLOW_CONN_QWENIMAGE_DEFAULT"


@pytest.fixture
def sandbox(qwenimage_sandbox: Sandbox) -> Sandbox:
    qwenimage_sandbox.configure(seconds_per_image=3600)
    return qwenimage_sandbox


def draw_all(sandbox: Sandbox) -> None:
    for submission in sandbox.submissions:
        finish_image(sandbox, submission.task_id)


def change_connection(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, **extra: Any) -> None:
    fields = json.loads(sandbox.connection_json)
    monkeypatch.setenv(CONNECTION, json.dumps(fields | {"extra": json.dumps(extra)}))


def submitted(number: int) -> list[str]:
    with QwenImageHook() as hook:
        return [hook.generate(f"Boat {index}") for index in range(number)]


async def fired(image_task_id: str, **arguments: Any) -> Any:
    trigger = QwenImageStatusTrigger(image_task_id=image_task_id, **{"poll_interval": 0.02} | arguments)
    return [event.payload async for event in trigger.run()]


def run(main: Callable[[], Awaitable[Any]]) -> Any:
    """Run a coroutine in its own event loop, and check that no client stays open in it."""

    async def checked() -> Any:
        result = await main()
        assert not shared_clients._CONNECTIONS.get(asyncio.get_running_loop()), "a client is still open"
        return result

    return asyncio.run(checked())


def status_reads(sandbox: Sandbox) -> list[Any]:
    return [record for record in sandbox.requests if record.route == "status"]


def test_a_hundred_waits_share_a_few_connections_and_every_one_ends(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A slow machine opens more connections, because more polls are due at once; a client for each wait would open 100.
    monkeypatch.setattr(transport, "MAX_CONNECTIONS", 10)
    ids = submitted(100)

    async def wait_for_all() -> list[Any]:
        return await asyncio.gather(*(fired(image_task_id, poll_interval=0.2) for image_task_id in ids))

    with run_when(lambda: {read.task_id for read in status_reads(sandbox)} == set(ids), lambda: draw_all(sandbox)):
        events = run(wait_for_all)
    assert [event["status"] for (event,) in events] == ["success"] * 100
    reads = status_reads(sandbox)
    assert len(reads) >= 200
    assert len({read.client_port for read in reads}) < 70


def test_waits_one_after_another_share_a_connection_while_one_of_them_stays(sandbox: Sandbox) -> None:
    sandbox.configure(seconds_per_image=0)
    ids = submitted(5)

    async def one_by_one() -> None:
        async with QwenImageAsyncHook() as stays:
            session = await stays.get_conn()
            for image_task_id in ids:
                await fired(image_task_id)
                assert await stays.get_conn() is session

    run(one_by_one)
    assert len({read.client_port for read in status_reads(sandbox)}) == 1


def test_the_last_wait_closes_the_client_and_the_next_one_opens_another(sandbox: Sandbox) -> None:
    async def leave_and_come_back() -> None:
        first, second = QwenImageAsyncHook(), QwenImageAsyncHook()
        session = await first.get_conn()
        assert await second.get_conn() is session
        await first.close()
        await first.close()
        open_then = not session.closed
        await second.close()
        assert (open_then, session.closed) == (True, True)
        assert await second.get_conn() is not session
        await second.close()

    run(leave_and_come_back)


@pytest.mark.parametrize("moment", ["first delay", "look-up", "first read", "later"])
def test_a_cancelled_wait_leaves_the_others_and_the_last_one_closes(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    ids = submitted(3)
    looked_up = []

    async def look_up_for_ever(conn_id: str) -> None:
        looked_up.append(conn_id)
        await asyncio.Event().wait()

    def is_there(image_task_id: str) -> bool:
        reads = sum(image_task_id in read.path for read in status_reads(sandbox))
        return {"first delay": True, "look-up": bool(looked_up), "first read": reads == 1, "later": reads > 1}[moment]

    poll_interval = 0.02
    if moment == "first delay":
        poll_interval = 3600.0
    elif moment == "look-up":
        monkeypatch.setattr(hooks, "look_up_connection_async", look_up_for_ever)
    elif moment == "first read":
        sandbox.script("status", ("hang", 3))

    async def cancel_one_after_another() -> None:
        waits = [asyncio.create_task(fired(image_task_id, poll_interval=poll_interval)) for image_task_id in ids]
        for image_task_id, wait in zip(ids, waits, strict=True):
            await asyncio.to_thread(wait_until, partial(is_there, image_task_id), moment)
            assert not wait.done()
            wait.cancel()
            with pytest.raises(asyncio.CancelledError):
                await wait

    run(cancel_one_after_another)


def test_a_failed_wait_releases_its_client_too(sandbox: Sandbox) -> None:
    async def fail() -> Any:
        return await asyncio.gather(fired("nobody knows this"), fired("nor this"))

    assert {event["error"] for (event,) in run(fail)} == {"QwenImageNotFoundError"}


def test_a_connection_that_is_not_usable_leaves_nothing_behind(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_connection(sandbox, monkeypatch, verify="/nowhere/ca.pem")
    (event,) = run(lambda: fired("n43"))
    assert "/nowhere/ca.pem" in event["message"]
    assert event["permanent"]
    with QwenImageHook() as hook, pytest.raises(ValueError, match="it must be true, false or the path"):
        hook.get_conn()


def test_new_waits_use_a_changed_connection_while_old_ones_keep_theirs(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_clients, "_LOOK_UP_SECONDS", 0.0)
    image_task_id, *_ = submitted(1)

    async def change() -> None:
        async with QwenImageAsyncHook() as old, QwenImageAsyncHook() as new:
            session = await old.get_conn()
            with Sandbox(api_keys=("sk-other",)) as other:
                monkeypatch.setenv(CONNECTION, other.connection_json)
                assert await new.get_conn() is not session
                works, story = await new.test_connection()
                assert works
                assert other.url in story
                assert len(status_reads(other)) == 1
                assert await old.get_conn() is session
                assert (await old.get_status(image_task_id)).task_id == image_task_id

    run(change)


def test_a_thousand_waits_look_their_connection_up_once() -> None:
    looked_up = []

    async def look_up() -> Any:
        looked_up.append(1)
        await asyncio.sleep(0)
        return object()

    async def look_up_together() -> None:
        connection = shared_clients._SharedConnection()
        found: set[Any] = set(await asyncio.gather(*(connection.look_up(look_up) for _ in range(1000))))
        assert len(found) == 1

    asyncio.run(look_up_together())
    assert len(looked_up) == 1


def test_a_failed_look_up_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_clients, "_LOOK_UP_SECONDS", 3600.0)
    answers = [QwenImageError("Airflow is away"), "connection"]

    async def look_up() -> Any:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def look_up_again() -> None:
        connection = shared_clients._SharedConnection()
        with pytest.raises(QwenImageError, match="away"):
            await connection.look_up(look_up)
        found: list[Any] = [await connection.look_up(look_up) for _ in range(2)]
        assert found == ["connection"] * 2

    asyncio.run(look_up_again())


def test_a_cancelled_look_up_goes_on_for_the_others() -> None:
    async def cancel_the_first() -> None:
        connection, begun, may_end = shared_clients._SharedConnection(), asyncio.Event(), asyncio.Event()

        async def look_up() -> Any:
            begun.set()
            await may_end.wait()
            return "connection"

        first, second = (asyncio.create_task(connection.look_up(look_up)) for _ in range(2))
        await begun.wait()
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        may_end.set()
        found: Any = await second
        assert found == "connection"

    asyncio.run(cancel_the_first())


def test_many_waits_together_do_not_exceed_the_connections_rate(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = submitted(20)
    change_connection(sandbox, monkeypatch, max_requests_per_second=100)
    sent = note_sending(monkeypatch)

    async def wait_for_all() -> list[Any]:
        return await asyncio.gather(*(fired(image_task_id, poll_interval=0.02) for image_task_id in ids))

    started = time.time()
    with run_when(lambda: len(status_reads(sandbox)) > 30, lambda: draw_all(sandbox)):
        events = run(wait_for_all)
    assert {event["status"] for (event,) in events} == {"success"}
    times = [moment for _, moment in sent]
    assert all(later - earlier >= 0.01 - 1e-6 for earlier, later in itertools.pairwise(times))
    arrived = sorted(read.time for read in status_reads(sandbox))
    assert len(arrived) == len(times)
    assert all(moment - started >= 0.01 * number - 0.005 for number, moment in enumerate(arrived))


def test_a_429_to_one_wait_holds_them_all(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    sandbox.configure(retry_after=1.0)
    ids = submitted(20)
    sent, refused, held = note_sending(monkeypatch), RateLimit.refused, list[float]()

    def note(limit: RateLimit, sent_at: float, now: float, retry_after: float | None) -> None:
        held.append(now)
        refused(limit, sent_at, now, retry_after)

    monkeypatch.setattr(RateLimit, "refused", note)

    async def wait_for_all() -> list[Any]:
        return await asyncio.gather(*(fired(image_task_id, poll_interval=0.1) for image_task_id in ids))

    def refuse_one() -> None:
        sandbox.script("status", "rate_limit")
        wait_until(lambda: held and sent[-1][1] > held[0], "the first request after the refusal")
        draw_all(sandbox)

    with run_when(lambda: {read.task_id for read in status_reads(sandbox)} == set(ids), refuse_one):
        events = run(wait_for_all)
    assert {event["status"] for (event,) in events} == {"success"}
    (refusal,) = held
    since = [moment - refusal for _, moment in sent if moment > refusal]
    # Requests that were already under way are not held.
    assert min(since) >= 1.0 - 1e-6
    assert len(since) >= 20
    assert len(sent) == len(status_reads(sandbox))


def test_the_waits_of_a_connection_keep_little_of_their_own(sandbox: Sandbox) -> None:
    """Python's garbage collection visits every object that one of ten thousand waits keeps."""
    sandbox.configure(seconds_per_image=3600)
    (image_task_id,) = submitted(1)

    async def wait_with_both() -> None:
        async with QwenImageAsyncHook() as one, QwenImageAsyncHook() as other:
            waits = [asyncio.ensure_future(hook.follow(image_task_id, PollPolicy())) for hook in (one, other)]
            await asyncio.to_thread(wait_until, lambda: one.last_credits and other.last_credits, "the polls")
            assert await one.get_settings() is await other.get_settings()
            assert one.retries is other.retries
            for hook in (one, other):
                assert (hook._log, hook.booked_ids) == (None, None)
                methods = {kept.__name__ for kept in gc.get_referrers(hook) if inspect.ismethod(kept)}
                assert methods <= {"__aexit__"}
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)

    run(wait_with_both)


def test_a_hook_keeps_settings_that_differ_from_those_of_other_users(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_clients, "_LOOK_UP_SECONDS", -1.0)

    async def read() -> list[tuple[float, bool]]:
        async with QwenImageAsyncHook() as one, QwenImageAsyncHook(timeout_seconds=7) as two:
            await one.get_conn()
            await two.get_conn()
            change_connection(sandbox, monkeypatch, no_such_option=1)
            async with QwenImageAsyncHook() as three:
                await three.get_conn()
                settings = [await hook.get_settings() for hook in (one, two, three)]
        return [(each.timeout_seconds, "no_such_option" in each.ignored) for each in settings]

    assert run(read) == [(30, False), (7, False), (30, True)]


def test_first_polls_of_many_waits_are_spread(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    sandbox.configure(seconds_per_image=0)
    ids = submitted(200)
    follow, due = QwenImageAsyncHook.follow, dict[str, float]()
    delays = list[float]()

    async def note(hook: QwenImageAsyncHook, image_task_id: str, policy: PollPolicy, *, first_delay: float) -> Any:
        delays.append(first_delay)
        due[image_task_id] = time.time() + first_delay
        return await follow(hook, image_task_id, policy, first_delay=first_delay)

    monkeypatch.setattr(QwenImageAsyncHook, "follow", note)

    async def wait_for_all() -> list[Any]:
        return await asyncio.gather(*(fired(image_task_id, poll_interval=0.2) for image_task_id in ids))

    run(wait_for_all)
    reads = status_reads(sandbox)
    assert len(reads) == 200
    assert all(read.time >= due[read.task_id] - 0.005 for read in reads)
    # On average 50 in a quarter of the interval; the bound leaves room for chance.
    busiest = max(sum(1 for other in delays if start <= other < start + 0.05) for start in delays)
    assert busiest <= 120
    assert max(delays) - min(delays) > 0.18


def test_a_wait_that_never_gets_its_turn_ends_a_while_after_its_deadline(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = submitted(2)
    monkeypatch.setattr(polling, "LAST_TURN_SECONDS", 0.2)
    change_connection(sandbox, monkeypatch, max_requests_per_second=0.001)

    async def wait_for_both() -> list[Any]:
        async with QwenImageAsyncHook() as other:
            # This takes the only request of a thousand seconds.
            await other.get_status(ids[0])
            end_time = time.time() + 0.1
            events = await asyncio.gather(*(fired(one, poll_interval=0.05, end_time=end_time) for one in ids))
            assert time.time() >= end_time + 0.2 - 0.005
            return events

    events = [event for (event,) in run(wait_for_both)]
    assert {event["error"] for event in events} == {"QwenImageTimeoutError"}
    assert all("max_requests_per_second" in event["message"] for event in events)
    assert len(status_reads(sandbox)) == 1


def test_spread_first_polls_stay_between_half_an_interval_and_one_and_a_half() -> None:
    policy = PollPolicy(poll_interval=4.0)
    drawn = iter([0.0, 0.25, 0.5, 0.75, 1.0])
    delays = [policy.first_delay(0.0, drawn.__next__) for _ in range(5)]
    assert delays == [2.0, 3.0, 4.0, 5.0, 6.0]
    assert {later - earlier for earlier, later in itertools.pairwise(delays)} == {1.0}
    assert PollPolicy(poll_interval=4.0, end_time=11.0).first_delay(10.0, lambda: 1.0) == 1.0


def test_a_file_of_authorities_without_any_is_a_bad_connection(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "authorities.pem"
    file.write_text("no certificate")
    change_connection(sandbox, monkeypatch, verify=str(file))

    async def look() -> None:
        async with QwenImageAsyncHook() as hook:
            with pytest.raises(ValueError, match="holds no certificates"):
                await hook.get_conn()

    run(look)
