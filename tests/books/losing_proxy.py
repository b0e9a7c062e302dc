"""A network between a task and its database that loses the answer to a COMMIT, or delays the COMMIT itself."""

from __future__ import annotations

import json
import socket
import threading
from contextlib import suppress
from typing import Self

from tests.databases.server import Database


class LosingProxy:
    """Forwards connections to a database server, until it is asked to break one.

    Attributes:
        broken: How many connections it has broken at a COMMIT.
        loses: Whether it breaks the next connection that commits, after the server has committed.
        delays: Whether it breaks the next connection that commits, and has the server commit only after `release`.
    """

    def __init__(self, database: Database) -> None:
        self.loses = self.delays = False
        self.broken = 0
        self._released = threading.Event()
        self._target = database.connection["host"], database.connection["port"]
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.connection_json = json.dumps({**database.connection, "port": self._listener.getsockname()[1]})

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._released.set()
        self._listener.close()

    def release(self) -> None:
        """Have the server receive the COMMIT that was delayed."""
        self._released.set()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._target)
                lock = threading.Lock()
                threading.Thread(target=self._forward, args=(client, server, lock), daemon=True).start()
                threading.Thread(target=self._answer, args=(server, client, lock), daemon=True).start()

    def _forward(self, client: socket.socket, server: socket.socket, lock: threading.Lock) -> None:
        with suppress(OSError):
            while data := client.recv(65536):
                if not data.rstrip(b"\0").lower().endswith(b"commit") or not (self.loses or self.delays):
                    server.sendall(data)
                    continue
                is_delayed, self.loses, self.delays = self.delays, False, False
                # Its answers are not forwarded any more.
                with lock:
                    if is_delayed:
                        self._cut(client)
                        self._released.wait()
                    server.sendall(data)
                    server.settimeout(10)
                    server.recv(65536)
                    if not is_delayed:
                        self._cut(client)
                break
        self._end(server)
        self._end(client)

    def _answer(self, server: socket.socket, client: socket.socket, lock: threading.Lock) -> None:
        with suppress(OSError):
            while server.recv(1, socket.MSG_PEEK):
                with lock:
                    server.setblocking(False)
                    try:
                        data = server.recv(65536)
                    except BlockingIOError:
                        continue
                    finally:
                        server.setblocking(True)
                client.sendall(data)
        self._end(client)

    def _cut(self, client: socket.socket) -> None:
        self._end(client)
        self.broken += 1

    @staticmethod
    def _end(end: socket.socket) -> None:
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        end.close()
