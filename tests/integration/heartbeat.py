"""Run many triggers beside a heartbeat in one event loop, and print its lateness to stderr as JSON.

A separate process, so that imports and set-up at first use count, as in a triggerer. Airflow logs to stdout here.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import sys
import time
from pathlib import Path

# The triggerer imports this itself before the first trigger runs, so it must not count.
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
        "idle_lateness": max(before),
        "lateness": max(during),
    }
    sys.stderr.write(f"{json.dumps(result)}\n")


if __name__ == "__main__":
    # Otherwise the garbage collector would walk through everything loaded, which is mostly Airflow.
    gc.freeze()
    asyncio.run(main(sys.argv[1], float(sys.argv[2])))
