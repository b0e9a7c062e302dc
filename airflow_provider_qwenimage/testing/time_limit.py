"""Ends code of the main thread when its time is up, wherever it waits."""

from __future__ import annotations

import contextlib
import signal
import threading
import traceback
from collections.abc import Iterator
from types import FrameType

# Airflow and pytest-timeout use SIGALRM.
_SIGNAL = signal.SIGVTALRM
# Airflow records the interruption as the failure of a task and continues with the next one, which ends as well.
_REPEATED_AFTER_SECONDS = 1.0


class TimeIsUp(BaseException):
    """Interrupts the code. Not an `Exception`, so that fewer handlers catch it."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise `TimeIsUp` in the block, again and again until it is left, and at its end if the code has caught it.

    Python handles signals in the main thread only; in another one there is no limit.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    interruptions: list[TimeIsUp] = []
    has_ended = threading.Event()

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        if not has_ended.is_set():
            interruptions.append(TimeIsUp())
            raise interruptions[-1]

    def watch(thread: int) -> None:
        pause = seconds
        while not has_ended.wait(pause):
            signal.pthread_kill(thread, _SIGNAL)
            pause = _REPEATED_AFTER_SECONDS

    handler_before = signal.signal(_SIGNAL, interrupt)
    watcher = threading.Thread(target=watch, args=[threading.get_ident()], name="time limit", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        has_ended.set()
        watcher.join()
        signal.signal(_SIGNAL, handler_before)
    if interruptions:
        raise interruptions[0]


@contextlib.contextmanager
def postponed_interruption() -> Iterator[None]:
    """Have an interruption by `time_limit` wait for the end of the block, which must be short.

    It is for a wait for another thread that could not finish its work, such as a transaction, without it.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {_SIGNAL})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def let_go(error: BaseException) -> None:
    """Release what interrupted code still holds, such as an unfinished query with its lock on the database.

    Its local variables live as long as the error, which a test may keep.

    Args:
        error: The error. Its causes and contexts are included.
    """
    seen: list[BaseException] = []
    left: list[BaseException | None] = [error]
    while left:
        one = left.pop()
        if one is not None and not any(one is other for other in seen):
            seen.append(one)
            left += [one.__cause__, one.__context__]
            traceback.clear_frames(one.__traceback__)
