"""Measure many waits of one contestant in an event loop. `benchmarks.waiting` runs it in a process per contestant."""

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

# A shorter sleep is not a pause between two polls: some clients yield to the event loop with a sleep of 0.
_SHORTEST_PAUSE = 0.5
_FIRST_WAIT_INTERVAL = 1.3
_TICK_SECONDS = 0.02


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The parameters of a measurement.

    Attributes:
        contestant: A key of `CONTESTANTS`.
        image_task_ids: The image tasks; there is one wait for each.
        poll_interval: Seconds between the first polls.
        warm_up: Seconds before the measurement; the waits start evenly during the first half.
        seconds: The length of the measurement.
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
    """The result of a measurement.

    Attributes:
        polls: Polls that ended during the measurement.
        cpu_seconds: User and system time of all threads of the process.
        machine_cpu_seconds: CPU time of all processes of the machine, including this one.
        bytes_per_wait: The growth of the process from before the first wait to the end, per wait.
        late_p50: The median lateness in seconds.
        late_p99: The 99th percentile of the lateness in seconds.
        unfinished: Polls that were due but had no answer at the end.
        ended: Waits that ended although their image task did not.
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
    """Records how late the polls of some asyncio tasks are, from the sleeps between them.

    A poll is due when the requested sleep before it is over. It ends when the same task sleeps again, after its answer
    has been read and evaluated.

    Args:
        polls_at_once: Whether a wait polls before its first sleep.
    """

    def __init__(self, *, polls_at_once: bool) -> None:
        self._polls_at_once = polls_at_once
        self._sleep = asyncio.sleep
        self._due: dict[asyncio.Task[Any] | None, float | None] = {}
        self.late = array("d")

    def install(self) -> None:
        """Replace `asyncio.sleep` in this process, for every contestant."""
        asyncio.sleep = self._recording_sleep

    def watch(self, wait: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Start a wait, and record its polls."""
        task = asyncio.create_task(wait)
        self._due[task] = time.monotonic() if self._polls_at_once else None
        return task

    def forget(self) -> None:
        """Delete the records of the polls so far."""
        self.late = array("d")

    def unfinished(self) -> list[float]:
        """Return the lateness so far of the polls that are due but have not ended."""
        now = time.monotonic()
        return [
            now - due
            for task, due in self._due.items()
            if task is not None and not task.done() and due is not None and due < now
        ]

    async def pause(self, until: float) -> None:
        """Sleep until a time of `time.monotonic`, without recording it."""
        await self._sleep(max(0.0, until - time.monotonic()))

    async def _recording_sleep(self, delay: float, result: Any = None) -> Any:
        task = asyncio.current_task()
        if delay >= _SHORTEST_PAUSE and task in self._due:
            now = time.monotonic()
            due = self._due[task]
            if due is not None:
                self.late.append(now - due)
            self._due[task] = now + delay
        return await self._sleep(delay, result)


async def measure(plan: Plan, report: Callable[[Measured | None], None]) -> None:
    """Run the waits of a plan and measure them.

    Args:
        report: Called with None when the warm-up is over, and with the result while the waits are still running.
    """
    contestant, api = CONTESTANTS[plan.contestant], Api(plan.url, plan.api_key)
    clock = PollClock(polls_at_once=contestant.polls_at_once)
    clock.install()
    async with contestant.enter(api, _FIRST_WAIT_INTERVAL) as wait:
        await _poll_once(clock, wait(plan.image_task_ids[0]))
    process = psutil.Process()
    async with contestant.enter(api, plan.poll_interval) as wait:
        gc.collect()
        began, bytes_before = time.monotonic(), process.memory_info().rss
        waits = await _start(clock, wait, plan)
        await clock.pause(began + plan.warm_up)
        report(None)
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
        report(measured)
        await _cancel(waits)


async def _poll_once(clock: PollClock, wait: Coroutine[Any, Any, None]) -> None:
    """Let one wait poll once, so that modules loaded at the first use are not counted as memory of the waits."""
    task = clock.watch(wait)
    while not clock.late and not task.done():
        await clock.pause(time.monotonic() + _TICK_SECONDS)
    if task.done():
        await task
        raise RuntimeError("The wait ended at once, although its image task did not. Check the contestant.")
    await _cancel([task])


async def _start(clock: PollClock, wait: Wait, plan: Plan) -> list[asyncio.Task[None]]:
    """Start the waits evenly, so that they do not all poll at the same time."""
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


async def _cancel(waits: Sequence[asyncio.Task[None]]) -> None:
    for task in waits:
        task.cancel()
    await asyncio.gather(*waits, return_exceptions=True)


def _run() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    # The output of a contestant goes to stderr, because stdout is for the result.
    with os.fdopen(os.dup(1), "w") as output:
        os.dup2(2, 1)

        def report(measured: Measured | None) -> None:
            output.write(json.dumps(asdict(measured) if measured else None) + "\n")
            output.flush()

        asyncio.run(measure(Plan(**json.load(sys.stdin)), report))


if __name__ == "__main__":
    _run()
