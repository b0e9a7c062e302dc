"""A server that sends bytes as they are given, which no HTTP library would, or sends them slowly."""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterable
from typing import Self, TypeAlias

from tests.events import wait_until

Answer: TypeAlias = "bytes | Callable[[socket.socket], None]"


class RawServer:
    """Listens on a port of this machine, and gives each request the same answer.

    Args:
        answer: What is sent for each request before the connection is closed; or what does with the connection as it
            likes, before anything is read from it if `at_once`.
        at_once: See `answer`.
        family: The family of its address.

    Attributes:
        url: Where it is.
        requests: What was received, request by request.
        released: Set at the end: whatever an answer waits for, it is over.
    """

    def __init__(self, answer: Answer, *, at_once: bool = False, family: socket.AddressFamily = socket.AF_INET) -> None:
        self.answer = answer
        self.requests: list[bytes] = []
        self.released = threading.Event()
        self._at_once = at_once
        self._listener = socket.create_server(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0), family=family)
        host, port = self._listener.getsockname()[:2]
        self.url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        self.port = port
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()
        # It wakes the thread that accepts; closing alone does not.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        wait_until(lambda: not any(thread.is_alive() for thread in self._threads), "the end of the raw server")

    def _start(self, target: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self.released.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._start(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            if not self._at_once:
                self.requests.append(read_request(connection))
            if callable(self.answer):
                self.answer(connection)
            else:
                connection.sendall(self.answer)
                finish(connection)

    def drip(self, first: bytes, pieces: Iterable[bytes], seconds: float) -> Callable[[socket.socket], None]:
        """Return an answer that begins at once and goes on slowly, until the client has enough.

        Args:
            first: What is sent at once.
            pieces: What follows, one by one.
            seconds: How long before each.
        """

        def send(connection: socket.socket) -> None:
            connection.sendall(first)
            for piece in pieces:
                if self.released.wait(seconds):
                    return
                connection.sendall(piece)

        return send


def read_request(connection: socket.socket) -> bytes:
    """Read a request to its end."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += _some(connection)
    head, _, body = received.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)^content-length: *(\d+)", head, re.MULTILINE)
    while length and len(body) < int(length[1]):
        more = _some(connection)
        received, body = received + more, body + more
    return received


def _some(connection: socket.socket) -> bytes:
    data = connection.recv(65536)
    if not data:
        raise ConnectionError("the client has gone")
    return data


def finish(connection: socket.socket) -> None:
    """Say that nothing more comes, and wait until the client has gone too: a reset would overtake what was sent."""
    connection.shutdown(socket.SHUT_WR)
    connection.settimeout(60)
    while connection.recv(65536):
        pass


def reset(connection: socket.socket) -> None:
    """Break the connection off."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
