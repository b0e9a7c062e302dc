"""Decide from the evidence whether the cluster behaved correctly. No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tests.chaos.judge import Evidence, Verdict

# A triggerer without heartbeats keeps polling until they are missed and until it notices this itself.
DOUBLE_POLL_SECONDS = 30.0
# The last poll may take a minute while the API is down. It takes another minute to notice a dead worker and to queue
# its task again.
LATE_SECONDS = 120.0
# A worker that starts without its broker ends, which is noticed some seconds later.
_AFTER_THE_BROKER_SECONDS = 60.0
# A single kill may affect nothing. If none of so many kills does, nothing was tested.
_MANY = 3


@dataclass(frozen=True)
class EndedWait:
    """The end of a wait that had to time out.

    Attributes:
        name: The task's name in messages.
        state: The task's state in Airflow.
        seconds: From the task's start to its end.
        reports_timeout: Whether the log of its last try reports the timeout.
    """

    name: str
    state: str | None
    seconds: float
    reports_timeout: bool


def complaints_of_images(images: Iterable[Evidence]) -> list[str]:
    """Return what is wrong with images: each must be stored, and paid once plus once for each Clear."""
    found = []
    for image in images:
        if image.paid_twice:
            found.append(f"paid twice: {image}")
        elif image.verdict is not Verdict.STORED:
            found.append(f"not stored: {image}")
    return found


def complaints_of_waits(states: Mapping[str | None, int], number: int) -> list[str]:
    """Return what is wrong with the waits that had to succeed."""
    return [] if states == {"success": number} else [f"{number} waits should have succeeded, but are {dict(states)}"]


def complaints_of_deadlines(ended: Iterable[EndedWait], timeout: float) -> list[str]:
    """Return what is wrong with the waits that had to time out."""
    found = []
    for wait in ended:
        if wait.state != "failed" or not wait.reports_timeout:
            found.append(f"{wait.name} should have failed with a timeout, but is {wait.state}")
        elif not timeout - 5 <= wait.seconds <= timeout + LATE_SECONDS:
            found.append(f"{wait.name} has a timeout of {timeout:.0f} s, but ended after {wait.seconds:.0f} s")
    return found


def complaints_of_polls(overlaps: Mapping[str, float]) -> list[str]:
    """Return which image tasks two triggerers polled at the same time for too long."""
    return [
        f"{image_task_id} was polled by two triggerers for {seconds:.0f} s (limit: {DOUBLE_POLL_SECONDS:.0f} s)"
        for image_task_id, seconds in overlaps.items()
        if seconds > DOUBLE_POLL_SECONDS
    ]


def complaints_of_memory(peaks: Mapping[str, int], limits: Mapping[str, int]) -> list[str]:
    """Return which services exceeded the memory limit of their containers."""
    return [
        f"a container of {service} used {peak / 2**20:.0f} MiB (limit: {limits[service] / 2**20:.0f} MiB)"
        for service, peak in peaks.items()
        if peak > limits[service]
    ]


def complaints_of_kills(kills: Mapping[str, Sequence[int]], least: int) -> list[str]:
    """Return which containers were killed too rarely, or only while they had nothing to do.

    Args:
        kills: For each container, how many tasks or waits each of its kills affected.
        least: The required number of kills.
    """
    found = [
        f"{name} was killed {len(affected)} times, not {least}: there was too little to do"
        for name, affected in kills.items()
        if len(affected) < least
    ]
    idle = [name for name, affected in kills.items() if len(affected) >= _MANY and not any(affected)]
    return found + [f"{name} had nothing to do whenever it was killed" for name in idle]


def complaints_of_ends(
    ends: Mapping[str, Sequence[float]], workers: str, without_broker: Sequence[tuple[float, float]]
) -> list[str]:
    """Return which containers ended by themselves although they should not.

    A worker may: Celery ends if its broker is down at the start, and the engine restarts it.

    Args:
        ends: The times at which each container ended, on the same clock as `without_broker`.
        workers: The prefix of the names of workers.
        without_broker: The periods in which the broker was down.
    """
    return [
        f"{name} ended by itself"
        for name, moments in ends.items()
        for moment in moments
        if not name.startswith(workers)
        or not any(begin <= moment <= end + _AFTER_THE_BROKER_SECONDS for begin, end in without_broker)
    ]
