"""The sandbox calls a callback_url when its task completes."""

from __future__ import annotations

import asyncio
import json
import queue
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_qwenimage.sandbox import callbacks
from tests.events import wait_until

if TYPE_CHECKING:
    from tests.sandbox.conftest import Api


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
