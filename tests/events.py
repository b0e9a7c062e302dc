"""Lets a test wait for what it means instead of betting on a clock: events, the sandbox's time, Airflow's alarm."""

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

# Nothing here takes that long: it only ends a test whose event never comes, before pytest's own timeout does.
_PATIENCE_SECONDS = 90.0
_LOOK_SECONDS = 0.005
# A signal that means nothing: with a handler that does nothing, it only wakes the main thread.
_NUDGE = signal.SIGURG
_NUDGES = 3
_NUDGE_SECONDS = 0.2
signal.signal(_NUDGE, lambda *_: None)
# The `seconds_per_image` of images that `draw_at_the_second_look` finishes.
UNTIL_THE_SECOND_LOOK = 86_400.0


def wait_until(condition: Callable[[], object], what: str, seconds: float = _PATIENCE_SECONDS) -> None:
    """Return as soon as a condition holds; fail the test if it never does.

    Args:
        condition: Asked every few milliseconds.
        what: What is waited for, for the message.
        seconds: When to give up.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:g} s in vain for {what}"
        time.sleep(_LOOK_SECONDS)


@contextlib.contextmanager
def once(condition: Callable[[], object], action: Callable[[], object]) -> Iterator[threading.Event]:
    """While the block runs, do something in a thread as soon as a condition holds.

    Yields an event that is set once it is done. The block must not end before: a test whose event did not come fails.
    """
    done, left = threading.Event(), threading.Event()

    def watch() -> None:
        while not left.is_set():
            if condition():
                action()
                done.set()
                return
            time.sleep(_LOOK_SECONDS)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield done
    finally:
        left.set()
        thread.join(_PATIENCE_SECONDS)
    assert done.is_set(), "what was waited for did not happen"


def pass_execution_timeout() -> None:
    """Let the `execution_timeout` of the task that runs in this process pass now, however long it is.

    Airflow sets an alarm for it; this is that alarm. The task must be inside its ``execute`` until then.
    """
    main_thread = threading.main_thread().ident
    assert main_thread is not None
    signal.pthread_kill(main_thread, signal.SIGALRM)
    # An alarm in the moment before the thread blocks is heard only when it wakes, so it is woken once more.
    for _ in range(_NUDGES):
        time.sleep(_NUDGE_SECONDS)
        signal.pthread_kill(main_thread, _NUDGE)


def status_reads(api: Sandbox) -> int:
    """Return how many status reads have reached the sandbox."""
    return sum(request.route == "status" for request in api.requests)


def finish_images(api: Sandbox) -> None:
    """Let every image of the sandbox be drawn at once, those that are to come as well.

    With a long `seconds_per_image` before it, a test decides by this when an image is done.
    """
    api.configure(seconds_per_image=0)
    api._state.books.clock = lambda: time.time() + 1e6


def finish_image(api: Sandbox, task_id: str) -> None:
    """Let one image of the sandbox be drawn at once, or fail, as it was to end."""
    books = api._state.books
    with books._lock:
        books._tasks[task_id] = dataclasses.replace(books._tasks[task_id], seconds=0.0, pending_seconds=0.0)
        books._refunds = sorted((0.0 if its_id == task_id else at, its_id, sum_) for at, its_id, sum_ in books._refunds)


def draw_at_the_second_look(api: Sandbox) -> None:
    """Have an image be under way at the first look at its status and drawn at the second, soon or late.

    So whatever looks once before it waits has to wait, on any machine, and never for long. It is for images of
    `UNTIL_THE_SECOND_LOOK` seconds; a test that sets another `seconds_per_image` has them drawn by the clock.
    """
    books = api._state.books
    find, looks = books.find, Counter[str]()

    def look(task_id: str) -> Task | None:
        task = find(task_id)
        if task is not None and task.seconds == UNTIL_THE_SECOND_LOOK:
            looks[task_id] += 1
            if looks[task_id] > 1:
                finish_image(api, task_id)
        return find(task_id)

    books.find = look  # type: ignore[method-assign]


def at_second_looks(monkeypatch: pytest.MonkeyPatch, time_at: Callable[[float], float | None]) -> list[float]:
    """Do something at the second look of each wait with a deadline: it has begun, and is deferred if it is to be.

    Args:
        monkeypatch: Puts everything in place again.
        time_at: Is given the wait's deadline, and may return what time it is to be at that look.

    Returns:
        A list that grows: how far off the deadline of each wait was at its first look, in seconds.
    """
    decide, looks, ahead = polling.decide, Counter[float](), list[float]()

    def look(policy: polling.PollPolicy, *args: Any, now: float, **kwargs: Any) -> polling.Decision:
        if policy.end_time is not None:
            looks[policy.end_time] += 1
            if looks[policy.end_time] == 1:
                ahead.append(policy.end_time - now)
            elif looks[policy.end_time] == 2:
                now = time_at(policy.end_time) or now
        return decide(policy, *args, now=now, **kwargs)

    monkeypatch.setattr(polling, "decide", look)
    return ahead


def pass_deadlines(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Have the deadline of each wait pass at its second look; see `at_second_looks`."""
    return at_second_looks(monkeypatch, lambda end_time: end_time)
