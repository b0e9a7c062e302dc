"""Decides what a wait for an image task does next: poll again, finish or give up. No I/O.

Every wait of this package (worker, triggerer, sensor, hook) calls `decide`, so they cannot drift apart. Only FAILED and
the deadline end the wait for a submitted image task: whatever else a read ends in counts as a failed read.
"""

from __future__ import annotations

import copy
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, SupportsIndex, TypeAlias

import pendulum

from airflow_provider_qwenimage.contract import TaskSnapshot, TaskStatus
from airflow_provider_qwenimage.exceptions import (
    QwenImageConnectionError,
    QwenImageContractError,
    QwenImageError,
    QwenImageTimeoutError,
    without_advice,
)
from airflow_provider_qwenimage.rules.arguments import WAIT_ARGUMENTS, Seconds, read_argument
from airflow_provider_qwenimage.rules.snapshots import task_failure
from airflow_provider_qwenimage.rules.task_ids import printable_id
from airflow_provider_qwenimage.rules.wait_defaults import DEFAULT_MAX_CONSECUTIVE_FAILURES, DEFAULT_POLL_INTERVAL
from airflow_provider_qwenimage.text.messages import printable, shorten

# The API recommends to poll every 5 to 10 seconds.
SLOWEST_RECOMMENDED_INTERVAL = 10.0

# A read ends at the deadline of its wait, except the last one, which begins there and may take this long.
LAST_READ_SECONDS = 5.0
# How long after the deadline a read may still wait for its turn: less than the margin of Airflow's own timeouts.
LAST_TURN_SECONDS = 60.0

_GROWTH = 1.2
_JITTER = 0.2
# The end of a process and the scheduler's loop, on a machine with a core for each process, with a margin.
_SCHEDULER_SECONDS = 3.0
_MAX_LOAD = 10.0
# An error may quote an answer, or a message of another library.
_ERROR_CHARACTERS = 1500


@dataclass(frozen=True)
class PollPolicy:
    """The pace and the limits of a wait.

    Args:
        poll_interval: Seconds between the first polls. It grows by a fifth each time, up to twice itself
            but not past 10 s (one that starts at 10 s or more stays as it is), with ±20 % jitter.
        end_time: The deadline in epoch seconds, or None to wait without one.
        max_consecutive_failures: How many failed reads (of whatever kind, or with an undocumented status) in a row
            end the wait.

    Raises:
        ValueError: If a value is out of its range.
    """

    poll_interval: float = DEFAULT_POLL_INTERVAL
    end_time: float | None = None
    max_consecutive_failures: int = DEFAULT_MAX_CONSECUTIVE_FAILURES

    def __post_init__(self) -> None:
        for name in ("poll_interval", "end_time", "max_consecutive_failures"):
            object.__setattr__(self, name, read_argument(name, getattr(self, name)))

    @classmethod
    def for_timeout(
        cls, timeout: Seconds | None, poll_interval: Seconds, max_consecutive_failures: SupportsIndex, *, now: float
    ) -> PollPolicy:
        """Return the policy of a wait that starts now.

        Args:
            timeout: Seconds to wait at most, or None for no limit.
            poll_interval: As for the class.
            max_consecutive_failures: As for the class.
            now: Epoch seconds.
        """
        end_time = None if timeout is None else now + WAIT_ARGUMENTS["timeout"]("timeout", timeout)
        return cls(
            poll_interval=read_argument("poll_interval", poll_interval),
            end_time=end_time,
            max_consecutive_failures=read_argument("max_consecutive_failures", max_consecutive_failures),
        )

    def interval(self, polls: int, draw: Callable[[], float] = random.random) -> float:
        """Return the seconds to wait after that many polls, with jitter; `draw` returns a random number from 0 to 1."""
        slowest = max(self.poll_interval, min(2 * self.poll_interval, SLOWEST_RECOMMENDED_INTERVAL))
        plain = min(slowest, self.poll_interval * _GROWTH ** min(polls, 16))
        return plain * (1 - _JITTER + 2 * _JITTER * draw())

    def first_delay(self, now: float, draw: Callable[[], float] = random.random) -> float:
        """Return the seconds before the first poll of a wait that may be one of many.

        Args:
            now: Epoch seconds.
            draw: Returns a random number from 0 to 1.

        Returns:
            One interval on average, drawn evenly from half of one to one and a half: a thousand waits that
            begin at once poll no faster than they will later. At most the time until the deadline.
        """
        return _until_deadline(self, now, self.poll_interval * (0.5 + draw()))

    def seconds_for_a_read(self, now: float) -> float | None:
        """Return how many seconds a read may take that begins now, or None for no limit by this wait."""
        return None if self.end_time is None else max(self.end_time - now, LAST_READ_SECONDS)

    def seconds_for_a_turn(self, now: float) -> float | None:
        """Return how many seconds a read may take together with the wait for its turn, or None for no limit."""
        return None if self.end_time is None else max(0.0, self.end_time - now) + LAST_TURN_SECONDS


@dataclass(frozen=True)
class PollState:
    """The state of a wait between two polls.

    Attributes:
        polls: The number of polls so far.
        failures: The number of failed reads in a row at their end.
        status: The last status that was read.
    """

    polls: int = 0
    failures: int = 0
    status: str | None = None


@dataclass(frozen=True)
class Wait:
    """Poll again after `delay` seconds, with `state`. A `notice` is for the log."""

    delay: float
    state: PollState
    notice: str | None = None


@dataclass(frozen=True)
class Done:
    """The image task succeeded."""

    snapshot: TaskSnapshot


@dataclass(frozen=True)
class GiveUp:
    """The wait is over without an image."""

    error: QwenImageError


Decision: TypeAlias = Wait | Done | GiveUp


def decide(
    policy: PollPolicy,
    state: PollState,
    outcome: TaskSnapshot | QwenImageError,
    *,
    image_task_id: str,
    now: float,
    draw: Callable[[], float] = random.random,
) -> Decision:
    """Return what a wait does after a poll.

    Args:
        policy: The wait's pace and limits.
        state: The state before this poll.
        outcome: The API's answer, or the error of the read.
        image_task_id: The API's id of the task, for messages.
        now: Epoch seconds.
        draw: Returns a random number from 0 to 1.
    """
    image_task_id = printable_id(image_task_id)
    if isinstance(outcome, TaskSnapshot):
        if outcome.status == TaskStatus.SUCCESS:
            return Done(outcome)
        if outcome.status == TaskStatus.FAILED:
            return GiveUp(task_failure(outcome))
        if outcome.is_documented:
            return _after_status(policy, state, outcome, image_task_id=image_task_id, now=now, draw=draw)
        status = printable(shorten(outcome.status))
        error: QwenImageError = QwenImageContractError(
            f"The API reports the undocumented status {status!r} for image task {image_task_id}."
        )
    else:
        error = outcome
    return _after_failure(policy, state, error, image_task_id=image_task_id, now=now, draw=draw)


def _after_status(
    policy: PollPolicy,
    state: PollState,
    snapshot: TaskSnapshot,
    *,
    image_task_id: str,
    now: float,
    draw: Callable[[], float],
) -> Decision:
    if _is_over(policy, now):
        return GiveUp(timed_out(image_task_id, snapshot, policy.end_time))
    notice = None if snapshot.status == state.status else f"Image task {image_task_id} is {snapshot.status}."
    delay = policy.interval(state.polls, draw)
    return Wait(
        _until_deadline(policy, now, delay), PollState(polls=state.polls + 1, status=str(snapshot.status)), notice
    )


def _after_failure(
    policy: PollPolicy,
    state: PollState,
    error: QwenImageError,
    *,
    image_task_id: str,
    now: float,
    draw: Callable[[], float],
) -> Decision:
    failures = state.failures + 1
    if failures >= policy.max_consecutive_failures:
        return GiveUp(_given_up(error, image_task_id, failures))
    if _is_over(policy, now):
        return GiveUp(timed_out(image_task_id, error, policy.end_time))
    delay = max(policy.interval(state.polls, draw), getattr(error, "retry_after", None) or 0.0)
    delay = _until_deadline(policy, now, delay)
    notice = (
        f"Reading the status of image task {image_task_id} failed ({failures} of at most "
        f"{policy.max_consecutive_failures} in a row); polling again in {delay:.1f} s: {_brief(error)}"
    )
    return Wait(delay, replace(state, polls=state.polls + 1, failures=failures), notice)


def delay_before_deferral(wait: Wait, now: float, defer_at: float) -> float | None:
    """Return the seconds to the next poll of a wait that is deferred later, or None if it is to be deferred now.

    The last poll comes when the wait is deferred, so that an image which is ready by then needs no trigger. So that it
    does not follow another one directly, the last two pauses may be as short as half of what `decide` said, or half as
    long again after a failed read, which is not repeated sooner.

    Args:
        wait: What `decide` returned.
        now: Epoch seconds.
        defer_at: When the wait is deferred, in epoch seconds.
    """
    left = defer_at - now
    if left >= 2 * wait.delay:
        return wait.delay
    if wait.state.failures:
        # The API may have asked to slow down.
        if left < wait.delay:
            return None
        return left if left < 1.5 * wait.delay else wait.delay
    if left <= 0:
        return None
    return left if left <= wait.delay else left / 2


def log_notice(log: Any, wait: Wait) -> None:
    """Log the notice of a wait, if it has one: as a warning if the read failed."""
    if wait.notice:
        log.log(logging.WARNING if wait.state.failures else logging.INFO, "%s", wait.notice)


def settling_seconds(heartbeat: float, load: float) -> float:
    """Return how many seconds after a deferral Airflow may still be informed of the end of the deferred process.

    A supervisor can miss the end of its process until its next heartbeat. If the task is queued again by then, the
    scheduler takes that report for a crash, and fails a task whose image is drawn and paid. Airflow 3.4 still
    does so if the task is running again. The end of the process and the scheduler's loop take the longer the more
    processes share a core.

    Args:
        heartbeat: Airflow's ``[workers] min_heartbeat_interval`` in seconds.
        load: How many processes want to run, for each core of the machine.
    """
    return heartbeat + _SCHEDULER_SECONDS * min(max(1.0, load), _MAX_LOAD)


def read_too_late(seconds: float) -> QwenImageConnectionError:
    """Return the error for a read that was given up after `seconds`, because the deadline has passed by far."""
    return QwenImageConnectionError(
        f"No response within {seconds:.0f} s, the time that was left until the deadline. Requests may be queueing: "
        "for a slow API, for the connection's max_requests_per_second, or because the API asked to slow down (429)."
    )


def _brief(error: QwenImageError) -> str:
    return printable(shorten(without_advice(error), _ERROR_CHARACTERS))


def _is_over(policy: PollPolicy, now: float) -> bool:
    return policy.end_time is not None and now >= policy.end_time


def _until_deadline(policy: PollPolicy, now: float, delay: float) -> float:
    return delay if policy.end_time is None else max(0.0, min(delay, policy.end_time - now))


def timed_out(
    image_task_id: str, outcome: TaskSnapshot | QwenImageError | None, end_time: float | None
) -> QwenImageTimeoutError:
    """Return the error of a wait whose deadline has passed.

    Args:
        image_task_id: The API's id of the image task.
        outcome: The outcome of the last read; None if there was none.
        end_time: The deadline in epoch seconds; None if unknown.
    """
    deadline = (
        "the deadline" if end_time is None else f"the deadline {pendulum.from_timestamp(end_time).to_iso8601_string()}"
    )
    if outcome is None:
        last = "its status was not read"
    elif isinstance(outcome, TaskSnapshot):
        last = f"its last status was {printable(shorten(outcome.status))}"
    else:
        last = f"the last read failed: {_brief(outcome)}"
    error = QwenImageTimeoutError(
        f"Image task {image_task_id} did not end before {deadline}; {last}. It may still end, and is paid."
    )
    error.advice = "Wait for this id with a QwenImageStatusSensor, and raise the timeout."
    return error


def _given_up(error: QwenImageError, image_task_id: str, failures: int) -> QwenImageError:
    """Return the error of a wait that gives up: of the class of the last read's, and for Airflow to retry."""
    reads = "1 failed read" if failures == 1 else f"{failures} failed reads in a row"
    longer = copy.copy(error)
    longer.args = (f"Gave up on image task {image_task_id} after {reads}: {_brief(error)}", *error.args[1:])
    # The same submission would fail again, but reading again costs nothing, and the image may be paid.
    longer.permanent = False
    return longer
