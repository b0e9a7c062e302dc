"""Run the sandbox in its own process, so that its work is not measured as a client's, and count connections.

`SandboxProcess` starts ``python -m benchmarks.sandbox_process '{"seconds_per_image": 5}'``, which prints its URL
and key, and then answers each line of its input with the counts since the last one, until the input ends.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from airflow_provider_qwenimage.sandbox import Sandbox

ROOT = Path(__file__).resolve().parent.parent

_STOP_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class Counts:
    """The sandbox's counts since the last ones.

    Attributes:
        connections: Connections that clients opened.
        most_open: The highest number of connections open at once.
        still_open: Connections that are open now.
        requests: Requests for each route, such as ``status``.
        not_ok: Requests answered with another status than HTTP 200.
        busy: The share of a core that the sandbox's process used; near 1, the sandbox is the bottleneck.
    """

    connections: int
    most_open: int
    still_open: int
    requests: dict[str, int]
    not_ok: int
    busy: float


class SandboxProcess:
    """A sandbox in another process, on free ports of this machine. A context manager.

    Args:
        **arguments: The arguments of `Sandbox`, as JSON values.

    Attributes:
        connection_json: The value of ``AIRFLOW_CONN_QWENIMAGE_DEFAULT``.
    """

    _module = "benchmarks.sandbox_process"

    def __init__(self, **arguments: Any) -> None:
        self._arguments = arguments
        self._process: subprocess.Popen[str] | None = None
        self.url = ""
        self.api_key = ""
        self.connection_json = ""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", self._module, json.dumps(self._arguments)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started = self._read()
        self.url, self.api_key, self.connection_json = started["url"], started["api_key"], started["connection_json"]
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        try:
            process.communicate(timeout=_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()

    def take_counts(self) -> Counts:
        """Return the counts since the last call or the start, and reset them."""
        if self._process is None or self._process.stdin is None:
            raise RuntimeError("The sandbox's process is not running. Use it inside its `with` block.")
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return Counts(**self._read())

    def _read(self) -> dict[str, Any]:
        line = self._process.stdout.readline() if self._process and self._process.stdout else ""
        if not line:
            raise RuntimeError("The sandbox's process ended. Fix the error that it printed above, then start again.")
        answer: dict[str, Any] = json.loads(line)
        return answer


class _Connections:
    """Counts the connections of every aiohttp server in this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open = self._most_open = self._opened = 0

    def watch(self) -> None:
        """Start counting."""
        from aiohttp.web_protocol import RequestHandler

        # Patched, because the sandbox does not count connections.
        for name, change in (("connection_made", 1), ("connection_lost", -1)):
            setattr(RequestHandler, name, self._counting(getattr(RequestHandler, name), change))

    def take(self) -> tuple[int, int, int]:
        """Return the connections opened since the last call, the highest number open at once, and those open now."""
        with self._lock:
            opened, most_open = self._opened, self._most_open
            self._opened, self._most_open = 0, self._open
        return opened, most_open, self._open

    def _counting(self, method: Callable[..., None], change: int) -> Callable[..., None]:
        def counted(handler: object, argument: object) -> None:
            with self._lock:
                self._open += change
                self._opened += max(0, change)
                self._most_open = max(self._most_open, self._open)
            method(handler, argument)

        return counted


def serve(arguments: dict[str, Any]) -> None:
    """Run a sandbox with these arguments in this process, and answer requests for the counts, until the input ends."""
    connections = _Connections()
    connections.watch()
    with Sandbox(**arguments) as sandbox:
        _send({"url": sandbox.url, "api_key": sandbox.api_key, "connection_json": sandbox.connection_json})
        began, used = time.monotonic(), time.process_time()
        last_time = 0.0
        for _ in sys.stdin:
            opened, most_open, still_open = connections.take()
            now = time.time()
            records = [record for record in sandbox.requests if last_time <= record.time < now]
            counts = Counts(
                connections=opened,
                most_open=most_open,
                still_open=still_open,
                requests=dict(Counter(record.route for record in records)),
                not_ok=sum(record.status not in (None, 200) for record in records),
                busy=(time.process_time() - used) / (time.monotonic() - began),
            )
            began, used, last_time = time.monotonic(), time.process_time(), now
            _send(asdict(counts))


def _send(value: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    serve(json.loads(sys.argv[1]))
