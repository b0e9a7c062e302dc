"""A server that sends any given bytes, including invalid HTTP, at once or slowly."""

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
    """A server on a port of this machine that gives each request the same answer.

    Args:
        answer: The bytes to send for each request before the connection is closed, or a function that handles the
            connection.
        at_once: Answer before the request is read.
        family: The address family.

    Attributes:
        answer: May be changed between requests.
        requests: The received requests.
        released: Set at the end; an answer that waits must stop waiting then.
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
        # This wakes the accepting thread; closing alone does not.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        wait_until(lambda: not any(thread.is_alive() for thread in self._threads), "the end of the raw server")

    def _start(self, target: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads = [*(each for each in self._threads if each.is_alive()), thread]
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
        """Return an answer that starts at once and continues slowly, until the client hangs up.

        Args:
            first: The bytes to send at once.
            pieces: The bytes to send afterwards, one by one.
            seconds: The pause before each piece.
        """

        def send(connection: socket.socket) -> None:
            connection.sendall(first)
            for piece in pieces:
                if self.released.wait(seconds):
                    return
                connection.sendall(piece)

        return send


def read_request(connection: socket.socket) -> bytes:
    """Read a request with its body."""
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
        raise ConnectionError("the client closed the connection")
    return data


def finish(connection: socket.socket) -> None:
    """Half-close the connection and wait for the client to close it, because a reset could discard sent bytes."""
    connection.shutdown(socket.SHUT_WR)
    connection.settimeout(60)
    while connection.recv(65536):
        pass


def reset(connection: socket.socket) -> None:
    """Reset the connection."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
