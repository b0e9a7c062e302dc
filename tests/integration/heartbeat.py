"""Run many triggers beside a heartbeat in one event loop, and print what kept it from beating to stderr as JSON.

A separate process, so that imports and set-up at first use count, as in a triggerer. Airflow logs to stdout here.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# The triggerer imports this itself before the first trigger runs, so it must not count.
import airflow.jobs.triggerer_job_runner  # noqa: F401

from airflow_provider_qwenimage.triggers import QwenImageStatusTrigger

_TRIGGERS = 200
_BEAT_SECONDS = 0.01
_LEAST_BEATS = 21
_RUN_QUEUE = Path("/proc/thread-self/schedstat")
# The names that Python's audit hooks give them; a socket that does not block connects as well.
_BLOCKING_CALLS = {
    "socket.connect",
    "socket.getaddrinfo",
    "socket.gethostbyname",
    "sqlite3.connect",
    "subprocess.Popen",
    "os.system",
}


def _kept_waiting_by_others() -> float:
    """Return the seconds for which this thread was ready to run while the kernel ran other processes."""
    try:
        return int(_RUN_QUEUE.read_text().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return 0.0


def _watch_for_blocking_calls(found: list[str]) -> None:
    """Add the calls to ``found`` that this thread makes from now on and that wait for something in place."""
    loop_thread = threading.get_ident()

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if threading.get_ident() != loop_thread or event not in _BLOCKING_CALLS:
            return
        if event == "socket.connect" and isinstance(arguments[0], socket.socket) and arguments[0].gettimeout() == 0:
            return
        found.append(event)

    sleep: Callable[[Any], None] = time.sleep

    def reported_sleep(seconds: Any) -> None:
        if threading.get_ident() == loop_thread:
            found.append("time.sleep")
        sleep(seconds)

    # Python reports it to audit hooks only since 3.13.
    time.sleep = reported_sleep
    sys.addaudithook(audit)


async def _beat(lateness: list[float], computing: list[float]) -> None:
    while True:
        others, due, computed = _kept_waiting_by_others(), time.monotonic() + _BEAT_SECONDS, time.thread_time()
        await asyncio.sleep(_BEAT_SECONDS)
        late = time.monotonic() - due
        lateness.append(max(0.0, late - (_kept_waiting_by_others() - others)))
        computing.append(time.thread_time() - computed)


async def _follow(task_id: str, events: list[object]) -> None:
    trigger = QwenImageStatusTrigger(task_id, poll_interval=0.5, max_consecutive_failures=1_000_000)
    events.extend([event.payload async for event in trigger.run()])


async def main(task_id: str, seconds: float) -> None:
    during: list[float] = []
    computing: list[float] = []
    events: list[object] = []
    blocking: list[str] = []
    _watch_for_blocking_calls(blocking)
    heart = asyncio.create_task(_beat(during, computing))
    triggers = [asyncio.create_task(_follow(task_id, events)) for _ in range(_TRIGGERS)]
    await asyncio.sleep(seconds)
    # A busy machine may need longer for them.
    while len(during) < _LEAST_BEATS:  # noqa: ASYNC110  the heartbeat sets no event
        await asyncio.sleep(_BEAT_SECONDS)
    running = sum(not trigger.done() for trigger in triggers)
    # The triggerer also cancels triggers; that must not block either.
    for trigger in triggers:
        trigger.cancel()
    for trigger in triggers:
        with contextlib.suppress(asyncio.CancelledError):
            await trigger
    heart.cancel()
    result = {
        "running": running,
        "events": events,
        "beats": len(during),
        "blocking": blocking,
        "longest_computing": max(computing),
        "lateness": max(during),
    }
    sys.stderr.write(f"{json.dumps(result)}\n")


if __name__ == "__main__":
    # Otherwise the garbage collector would walk through everything loaded, which is mostly Airflow.
    gc.freeze()
    asyncio.run(main(sys.argv[1], float(sys.argv[2])))
