"""Every call ends by its deadline, however slowly something comes: the tests would never end otherwise."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowException, AirflowSensorTimeout, AirflowTaskTimeout

from airflow_provider_qwenimage import QwenImageStatusSensor, hooks
from airflow_provider_qwenimage.client import diagnosis, requests_session
from airflow_provider_qwenimage.client.exchanges import Exchange
from airflow_provider_qwenimage.exceptions import (
    QwenImageConnectionError,
    QwenImageError,
    QwenImageTimeoutError,
)
from airflow_provider_qwenimage.hooks import QwenImageAsyncHook, QwenImageHook
from airflow_provider_qwenimage.links import PendingLinks
from airflow_provider_qwenimage.rules import polling
from tests.airflows import AIRFLOW_3
from tests.call_clock import CallClock
from tests.contract.test_odd_answers import ENVELOPE, KEY, TASK, answer, set_proxy
from tests.contract.test_parity import AsyncClient, SyncClient
from tests.events import run_when, wait_until
from tests.ports import free_ports
from tests.raw_server import RawServer

# A call may take twice as long in all. Only where all of it is to pass without a request being received.
TIMEOUT_SECONDS = 0.5
# More often than any limit of a single read.
DRIP_SECONDS = 0.02
OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"

# What comes at once, and what comes again and again.
DRIPS: dict[str, tuple[bytes, bytes]] = {
    "in the status line": (b"HTTP/1.1 200 ", b"O"),
    "in a header": (OK + b"X-Slow: ", b"a"),
    "in headers": (OK, b"X: y\r\n"),
    "in interim answers": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "in early hints": (b"", b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"),
    "in the body": (OK + b"Content-Length: 500000\r\n\r\n", b" "),
    "in a body without a length": (OK + b"\r\n", b" "),
    "in chunks": (CHUNKED, b"1\r\n \r\n"),
    "in the size of a chunk": (CHUNKED, b"0"),
    "in trailers": (CHUNKED + b"1\r\n \r\n0\r\n", b"X: y\r\n"),
    "in a redirect": (b"HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 500000\r\n\r\n", b" "),
    "in an error": (b"HTTP/1.1 500 Oh\r\nContent-Length: 500000\r\n\r\n", b" "),
}


@pytest.fixture(params=[SyncClient, AsyncClient], ids=["requests", "aiohttp"])
def client(request: pytest.FixtureRequest) -> SyncClient:
    return request.param(retry_limit=0)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> CallClock:
    return CallClock(monkeypatch)


def connect(
    monkeypatch: pytest.MonkeyPatch,
    host: str,
    timeout_seconds: float = TIMEOUT_SECONDS,
    name: str = "QWENIMAGE_DEFAULT",
) -> None:
    connection = {"conn_type": "qwenimage", "password": KEY, "host": host}
    connection["extra"] = {"timeout_seconds": timeout_seconds}  # type: ignore[assignment]
    monkeypatch.setenv(f"AIRFLOW_CONN_{name}", json.dumps(connection))


def dripping_server(first: bytes, piece: bytes, *, at_once: bool = False) -> RawServer:
    server = RawServer(b"", at_once=at_once)
    server.answer = server.drip(first, itertools.repeat(piece), DRIP_SECONDS)
    return server


def outcomes_of_drips(
    client: SyncClient, monkeypatch: pytest.MonkeyPatch, clock: CallClock, verb: str, argument: str
) -> dict[str, str]:
    """Return what a call ends in for each drip, all at once: the time is over when all requests were received."""

    def call(name: str, number: int) -> str:
        arguments = client.arguments | {"qwenimage_conn_id": f"drip_{number}"}
        with pytest.raises(QwenImageError) as caught:
            type(client)(**arguments)(verb, argument)
        return f"{type(caught.value).__name__}: {caught.value}"

    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(dripping_server(first, piece)) for first, piece in DRIPS.values()]
        for number, server in enumerate(servers):
            connect(monkeypatch, server.url, timeout_seconds=60, name=f"DRIP_{number}")
        pool = stack.enter_context(ThreadPoolExecutor(len(DRIPS)))
        stack.enter_context(run_when(lambda: all(server.requests for server in servers), partial(clock.advance, 120)))
        return dict(zip(DRIPS, pool.map(call, DRIPS, range(len(DRIPS))), strict=True))


@pytest.mark.parametrize(
    ("verb", "argument", "error"),
    [("get_status", TASK, "QwenImageConnectionError"), ("generate", "a fox", "QwenImageSubmissionUnknownError")],
)
def test_a_call_ends_though_its_answer_drips_and_a_submission_may_be_paid(
    client: SyncClient, monkeypatch: pytest.MonkeyPatch, clock: CallClock, *, verb: str, argument: str, error: str
) -> None:
    for name, outcome in outcomes_of_drips(client, monkeypatch, clock, verb, argument).items():
        assert outcome.startswith(f"{error}: "), f"{name}: {outcome}"
        assert "no complete response within 120 s" in outcome, name


def test_a_tls_handshake_that_drips_means_that_nothing_was_sent(
    client: SyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The first bytes of a record of 16 KiB, which never gets there.
    with dripping_server(b"\x16\x03\x03\x40\x00", b"\x00", at_once=True) as server:
        connect(monkeypatch, server.url.replace("http:", "https:"))
        with pytest.raises(QwenImageConnectionError, match="could not be reached"):
            client("generate", "a fox")


@pytest.mark.parametrize(("first", "piece"), [(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n"), (b"HTTP/1.1 ", b"2")])
def test_a_proxy_that_drips_means_that_nothing_was_sent(
    client: SyncClient, monkeypatch: pytest.MonkeyPatch, first: bytes, piece: bytes
) -> None:
    with dripping_server(first, piece) as proxy:
        set_proxy(monkeypatch, "HTTPS_PROXY", proxy.url)
        connect(monkeypatch, "https://api.example")
        with pytest.raises(QwenImageConnectionError, match="HTTPS_PROXY"):
            client("generate", "a fox")


def test_a_server_that_takes_nothing_means_that_the_call_ends(
    client: SyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=1) as listener:
        # It accepts no connection, and its queue holds few.
        connect(monkeypatch, f"http://127.0.0.1:{listener.getsockname()[1]}")
        with pytest.raises(QwenImageConnectionError):
            client("get_status", TASK)


@contextlib.contextmanager
def address_that_never_answers() -> Iterator[Any]:
    """Yield the address of a port whose queue is full."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener, contextlib.ExitStack() as stack:
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield listener.getsockname()


@pytest.mark.parametrize(
    ("client_class", "kind"),
    [
        (SyncClient, "never answers"),
        (AsyncClient, "never answers"),
        (SyncClient, "refuses"),
        (AsyncClient, "refuses"),
        # aiohttp takes families of the internet only.
        (SyncClient, "of a family that this machine has not"),
    ],
)
def test_another_address_of_a_name_is_tried_in_time(
    client_class: type[SyncClient], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    with RawServer(answer(body=ENVELOPE)) as server, address_that_never_answers() as silent:
        (refusing,) = free_ports(1)
        first = {
            "never answers": (socket.AF_INET, silent),
            "of a family that this machine has not": (socket.AF_DECnet, silent),
            "refuses": (socket.AF_INET, ("127.0.0.1", refusing)),
        }[kind]
        found = [
            (family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", address)
            for family, address in (first, (socket.AF_INET, ("127.0.0.1", server.port)))
        ]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
        set_proxy(monkeypatch, "NO_PROXY", "*")
        connect(monkeypatch, f"http://api.example:{server.port}", timeout_seconds=10)
        assert client_class(retry_limit=0)("generate", "a fox") == TASK


def test_a_deadline_that_passes_before_anything_is_sent_means_that_nothing_was_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    connected = requests_session._connected

    def connected_late(*arguments: Any) -> socket.socket:
        exchange = Exchange.current()
        assert exchange is not None
        sock = connected(*arguments)
        exchange.allow(0)
        return sock

    monkeypatch.setattr(requests_session, "_connected", connected_late)
    with RawServer(answer(body=ENVELOPE)) as server:
        connect(monkeypatch, server.url, timeout_seconds=60)
        with (
            QwenImageHook(retry_limit=0) as hook,
            pytest.raises(QwenImageConnectionError, match="could not be reached"),
        ):
            hook.generate("a fox")
        assert not server.requests


def test_a_name_that_is_looked_up_for_ever_means_that_nothing_was_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    found = threading.Event()
    look_up = socket.getaddrinfo

    def look_up_slowly(*arguments: Any, **options: Any) -> Any:
        found.wait()
        return look_up("127.0.0.1", *arguments[1:], **options)

    async def submit() -> None:
        async with QwenImageAsyncHook(retry_limit=0) as hook:
            try:
                await hook.generate("a fox")
            finally:
                # At its end an event loop waits for the thread that looks up.
                found.set()

    monkeypatch.setattr(socket, "getaddrinfo", look_up_slowly)
    connect(monkeypatch, "http://api.example:9")
    set_proxy(monkeypatch, "NO_PROXY", "*")
    with QwenImageHook(retry_limit=0) as hook, pytest.raises(QwenImageConnectionError, match="could not be reached"):
        hook.generate("a fox")
    with pytest.raises(QwenImageConnectionError, match="could not be reached"):
        asyncio.run(submit())
    wait_until(
        lambda: not any(thread.name == "qwenimage-look-up" for thread in threading.enumerate()),
        "the end of the thread that looks up",
    )


def test_a_read_in_a_wait_ends_with_the_waits_deadline(client: SyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polling, "LAST_READ_SECONDS", 0.2)
    with dripping_server(OK, b"X: y\r\n") as server:
        connect(monkeypatch, server.url, timeout_seconds=3600)
        with pytest.raises(QwenImageTimeoutError, match="did not end before the deadline"):
            client("wait_for_completion", TASK, timeout=0.3)


# Airflow 2 looks into its database between pokes of "reschedule" mode.
@pytest.mark.parametrize(
    "wait", [{}, {"mode": "poke"}, *([{"mode": "reschedule"}] if AIRFLOW_3 else [])], ids=lambda wait: wait.get("mode")
)
def test_a_look_of_a_sensor_ends_with_its_timeout(wait: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polling, "LAST_READ_SECONDS", 0.2)
    ti = SimpleNamespace(
        xcom_push=lambda **_: None, get_first_reschedule_date=lambda _: None, try_number=1, task_id="wait"
    )
    monkeypatch.setattr(PendingLinks, "store_gallery", lambda *_: None)
    sensor = QwenImageStatusSensor(task_id="wait", image_task_id=TASK, timeout=0.3, deferrable=not wait, **wait)
    with dripping_server(OK, b"X: y\r\n") as server:
        connect(monkeypatch, server.url, timeout_seconds=3600)
        with pytest.raises(AirflowSensorTimeout, match="did not end before the deadline"):
            sensor.execute({"ti": ti})  # type: ignore[typeddict-item]


def test_a_wait_does_not_sleep_past_its_deadline_for_its_turn(
    monkeypatch: pytest.MonkeyPatch, clock: CallClock
) -> None:
    connection = {"conn_type": "qwenimage", "password": KEY, "extra": {"max_requests_per_second": 0.001}}
    with RawServer(answer()) as server:
        monkeypatch.setenv("AIRFLOW_CONN_QWENIMAGE_DEFAULT", json.dumps(connection | {"host": server.url}))
        with QwenImageHook() as hook, pytest.raises(QwenImageTimeoutError, match="max_requests_per_second"):
            hook.wait_for_completion(TASK, poll_interval=5, timeout=600)
        assert len(server.requests) == 1
    # As long as there was, and not until its turn.
    assert clock.ahead <= 600


def test_the_last_read_of_a_wait_has_some_time() -> None:
    policy = polling.PollPolicy(end_time=100.0)
    assert policy.seconds_for_a_read(40.0) == 60.0
    assert policy.seconds_for_a_read(99.0) == policy.seconds_for_a_read(101.0) == polling.LAST_READ_SECONDS
    assert polling.PollPolicy().seconds_for_a_read(40.0) is None


def test_connection_tests_of_a_slow_service_leave_room_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    # None of the eight ends before all others have asked.
    monkeypatch.setattr(hooks, "TEST_SECONDS", 600.0)

    def test(_: int = 0) -> tuple[bool, str]:
        return SyncClient()("test_connection")

    with dripping_server(OK, b"X: y\r\n") as server, ThreadPoolExecutor(8) as pool:
        connect(monkeypatch, server.url, timeout_seconds=3600)
        running = [pool.submit(test) for _ in range(8)]
        wait_until(lambda: len(server.requests) == 8, "eight tests")
        # The others would hold the threads that the API server answers everybody with.
        for _ in range(37):
            assert test() == (False, "8 connection tests are already running in this process: test again in 10 s.")
        server.released.set()
        assert not any(outcome.result()[0] for outcome in running)
    with RawServer(answer(body=b'{"code": 404, "message": "no"}', status=b"HTTP/1.1 404 No")) as server:
        connect(monkeypatch, server.url, timeout_seconds=60)
        succeeded, message = test()
    assert succeeded, message


def test_a_connection_test_takes_ten_seconds_at_most_whatever_the_connection_allows(
    client: SyncClient, monkeypatch: pytest.MonkeyPatch, clock: CallClock
) -> None:
    assert vars(hooks)["TEST_SECONDS"] == diagnosis.TEST_SECONDS == 10.0
    monkeypatch.setattr(hooks, "TEST_SECONDS", 60.0)
    with dripping_server(OK, b"X: y\r\n") as server:
        connect(monkeypatch, server.url, timeout_seconds=3600)
        with run_when(lambda: server.requests, partial(clock.advance, 60)):
            assert "no complete response within 60 s" in client("test_connection")[1]


@pytest.mark.parametrize("error_class", [AirflowTaskTimeout, AirflowException, KeyboardInterrupt])
def test_an_interruption_by_airflow_passes_through(
    monkeypatch: pytest.MonkeyPatch, error_class: type[BaseException]
) -> None:
    def interrupt(*_: object) -> None:
        raise error_class("stop")

    previous = signal.signal(signal.SIGUSR1, interrupt)
    main_thread = threading.get_ident()
    try:
        with dripping_server(OK, b"X: y\r\n") as server:
            connect(monkeypatch, server.url, timeout_seconds=3600)

            def interrupt_once_it_waits() -> None:
                wait_until(lambda: server.requests, "the request")
                time.sleep(0.05)
                signal.pthread_kill(main_thread, signal.SIGUSR1)

            threading.Thread(target=interrupt_once_it_waits, daemon=True).start()
            with QwenImageHook(retry_limit=0) as hook, pytest.raises(error_class, match="stop"):
                hook.generate("a fox")
    finally:
        signal.signal(signal.SIGUSR1, previous)


def test_a_call_that_is_cancelled_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    async def cancel(server: RawServer) -> None:
        async with QwenImageAsyncHook(retry_limit=0) as hook:
            call = asyncio.ensure_future(hook.generate("a fox"))
            await asyncio.to_thread(wait_until, lambda: server.requests, "the request")
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call

    with dripping_server(OK, b"X: y\r\n") as server:
        connect(monkeypatch, server.url, timeout_seconds=3600)
        asyncio.run(cancel(server))


def test_a_slow_answer_within_the_deadline_is_read(client: SyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = answer(body=ENVELOPE)
    with RawServer(b"") as server:
        server.answer = server.drip(b"", (whole[start : start + 16] for start in range(0, len(whole), 16)), 0.01)
        connect(monkeypatch, server.url, timeout_seconds=60)
        assert client("get_status", TASK).consumed_credits == 5


def test_no_thread_is_left_behind_by_a_call(client: SyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    before = set(threading.enumerate())
    call: Callable[[], Any] = lambda: client("get_status", TASK)  # noqa: E731
    with RawServer(answer()) as server:
        connect(monkeypatch, server.url.replace("127.0.0.1", "localhost"), timeout_seconds=60)
        call()
    wait_until(lambda: set(threading.enumerate()) <= before, "the end of all threads")
