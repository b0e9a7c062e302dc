"""Free ports of this machine that no other process can take before they are used."""

from __future__ import annotations

import atexit
import socket
import sys

_HELD: list[socket.socket] = []


def free_ports(number: int) -> list[int]:
    """Return ports on which nobody listens, and that no other process gets while this process runs.

    The ports stay bound: connections to them are refused, but a server can listen on them if it sets SO_REUSEADDR.
    """
    ports = []
    for _ in range(number):
        bound = socket.socket()
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(("127.0.0.1", 0))
        ports.append(int(bound.getsockname()[1]))
        # On other systems no server could listen on a bound port.
        if sys.platform == "linux":
            _HELD.append(bound)
        else:
            bound.close()
    return ports


@atexit.register
def _let_go() -> None:
    for bound in _HELD:
        bound.close()
