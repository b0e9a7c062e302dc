"""Runs many triggers beside a heartbeat in one event loop, and tells on stderr, as JSON, how late the heart beat.

A process of its own, so that what is loaded or set up at the first use counts, as in a triggerer. Airflow logs
to stdout here.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import sys
import time
from pathlib import Path

# Whatever the triggerer itself has loaded before the first trigger comes is not loaded because of us.
import airflow.jobs.triggerer_job_runner  # noqa: F401

from airflow_provider_qwenimage.triggers import QwenImageStatusTrigger

_TRIGGERS = 200
_BEAT_SECONDS = 0.01
_LEAST_BEATS = 21
_RUN_QUEUE = Path("/proc/thread-self/schedstat")


def _kept_waiting_by_others() -> float:
    """Return the seconds for which this thread was ready to run while the kernel ran other processes."""
    try:
        return int(_RUN_QUEUE.read_text().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return 0.0


async def _beat(lateness: list[float]) -> None:
    while True:
        others, due = _kept_waiting_by_others(), time.monotonic() + _BEAT_SECONDS
        await asyncio.sleep(_BEAT_SECONDS)
        late = time.monotonic() - due
        lateness.append(max(0.0, late - (_kept_waiting_by_others() - others)))


async def _follow(task_id: str, events: list[object]) -> None:
    trigger = QwenImageStatusTrigger(task_id, poll_interval=0.5, max_consecutive_failures=1_000_000)
    events.extend([event.payload async for event in trigger.run()])


async def main(task_id: str, seconds: float) -> None:
    before: list[float] = []
    heart = asyncio.create_task(_beat(before))
    await asyncio.sleep(0.5)
    heart.cancel()

    during: list[float] = []
    events: list[object] = []
    heart = asyncio.create_task(_beat(during))
    triggers = [asyncio.create_task(_follow(task_id, events)) for _ in range(_TRIGGERS)]
    await asyncio.sleep(seconds)
    # A busy machine may take its time over them.
    while len(during) < _LEAST_BEATS:  # noqa: ASYNC110  the heart tells nobody
        await asyncio.sleep(_BEAT_SECONDS)
    running = sum(not trigger.done() for trigger in triggers)
    # The triggerer cancels triggers as well, and that must not block either.
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
        "idle_lateness": max(before),
        "lateness": max(during),
    }
    sys.stderr.write(f"{json.dumps(result)}\n")


if __name__ == "__main__":
    # Python's garbage collector now and then walks through all that is loaded: mostly Airflow, not us.
    gc.freeze()
    asyncio.run(main(sys.argv[1], float(sys.argv[2])))
