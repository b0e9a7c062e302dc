"""A callback_url is called when its task completes."""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.sandbox.conftest import Api


class Receiver:
    """A web server that keeps what is posted to it and answers as it is told."""

    def __init__(self, *answers: int) -> None:
        self.received: queue.Queue[dict[str, Any]] = queue.Queue()
        todo = list(answers)
        received = self.received

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                received.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(todo.pop(0) if todo else 200)
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


@pytest.mark.parametrize(("prompt", "status"), [("a cat", "SUCCESS"), ("a cat [fail]", "FAILED")])
def test_the_url_is_called_once_with_the_final_status(api: Api, receiver: Receiver, prompt: str, status: str) -> None:
    api.sandbox.configure(seconds_per_image=0.1)
    task_id = api.submit(prompt, callback_url=receiver.url)
    assert receiver.received.empty()
    payload = receiver.received.get(timeout=5)
    assert (payload["task_id"], payload["status"]) == (task_id, status)
    assert payload == api.status(task_id).json()["data"]
    time.sleep(0.1)
    assert receiver.received.empty()
    (record,) = api.sandbox.callbacks
    assert (record.task_id, record.url, record.status) == (task_id, receiver.url, 200)


@pytest.mark.parametrize("receiver", [(500,)], indirect=True)
def test_a_refused_call_is_tried_again(api: Api, receiver: Receiver) -> None:
    api.submit(callback_url=receiver.url)
    assert receiver.received.get(timeout=5) == receiver.received.get(timeout=5)
    time.sleep(0.1)
    assert [record.status for record in api.sandbox.callbacks] == [500, 200]


def test_nobody_there_is_noted_and_does_not_hold_up_the_stop(api: Api, receiver: Receiver) -> None:
    receiver.server.server_close()
    api.submit(callback_url=receiver.url)
    deadline = time.monotonic() + 5
    while not api.sandbox.callbacks and time.monotonic() < deadline:
        time.sleep(0.01)
    started = time.monotonic()
    api.sandbox.stop()
    assert time.monotonic() - started < 1
    assert api.sandbox.callbacks[0].status is None


def test_a_reset_takes_promised_calls_back(api: Api, receiver: Receiver) -> None:
    api.sandbox.configure(seconds_per_image=0.1)
    api.submit(callback_url=receiver.url)
    api.sandbox.reset()
    time.sleep(0.2)
    assert receiver.received.empty()
