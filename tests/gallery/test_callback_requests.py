"""The route of callbacks on each Airflow: what it resumes, and what strangers can send it, over a socket."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import requests
import uvicorn
from sqlalchemy.exc import OperationalError
from starlette.applications import Starlette
from starlette.routing import Mount

from airflow_provider_qwenimage.plugin import GalleryApp, callback_app, waking
from airflow_provider_qwenimage.plugin.callback_app import CallbackApp
from airflow_provider_qwenimage.rules import callbacks, polling
from airflow_provider_qwenimage.rules.callbacks import new_secret
from tests.events import wait_until
from tests.gallery.callback_servers import Rows, Waiting

_LIMIT = callback_app._MOST_BYTES
_BODY = b'{"task_id": "n43", "status": "SUCCESS"}'


class Route:
    """The route alone, at a port of this machine."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"

    def call(self, waiting: Waiting, secret: str | None = None, **arguments: Any) -> requests.Response:
        url = callbacks.callback_url(self.url, waiting.rung_id, secret or waiting.secret)
        return requests.post(url, timeout=60, **({"data": _BODY} | arguments))

    def send(self, path: str, parts: Iterable[bytes] = (), *, headers: str = "", method: str = "POST") -> bytes:
        """Send exact bytes, and return the whole response."""
        head = f"{method} {path} HTTP/1.1\r\nHost: airflow\r\n{headers}\r\n".encode()
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as connection:
            response = b""
            try:
                for part in itertools.chain([head], parts):
                    connection.sendall(part)
                while chunk := connection.recv(65536):
                    response += chunk
            except ConnectionError:
                # It answers, and then closes the connection on what it has not read.
                response = response or connection.recv(65536)
            return response


@contextmanager
def _serving(mount: Mount) -> Iterator[Route]:
    app = Starlette(routes=[mount])
    with socket.create_server(("127.0.0.1", 0)) as bound:
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, log_level="info", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
        thread.start()
        wait_until(lambda: server.started, "the start of the server")
        yield Route(bound.getsockname()[1])
        server.should_exit = True
        thread.join(20)


@pytest.fixture
def route() -> Iterator[Route]:
    with _serving(Mount("/qwenimage/callback", app=CallbackApp())) as route:
        yield route


@pytest.fixture
def rows(airflow_database: None) -> Rows:
    from airflow import settings

    return Rows(settings.engine.url.render_as_string(hide_password=False))


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answer 503 to whatever would reach the database."""

    def find(_: object) -> None:
        raise AssertionError("the database is read")

    monkeypatch.setattr(waking, "find_wait", find)


@pytest.fixture
def settles_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL", "0")
    monkeypatch.setattr(polling, "_SCHEDULER_SECONDS", 1.0)
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))


def _chunk(size: int) -> bytes:
    return f"{size:x}\r\n".encode() + size * b"x" + b"\r\n0\r\n\r\n"


def _path(waiting: Waiting) -> str:
    return callbacks.callback_url("http://airflow", waiting.rung_id, waiting.secret).removeprefix("http://airflow")


def _status(response: bytes) -> int:
    return int(response.split(b" ", 2)[1])


@pytest.mark.parametrize("earlier_tries", [0, 2])
def test_a_callback_resumes_the_task_once_whichever_try_it_is_in(route: Route, rows: Rows, earlier_tries: int) -> None:
    waiting, bystander = rows.add(earlier_tries=earlier_tries), rows.add(earlier_tries=earlier_tries)
    assert route.call(waiting, new_secret()).status_code == 404
    assert route.call(bystander, waiting.secret).status_code == 404
    assert [route.call(waiting).status_code for _ in range(2)] == [200, 404]
    assert rows.is_woken(waiting)
    assert not rows.is_woken(bystander)


@pytest.mark.usefixtures("settles_quickly")
def test_an_early_callback_is_held_until_airflow_has_settled_the_deferral(route: Route, rows: Rows) -> None:
    started = time.monotonic()
    waiting = rows.add(seconds=0)
    assert {route.call(waiting).status_code for _ in range(3)} == {202}
    wait_until(lambda: rows.is_woken(waiting), "the end of the wait")
    assert time.monotonic() - started >= 1
    assert route.call(waiting).status_code == 404


def test_only_so_many_callbacks_are_held(route: Route, rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callback_app, "_MOST_HELD", 1)
    first, second = rows.add(seconds=-3600), rows.add(seconds=-3600)
    assert [route.call(waiting).status_code for waiting in (first, first, second, first)] == [202, 202, 503, 202]


@pytest.mark.usefixtures("unread")
@pytest.mark.parametrize(
    "change",
    [
        lambda path: path[:-1],
        lambda path: f"{path}a",
        lambda path: f"{path}/",
        lambda path: f"{path}/a",
        lambda path: f"{path}%00",
        lambda path: path.replace("/callback/", "/callback/%2e%2e/"),
        lambda path: path.replace("-", "", 1),
        lambda path: path.replace("/callback/", "/callback//"),
        lambda path: path.replace("/callback/", "/callback/x/"),
        lambda path: f"/qwenimage/callback/{'a' * 5000}/{'b' * 5000}",
        lambda _: "/qwenimage/callback/%FF%FE/%F0%9F%A6%8A",
        lambda _: "/qwenimage/callback/",
    ],
)
def test_what_is_no_callback_url_is_answered_without_a_look_at_the_database(
    route: Route, change: Callable[[str], str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    waiting = Waiting(uuid.uuid4(), uuid.uuid4(), new_secret())
    response = route.send(change(_path(waiting)), headers="Content-Length: 0\r\nConnection: close\r\n")
    assert _status(response) == 404
    assert waiting.secret[:-1] not in caplog.text


@pytest.mark.usefixtures("unread")
@pytest.mark.parametrize(
    ("headers", "parts"),
    [
        (f"Content-Length: {_LIMIT + 1}\r\n", ()),
        (f"Content-Length: {_LIMIT + 1}\r\n", ((_LIMIT + 1) * b"x",)),
        (f"Content-Length: {10**18}\r\n", (100 * b"x",)),
        (f"Content-Length: {'9' * 5000}\r\n", ()),
        ("Transfer-Encoding: chunked\r\n", (_LIMIT // 1000 + 1) * (b"3e8\r\n" + 1000 * b"x" + b"\r\n",)),
        ("Transfer-Encoding: chunked\r\n", (_chunk(_LIMIT + 1),)),
    ],
)
def test_a_large_body_is_refused_before_it_is_read_whole(route: Route, headers: str, parts: tuple[bytes, ...]) -> None:
    waiting = Waiting(uuid.uuid4(), uuid.uuid4(), new_secret())
    response = route.send(_path(waiting), parts, headers=headers)
    # The server itself refuses some lengths.
    assert _status(response) in {413, 400}
    assert waiting.secret.encode() not in response


@pytest.mark.parametrize(
    ("headers", "parts"),
    [
        ("", ()),
        (f"Content-Length: {_LIMIT}\r\n", (_LIMIT * b"\xff",)),
        ("Transfer-Encoding: chunked\r\n", (_chunk(_LIMIT),)),
        ("Content-Type: application/json\r\nContent-Length: 9\r\n", (b'{"a": NaN',)),
        ("Authorization: Bearer forged\r\nCookie: _token=forged\r\nContent-Length: 0\r\n", ()),
    ],
)
def test_whatever_a_small_body_says_the_task_is_resumed(
    route: Route, rows: Rows, headers: str, parts: tuple[bytes, ...]
) -> None:
    waiting = rows.add()
    response = route.send(_path(waiting), parts, headers=headers)
    assert _status(response) == 200
    assert rows.is_woken(waiting)


@pytest.mark.usefixtures("unread")
def test_a_slow_body_ends_at_a_time_limit_and_an_incomplete_one_resumes_nothing(
    route: Route, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(callback_app.log, "disabled", False)
    monkeypatch.setattr(callback_app, "_READ_SECONDS", 0.3)
    waiting = Waiting(uuid.uuid4(), uuid.uuid4(), new_secret())
    assert _status(route.send(_path(waiting), [b"abc"], headers="Content-Length: 10\r\n")) == 408
    # Each part in time, all of them not.
    stop = threading.Event()

    def parts() -> Iterator[bytes]:
        while not stop.is_set():
            yield b"1\r\nx\r\n"
            time.sleep(0.05)

    threading.Timer(5, stop.set).start()
    assert _status(route.send(_path(waiting), parts(), headers="Transfer-Encoding: chunked\r\n")) == 408
    with socket.create_connection(("127.0.0.1", route.port)) as connection:
        connection.sendall(f"POST {_path(waiting)} HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc".encode())
    assert route.call(waiting).status_code == 503
    # Of these, only the last was looked for.
    assert caplog.text.count("could not be checked") == 1


@pytest.mark.usefixtures("unread")
@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_no_other_method_is_allowed(route: Route, method: str) -> None:
    waiting = Waiting(uuid.uuid4(), uuid.uuid4(), new_secret())
    response = route.send(_path(waiting), headers="Connection: close\r\n", method=method)
    assert _status(response) == 405
    assert b"allow: POST" in response


def test_a_websocket_is_refused() -> None:
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    waiting = Waiting(uuid.uuid4(), uuid.uuid4(), new_secret())
    scope = {"type": "websocket", "path": _path(waiting), "headers": []}
    asyncio.run(CallbackApp()(scope, receive, send))
    assert sent == [{"type": "websocket.close"}]
    assert waiting.secret not in str(scope)


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """Return what the server and the route log, whatever uvicorn has set up for its loggers."""
    lines: list[str] = []
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", lambda record: lines.append(record.getMessage()))
    loggers = (logging.getLogger("uvicorn.access"), callback_app.log)
    for logger in loggers:
        # The creation of the database disables them in Airflow 3.1.
        monkeypatch.setattr(logger, "disabled", False)
        caplog.set_level(logging.INFO, logger.name)
        logger.addHandler(handler)
    yield lines
    for logger in loggers:
        logger.removeHandler(handler)


def test_the_log_of_the_server_has_the_task_instance_and_not_the_secret(
    route: Route, rows: Rows, logged: list[str]
) -> None:
    waiting = rows.add(earlier_tries=1)
    for status in (200, 404):
        assert route.call(waiting, params={"a": "b"}).status_code == status
    wait_until(lambda: "\n".join(logged).count("HTTP/1.1") == 2, "the access log")
    text = "\n".join(logged)
    assert text.count(f"POST /qwenimage/callback/{waiting.rung_id}/masked?a=b") == 2
    assert f"has woken the task instance {waiting.id}" in text
    assert waiting.secret not in text


def test_a_server_without_the_option_logs_no_secret_either(airflow_database: None, logged: list[str]) -> None:
    waiting = Waiting(uuid.uuid4(), uuid.uuid4(), new_secret())
    with _serving(Mount("/qwenimage", app=GalleryApp())) as gallery:
        assert gallery.call(waiting).status_code == 404
        wait_until(lambda: "HTTP/1.1" in "\n".join(logged), "the access log")
    assert f"POST /qwenimage/callback/{waiting.rung_id}/masked" in "\n".join(logged)


def test_many_strangers_at_once_are_refused_and_use_two_threads(route: Route, monkeypatch: pytest.MonkeyPatch) -> None:
    released, lock = threading.Event(), threading.Lock()
    reading: list[None] = []
    at_once: list[int] = []

    def find(_: object) -> None:
        with lock:
            reading.append(None)
            at_once.append(len(reading))
        released.wait(60)
        with lock:
            reading.pop()

    monkeypatch.setattr(waking, "find_wait", find)
    answers: list[tuple[int, str | None]] = []

    def ask() -> None:
        answer = route.call(Waiting(uuid.uuid4(), uuid.uuid4(), new_secret()))
        answers.append((answer.status_code, answer.headers.get("Retry-After")))

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(callback_app._MOST_WAITING + 20)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(answers) >= 20, "the refusals")
    assert {*answers} == {(503, "30")}
    released.set()
    for thread in threads:
        thread.join(60)
    assert answers.count((404, None)) == callback_app._MOST_WAITING
    assert max(at_once) <= callback_app._CHECKS_AT_ONCE


def test_a_failure_of_the_database_is_one_line_in_the_log(
    route: Route, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def find(_: object) -> None:
        raise OperationalError("SELECT 'password'", {}, Exception("no connection to password@db"))

    monkeypatch.setattr(waking, "find_wait", find)
    answer = route.call(Waiting(uuid.uuid4(), uuid.uuid4(), new_secret()))
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "30")
    (record,) = (record for record in caplog.records if record.levelno >= logging.WARNING)
    assert record.exc_info is None
    assert "OperationalError" in record.getMessage()
    assert "password" not in caplog.text
