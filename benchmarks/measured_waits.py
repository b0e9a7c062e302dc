"""Measures many waits of one contestant in an event loop. `benchmarks.waiting` runs it, in a process for each."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import resource
import sys
import time
from array import array
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import psutil

from benchmarks.tables import quantile
from benchmarks.waits import CONTESTANTS, Api, Wait

# A sleep below this is no pause between two polls: some clients yield to the event loop with a sleep of 0.
_SHORTEST_PAUSE = 0.5
_REHEARSAL_INTERVAL = 1.3
_TICK_SECONDS = 0.02


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be measured.

    Attributes:
        contestant: A key of `CONTESTANTS`.
        url: The API's base URL.
        api_key: The API's key.
        image_task_ids: What to wait for: one wait each.
        poll_interval: Seconds between the first polls.
        warm_up: Seconds before the measured ones. The waits begin spread over the first half.
        seconds: How long is measured.
    """

    contestant: str
    url: str
    api_key: str
    image_task_ids: Sequence[str]
    poll_interval: float
    warm_up: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What came out.

    Attributes:
        polls: How many polls ended in the measured time.
        cpu_seconds: What the process used in it, user and system, of all threads.
        machine_cpu_seconds: What all processes of the machine used in it, this one included.
        bytes_per_wait: How much the process grew from before the first wait to the end, for each wait.
        late_p50: The median lateness in seconds.
        late_p99: The lateness that one of a hundred polls exceeds.
        unfinished: How many polls were due, and had no answer at the end.
        ended: How many waits ended although no image task did.
    """

    polls: int
    cpu_seconds: float
    machine_cpu_seconds: float
    bytes_per_wait: float
    late_p50: float
    late_p99: float
    unfinished: int
    ended: int


class PollClock:
    """Notes how late the polls of some asyncio tasks are, from the sleeps between them.

    A poll is due when the sleep before it should end, as it was asked for. It ends with the next sleep of
    the same task, when its answer has been read and looked at.

    Args:
        polls_at_once: Whether there is a poll before the first sleep, which is due at once.
    """

    def __init__(self, *, polls_at_once: bool) -> None:
        self._polls_at_once = polls_at_once
        self._sleep = asyncio.sleep
        self._due: dict[asyncio.Task[Any] | None, float | None] = {}
        self.late = array("d")

    def install(self) -> None:
        """Replace `asyncio.sleep` in this process, for every contestant alike."""
        asyncio.sleep = self._noting_sleep

    def watch(self, wait: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Start a wait whose polls are to be noted."""
        task = asyncio.create_task(wait)
        self._due[task] = time.monotonic() if self._polls_at_once else None
        return task

    def forget(self) -> None:
        """Forget the polls that have ended."""
        self.late = array("d")

    def unfinished(self) -> list[float]:
        """Return how late those polls are already that are due and have not ended."""
        now = time.monotonic()
        return [
            now - due
            for task, due in self._due.items()
            if task is not None and not task.done() and due is not None and due < now
        ]

    async def pause(self, until: float) -> None:
        """Sleep until a moment of `time.monotonic`, unnoticed."""
        await self._sleep(max(0.0, until - time.monotonic()))

    async def _noting_sleep(self, delay: float, result: Any = None) -> Any:
        task = asyncio.current_task()
        if delay >= _SHORTEST_PAUSE and task in self._due:
            now = time.monotonic()
            due = self._due[task]
            if due is not None:
                self.late.append(now - due)
            self._due[task] = now + delay
        return await self._sleep(delay, result)


async def measure(plan: Plan, tell: Callable[[Measured | None], None]) -> None:
    """Make the waits and measure them.

    Args:
        plan: What is to be measured.
        tell: Called with None when the warm-up is over, and with the result while the waits still go on.
    """
    contestant, api = CONTESTANTS[plan.contestant], Api(plan.url, plan.api_key)
    clock = PollClock(polls_at_once=contestant.polls_at_once)
    clock.install()
    async with contestant.enter(api, _REHEARSAL_INTERVAL) as wait:
        await _rehearse(clock, wait(plan.image_task_ids[0]))
    process = psutil.Process()
    async with contestant.enter(api, plan.poll_interval) as wait:
        gc.collect()
        began, bytes_before = time.monotonic(), process.memory_info().rss
        waits = await _start(clock, wait, plan)
        await clock.pause(began + plan.warm_up)
        tell(None)
        clock.forget()
        cpu_before, machine_before = time.process_time(), _machine_cpu_seconds()
        await clock.pause(began + plan.warm_up + plan.seconds)
        cpu_seconds, machine_cpu_seconds = time.process_time() - cpu_before, _machine_cpu_seconds() - machine_before
        bytes_after = process.memory_info().rss
        polls, unfinished = len(clock.late), clock.unfinished()
        late = [*clock.late, *unfinished]
        measured = Measured(
            polls=polls,
            cpu_seconds=cpu_seconds,
            machine_cpu_seconds=machine_cpu_seconds,
            bytes_per_wait=(bytes_after - bytes_before) / len(waits),
            late_p50=quantile(late, 0.5),
            late_p99=quantile(late, 0.99),
            unfinished=len(unfinished),
            ended=sum(task.done() for task in waits),
        )
        tell(measured)
        await _cut_off(waits)


async def _rehearse(clock: PollClock, wait: Coroutine[Any, Any, None]) -> None:
    """Let one wait poll once, so that what is loaded at the first use is not taken for a wait's memory."""
    task = clock.watch(wait)
    while not clock.late and not task.done():
        await clock.pause(time.monotonic() + _TICK_SECONDS)
    if task.done():
        await task
        raise RuntimeError("The wait ended at once, although its image task did not.")
    await _cut_off([task])


async def _start(clock: PollClock, wait: Wait, plan: Plan) -> list[asyncio.Task[None]]:
    """Begin the waits evenly, so that no contestant is measured on a rush that the benchmark made."""
    began, waits = time.monotonic(), list[asyncio.Task[None]]()
    pace = plan.warm_up / 2 / len(plan.image_task_ids)
    for number, image_task_id in enumerate(plan.image_task_ids):
        if number * pace > time.monotonic() - began:
            await clock.pause(max(began + number * pace, time.monotonic() + _TICK_SECONDS))
        waits.append(clock.watch(wait(image_task_id)))
    return waits


def _machine_cpu_seconds() -> float:
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + times.irq + times.softirq + times.steal)


async def _cut_off(waits: Sequence[asyncio.Task[None]]) -> None:
    for task in waits:
        task.cancel()
    await asyncio.gather(*waits, return_exceptions=True)


def _run() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    # Whatever a contestant logs goes to the standard error, and the standard output has the result alone.
    with os.fdopen(os.dup(1), "w") as output:
        os.dup2(2, 1)

        def tell(measured: Measured | None) -> None:
            output.write(json.dumps(asdict(measured) if measured else None) + "\n")
            output.flush()

        asyncio.run(measure(Plan(**json.load(sys.stdin)), tell))


if __name__ == "__main__":
    _run()
