"""Wait for events instead of fixed times, and control the sandbox's time and Airflow's alarm."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from airflow_provider_qwenimage.rules import polling
from airflow_provider_qwenimage.sandbox import Sandbox
from airflow_provider_qwenimage.sandbox.books import Task

# Ends a test whose event never happens, before pytest's own timeout does.
_TIMEOUT_SECONDS = 90.0
_PAUSE_SECONDS = 0.005
# A signal whose handler does nothing: it only wakes the main thread.
_NUDGE = signal.SIGURG
_NUDGES = 3
_NUDGE_SECONDS = 0.2
signal.signal(_NUDGE, lambda *_: None)
# The `seconds_per_image` of the images that `draw_at_second_poll` finishes.
UNTIL_SECOND_POLL = 86_400.0


def wait_until(condition: Callable[[], object], what: str, seconds: float = _TIMEOUT_SECONDS) -> None:
    """Wait until a condition holds; fail the test if it does not in time.

    Args:
        condition: Checked every few milliseconds.
        what: The name of the event in the failure message.
        seconds: The time limit.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds:g} s"
        time.sleep(_PAUSE_SECONDS)


@contextlib.contextmanager
def run_when(condition: Callable[[], object], action: Callable[[], object]) -> Iterator[threading.Event]:
    """During the block, run an action in a thread as soon as a condition holds.

    Yields an event that is set after the action. The test fails if the block ends before that.
    """
    done, left = threading.Event(), threading.Event()

    def watch() -> None:
        while not left.is_set():
            if condition():
                action()
                done.set()
                return
            time.sleep(_PAUSE_SECONDS)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield done
    finally:
        left.set()
        thread.join(_TIMEOUT_SECONDS)
    assert done.is_set(), "the condition did not hold before the end of the block"


def pass_execution_timeout() -> None:
    """Trigger the `execution_timeout` of the task that runs in this process.

    This sends the alarm signal that Airflow sets for it. The task must be inside its ``execute``.
    """
    main_thread = threading.main_thread().ident
    assert main_thread is not None
    signal.pthread_kill(main_thread, signal.SIGALRM)
    # If the alarm arrives just before the thread blocks, it is handled only when the thread wakes, so wake it.
    for _ in range(_NUDGES):
        time.sleep(_NUDGE_SECONDS)
        signal.pthread_kill(main_thread, _NUDGE)


def status_reads(api: Sandbox) -> int:
    """Return how many polls have reached the sandbox."""
    return sum(request.route == "status" for request in api.requests)


def finish_images(api: Sandbox) -> None:
    """Finish every image of the sandbox at once, including future ones.

    With a long `seconds_per_image` before, a test decides with this call when an image is drawn.
    """
    api.configure(seconds_per_image=0)
    api._state.books.clock = lambda: time.time() + 1e6


def finish_image(api: Sandbox, task_id: str) -> None:
    """Finish one image of the sandbox at once, with its planned outcome."""
    books = api._state.books
    with books._lock:
        books._tasks[task_id] = dataclasses.replace(books._tasks[task_id], seconds=0.0, pending_seconds=0.0)
        refunds = {refunded_id: (at, amount) for at, refunded_id, amount in books._refunds}
        if task_id in refunds:
            refunds[task_id] = (0.0, refunds[task_id][1])
        books._refunds = sorted((at, refunded_id, amount) for refunded_id, (at, amount) in refunds.items())


def draw_at_second_poll(api: Sandbox) -> None:
    """Report an image as in progress at its first poll, and as drawn from its second poll on, at any time.

    A task that polls once before it waits has to wait then, on any machine, but not for long. This applies to images of
    `UNTIL_SECOND_POLL` seconds; with another `seconds_per_image`, the clock decides.
    """
    books = api._state.books
    find, polls = books.find, Counter[str]()

    def find_and_count(task_id: str) -> Task | None:
        task = find(task_id)
        if task is not None and task.seconds == UNTIL_SECOND_POLL:
            polls[task_id] += 1
            if polls[task_id] > 1:
                finish_image(api, task_id)
        return find(task_id)

    books.find = find_and_count  # type: ignore[method-assign]


def at_second_polls(monkeypatch: pytest.MonkeyPatch, time_at: Callable[[float], float | None]) -> list[float]:
    """Do something at the second poll of each wait with a deadline, when a deferrable task has been deferred.

    Args:
        time_at: Takes the wait's deadline, and may return another current time for that poll.

    Returns:
        A list that grows: the seconds from the first poll of each wait to its deadline.
    """
    decide, polls, seconds_left = polling.decide, Counter[float](), list[float]()

    def count_and_decide(policy: polling.PollPolicy, *args: Any, now: float, **kwargs: Any) -> polling.Decision:
        if policy.end_time is not None:
            polls[policy.end_time] += 1
            if polls[policy.end_time] == 1:
                seconds_left.append(policy.end_time - now)
            elif polls[policy.end_time] == 2:
                now = time_at(policy.end_time) or now
        return decide(policy, *args, now=now, **kwargs)

    monkeypatch.setattr(polling, "decide", count_and_decide)
    return seconds_left


def pass_deadlines(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Let the deadline of each wait pass at its second poll; see `at_second_polls`."""
    return at_second_polls(monkeypatch, lambda end_time: end_time)
