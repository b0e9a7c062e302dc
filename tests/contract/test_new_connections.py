"""A submission never uses a connection that the server may be closing; reads do, for that costs less."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeAlias

import pytest

from airflow_provider_qwenimage.hooks import QwenImageAsyncHook, QwenImageHook
from tests.contract.test_odd_answers import KEY, TASK, answer, set_proxy
from tests.contract.test_tls import Authority, authority
from tests.raw_server import RawServer, finish, read_request

__all__ = ["authority"]

Calls: TypeAlias = Callable[..., None]

_TUNNEL_IS_OPEN = b"\x05\x00\x00\x01" + bytes(6)
SUBMISSION, READ = ("generate", "a fox"), ("get_status", TASK)


class KeepingServer:
    """A server, also as a proxy, that answers several requests of a connection.

    Args:
        authority: Its certificate; None for HTTP without TLS.
        answers: How many requests of a connection it answers. At the next one it closes the connection.

    Attributes:
        connections: The methods of the requests that it answered, for each connection in the order of their beginnings.
        closed: How many connections have ended.
        unanswered: The methods of the requests that it did not answer.
    """

    def __init__(self, authority: Authority | None, answers: int) -> None:
        self.connections: list[list[str]] = []
        self.closed = 0
        self.unanswered: list[str] = []
        self._answers = answers
        self._lock = threading.Lock()
        self._tls: ssl.SSLContext | None = None
        if authority is not None:
            self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._tls.load_cert_chain(authority.certificate, authority.key)

    def serve(self, connection: socket.socket) -> None:
        """Serve a connection to its end."""
        with ExitStack() as stack:
            _open_tunnel(connection)
            if self._tls is not None:
                connection = stack.enter_context(self._tls.wrap_socket(connection, server_side=True))
            answered: list[str] = []
            with self._lock:
                self.connections.append(answered)
            try:
                for _ in range(self._answers):
                    method = _method(read_request(connection))
                    answered.append(method)
                    connection.sendall(answer())
                self.unanswered.append(_method(read_request(connection)))
                finish(connection)
            except ConnectionError:
                return
            finally:
                with self._lock:
                    self.closed += 1


def _method(request: bytes) -> str:
    return request.partition(b" ")[0].decode()


def _open_tunnel(connection: socket.socket) -> None:
    """Answer as a proxy does, if the connection begins with its protocol."""
    beginning = connection.recv(8, socket.MSG_PEEK)
    if beginning.startswith(b"CONNECT "):
        read_request(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    elif beginning.startswith(b"\x05"):
        connection.recv(64)
        connection.sendall(b"\x05\x00")
        connection.recv(512)
        connection.sendall(_TUNNEL_IS_OPEN)


def requests_calls(*calls: tuple[str, str]) -> None:
    with QwenImageHook(retry_delay=0.01) as hook:
        for verb, argument in calls:
            getattr(hook, verb)(argument)


def aiohttp_calls(*calls: tuple[str, str]) -> None:
    async def call() -> None:
        async with QwenImageAsyncHook(retry_delay=0.01) as hook:
            for verb, argument in calls:
                await getattr(hook, verb)(argument)

    asyncio.run(call())


ROUTES: dict[str, tuple[Calls, str, str | None]] = {
    f"{name}, {route}": (calls, scheme, proxy)
    for name, calls in (("requests", requests_calls), ("aiohttp", aiohttp_calls))
    for route, scheme, proxy in (
        ("HTTP", "http", None),
        ("HTTPS", "https", None),
        ("HTTP by a proxy", "http", "http"),
        ("HTTPS through a proxy", "https", "http"),
        ("HTTP by a SOCKS proxy", "http", "socks5h"),
        ("HTTPS by a SOCKS proxy", "https", "socks5h"),
    )
    # aiohttp cannot use SOCKS proxies.
    if proxy != "socks5h" or name == "requests"
}


@contextmanager
def connected(
    monkeypatch: pytest.MonkeyPatch, authority: Authority, route: str, answers: int
) -> Iterator[tuple[KeepingServer, Calls]]:
    """Start a server and connect to it: the server, and a function for calls."""
    calls, scheme, proxy = ROUTES[route]
    keeping = KeepingServer(authority if scheme == "https" else None, answers)
    with RawServer(keeping.serve, at_once=True) as server:
        host = f"{scheme}://127.0.0.1:{server.port}"
        if proxy is not None:
            set_proxy(monkeypatch, f"{scheme}_proxy", f"{proxy}://127.0.0.1:{server.port}")
            host = f"{scheme}://xn--bcher-kva.example"
        extra: dict[str, Any] = {"verify": str(authority.certificate)} if scheme == "https" else {}
        connection = {"conn_type": "qwenimage", "password": KEY, "host": host, "extra": extra}
        monkeypatch.setenv("AIRFLOW_CONN_QWENIMAGE_DEFAULT", json.dumps(connection))
        yield keeping, calls


@pytest.fixture(params=ROUTES)
def route(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("before", [SUBMISSION, READ], ids=["submission", "read"])
def test_a_submission_reaches_a_server_that_closes_the_connection_of_the_call_before(
    monkeypatch: pytest.MonkeyPatch, authority: Authority, route: str, before: tuple[str, str]
) -> None:
    """It closes the connection as the request arrives, so that no client can see it coming."""
    with connected(monkeypatch, authority, route, answers=1) as (server, calls):
        calls(before, SUBMISSION, SUBMISSION)
    assert [methods[-1] for methods in server.connections[-2:]] == ["POST", "POST"]
    assert server.unanswered == []


def test_reads_use_the_connection_of_the_submission_and_only_one_stays_open(
    monkeypatch: pytest.MonkeyPatch, authority: Authority, route: str
) -> None:
    with connected(monkeypatch, authority, route, answers=100) as (server, calls):
        calls(SUBMISSION, READ, READ, SUBMISSION, READ, READ, SUBMISSION)
    assert server.connections == [["POST", "GET", "GET"], ["POST", "GET", "GET"], ["POST"]]
    assert server.closed == 3


def test_a_read_is_repeated_if_the_server_closes_its_connection(
    monkeypatch: pytest.MonkeyPatch, authority: Authority, route: str
) -> None:
    with connected(monkeypatch, authority, route, answers=1) as (server, calls):
        calls(READ, READ)
    assert server.connections == [["GET"], ["GET"]]
    assert server.unanswered == ["GET"]
