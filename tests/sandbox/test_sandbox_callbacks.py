"""The sandbox calls a callback_url when its task ends, or as its settings and scripts tell it."""

from __future__ import annotations

import asyncio
import json
import queue
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest
import requests

from airflow_provider_qwenimage.sandbox import Sandbox, callbacks
from airflow_provider_qwenimage.sandbox.faults import callback_times
from tests.events import wait_until

if TYPE_CHECKING:
    from tests.sandbox.conftest import Api


_HOLD_SECONDS = 0.3


class Receiver:
    """A web server that records what is posted to it; it answers with the given statuses, then with 200."""

    def __init__(self, *statuses: int) -> None:
        self.received: queue.Queue[dict[str, Any]] = queue.Queue()
        remaining = list(statuses)
        received = self.received

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                received.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(remaining.pop(0) if remaining else 200)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the standard library's name
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/done"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def receiver(request: pytest.FixtureRequest) -> Iterator[Receiver]:
    opened = Receiver(*getattr(request, "param", ()))
    yield opened
    opened.close()


class HeldCallback:
    """Holds back the only callback of a test until `release`, and shortens the pauses between its tries."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._released, self._finished = threading.Event(), threading.Event()
        call = callbacks.Callbacks._call

        async def held_call(*args: Any) -> None:
            while not self._released.is_set():  # noqa: ASYNC110  the event belongs to another thread
                await asyncio.sleep(0.005)
            await call(*args)
            self._finished.set()

        monkeypatch.setattr(callbacks.Callbacks, "_call", held_call)
        monkeypatch.setattr(callbacks, "_PAUSES_SECONDS", (0.0, 0.01, 0.01))

    def release(self) -> None:
        """Let the callback start, and wait until its last try is over."""
        self._released.set()
        wait_until(self._finished.is_set, "the end of the callback")


@pytest.fixture
def held_callback(monkeypatch: pytest.MonkeyPatch) -> HeldCallback:
    return HeldCallback(monkeypatch)


@pytest.mark.parametrize(("prompt", "status"), [("a cat", "SUCCESS"), ("a cat [fail]", "FAILED")])
def test_the_url_is_called_once_with_the_final_status(
    api: Api, receiver: Receiver, held_callback: HeldCallback, prompt: str, status: str
) -> None:
    api.sandbox.configure(seconds_per_image=0.1)
    task_id = api.submit(prompt, callback_url=receiver.url)
    assert receiver.received.empty()
    held_callback.release()
    payload = receiver.received.get_nowait()
    assert (payload["task_id"], payload["status"]) == (task_id, status)
    assert payload == api.status(task_id).json()["data"]
    assert receiver.received.empty()
    (record,) = api.sandbox.callbacks
    assert (record.task_id, record.url, record.status) == (task_id, receiver.url, 200)
    assert record.time >= api.sandbox.submissions[0].accepted_at + 0.1


@pytest.mark.parametrize("receiver", [(500,)], indirect=True)
def test_a_refused_callback_is_retried(api: Api, receiver: Receiver, held_callback: HeldCallback) -> None:
    api.submit(callback_url=receiver.url)
    held_callback.release()
    assert receiver.received.get_nowait() == receiver.received.get_nowait()
    assert receiver.received.empty()
    assert [record.status for record in api.sandbox.callbacks] == [500, 200]


def test_an_unreachable_callback_url_is_recorded_and_does_not_delay_the_stop(
    api: Api, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, stop_promptly: Callable[[], None]
) -> None:
    monkeypatch.setattr(callbacks, "_PAUSES_SECONDS", (0.0, 3600.0))
    receiver.server.server_close()
    api.submit(callback_url=receiver.url)
    wait_until(lambda: api.sandbox.callbacks, "the first try")
    stop_promptly()
    (record,) = api.sandbox.callbacks
    assert record.status is None


def test_a_reset_cancels_pending_callbacks(api: Api, receiver: Receiver, held_callback: HeldCallback) -> None:
    api.submit(callback_url=receiver.url)
    api.sandbox.reset()
    held_callback.release()
    assert receiver.received.empty()
    assert api.sandbox.callbacks == []


@pytest.mark.parametrize(
    ("callback", "times"),
    [("on_time", [100.0]), ("late", [107.0]), ("twice", [100.0, 107.0]), ("early", [93.0, 100.0]), ("never", [])],
)
def test_a_callback_can_be_late_repeated_early_or_missing(callback: str, times: list[float]) -> None:
    assert list(callback_times(callback, 100.0, 7.0)) == times


def statuses(api: Api, number: int) -> list[tuple[str, int | None]]:
    """Wait for so many tries of callbacks, and return the task and the result of each."""
    wait_until(lambda: len(api.sandbox.callbacks) >= number, f"{number} tries of callbacks")
    return [(record.task_id, record.status) for record in api.sandbox.callbacks]


def test_a_late_callback_comes_after_the_end(api: Api, receiver: Receiver) -> None:
    api.sandbox.configure(callback="late", callback_delay_seconds=0.3)
    task_id = api.submit(callback_url=receiver.url)
    assert statuses(api, 1) == [(task_id, 200)]
    assert api.sandbox.callbacks[0].time >= api.sandbox.submissions[0].accepted_at + 0.3


def test_a_repeated_callback_comes_twice_with_the_same_payload(api: Api, receiver: Receiver) -> None:
    api.sandbox.configure(callback="twice", callback_delay_seconds=0)
    task_id = api.submit(callback_url=receiver.url)
    assert statuses(api, 2) == [(task_id, 200)] * 2
    assert receiver.received.get_nowait() == receiver.received.get_nowait()


def test_an_early_callback_comes_while_the_task_is_not_finished(api: Api, receiver: Receiver) -> None:
    api.sandbox.configure(seconds_per_image=3600, callback="early", callback_delay_seconds=3600)
    task_id = api.submit(callback_url=receiver.url)
    assert statuses(api, 1) == [(task_id, 200)]
    payload = receiver.received.get_nowait()
    assert (payload["status"], payload["response"]) == ("PENDING", None)


def test_the_callback_of_each_submission_can_be_scripted(api: Api, receiver: Receiver) -> None:
    api.sandbox.configure(callback="never")
    api.sandbox.script("generate", "callback_on_time", "callback_never", "ok", ("callback_on_time", 1))
    called = [api.submit(callback_url=receiver.url) for _ in range(4)]
    assert {task_id for task_id, _ in statuses(api, 2)} == {called[0], called[3]}
    assert len(api.sandbox.callbacks) == 2


def test_a_changed_setting_applies_to_submissions_after_it(api: Api, receiver: Receiver) -> None:
    api.sandbox.configure(seconds_per_image=0.3)
    task_id = api.submit(callback_url=receiver.url)
    api.sandbox.configure(callback="never")
    api.submit(callback_url=receiver.url)
    assert statuses(api, 1) == [(task_id, 200)]


def test_many_callbacks_at_once_share_a_few_connections_and_lose_no_time_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(callbacks, "_MOST_AT_ONCE", 3)
    lock, open_now, most_open, answered = threading.Lock(), 0, 0, 0

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            nonlocal open_now, most_open, answered
            with lock:
                open_now += 1
                most_open = max(most_open, open_now)
            time.sleep(_HOLD_SECONDS)
            with lock:
                open_now -= 1
                answered += 1
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the standard library's name
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        with Sandbox(seconds_per_image=0.5) as sandbox, requests.Session() as session:
            session.headers["Authorization"] = f"Bearer {sandbox.api_key}"
            url = f"http://127.0.0.1:{server.server_address[1]}/done"
            for _ in range(60):
                session.post(f"{sandbox.url}/api/generate", json={"prompt": "a cat", "callback_url": url})
            wait_until(lambda: len(sandbox.callbacks) >= 60, "all callbacks")
            # In all they take longer than the timeout of one.
            assert [record.status for record in sandbox.callbacks] == [200] * 60
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert (most_open, answered) == (3, 60)
    assert 60 * _HOLD_SECONDS / 3 > callbacks._TIMEOUT_SECONDS
