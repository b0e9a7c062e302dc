"""Lets a test wait for what it means instead of betting on a clock: events, the sandbox's time, Airflow's alarm."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

from airflow_provider_qwenimage.sandbox import Sandbox

# Nothing here takes that long: it only ends a test whose event never comes, before pytest's own timeout does.
_PATIENCE_SECONDS = 90.0
_LOOK_SECONDS = 0.005


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
    os.kill(os.getpid(), signal.SIGALRM)


def status_reads(api: Sandbox) -> int:
    """Return how many status reads have reached the sandbox."""
    return sum(request.route == "status" for request in api.requests)


def finish_images(api: Sandbox) -> None:
    """Let every image of the sandbox be drawn at once, those that are to come as well.

    With a long `seconds_per_image` before it, a test decides by this when an image is done.
    """
    api.configure(seconds_per_image=0)
    api._state.books.clock = lambda: time.time() + 1e6
