"""Ports of this machine that nobody else takes between the moment they are chosen and the moment they are used."""

from __future__ import annotations

import atexit
import socket
import sys

_HELD: list[socket.socket] = []


def free_ports(number: int) -> list[int]:
    """Return ports at which nobody listens, and which are given to nobody else while this process runs.

    They are bound, and stay so: a connection to one is refused, and a server can still listen there, as it allows its
    address to be used again.
    """
    ports = []
    for _ in range(number):
        bound = socket.socket()
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(("127.0.0.1", 0))
        ports.append(int(bound.getsockname()[1]))
        # Elsewhere no server could listen there.
        if sys.platform == "linux":
            _HELD.append(bound)
        else:
            bound.close()
    return ports


@atexit.register
def _let_go() -> None:
    for bound in _HELD:
        bound.close()
