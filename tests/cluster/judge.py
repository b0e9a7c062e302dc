"""Decides whether the cluster kept what is promised, from what was seen. No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tests.chaos.judge import Evidence, Verdict

# A triggerer that is thought dead can poll on for as long as its heartbeat may be missing, and until it notices.
DOUBLE_POLL_SECONDS = 30.0
# A last read may take a minute, while the API is away; a dead worker is noticed, and its task queued again, in another.
LATE_SECONDS = 120.0
# A worker that starts without its broker ends; it is seen some seconds later.
_AFTER_THE_BROKER_SECONDS = 60.0
# One kill may meet nothing; that all of so many do shows that nothing was tested.
_MANY = 3


@dataclass(frozen=True)
class Ended:
    """How a wait in vain ended.

    Attributes:
        name: The task, for messages.
        state: Its state in Airflow.
        seconds: From its start to its end.
        says_timeout: Whether its last try tells that the time is over.
    """

    name: str
    state: str | None
    seconds: float
    says_timeout: bool


def complaints_of_images(images: Iterable[Evidence]) -> list[str]:
    """Return what is not right with images: each must be stored, and paid once for each consent."""
    found = []
    for image in images:
        if image.paid_twice:
            found.append(f"paid twice: {image}")
        elif image.verdict is not Verdict.STORED:
            found.append(f"not stored: {image}")
    return found


def complaints_of_waits(states: Mapping[str | None, int], number: int) -> list[str]:
    """Return what is not right with waits that had to succeed."""
    return [] if states == {"success": number} else [f"{number} waits had to succeed, and are {dict(states)}"]


def complaints_of_deadlines(ended: Iterable[Ended], timeout: float) -> list[str]:
    """Return what is not right with waits that had to end at their deadline."""
    found = []
    for wait in ended:
        if wait.state != "failed" or not wait.says_timeout:
            found.append(f"{wait.name} had to end as timed out, and is {wait.state} without saying so")
        elif not timeout - 5 <= wait.seconds <= timeout + LATE_SECONDS:
            found.append(f"{wait.name} had {timeout:.0f} s, and ended after {wait.seconds:.0f} s")
    return found


def complaints_of_polls(overlaps: Mapping[str, float]) -> list[str]:
    """Return which image tasks were polled by two triggerers for long."""
    return [
        f"{image_task_id} was polled by two triggerers for {seconds:.0f} s (allowed: {DOUBLE_POLL_SECONDS:.0f} s)"
        for image_task_id, seconds in overlaps.items()
        if seconds > DOUBLE_POLL_SECONDS
    ]


def complaints_of_memory(peaks: Mapping[str, int], limits: Mapping[str, int]) -> list[str]:
    """Return which services took more memory than their containers may."""
    return [
        f"a container of {service} took {peak / 2**20:.0f} MiB, and may take {limits[service] / 2**20:.0f}"
        for service, peak in peaks.items()
        if peak > limits[service]
    ]


def complaints_of_kills(kills: Mapping[str, Sequence[int]], least: int) -> list[str]:
    """Return which containers were not disturbed as often as they had to be, by what each kill met."""
    found = [
        f"{name} was killed {len(held)} times, not {least}: there was too little to do"
        for name, held in kills.items()
        if len(held) < least
    ]
    idle = [name for name, held in kills.items() if len(held) >= _MANY and not any(held)]
    return found + [f"{name} held nothing whenever it was killed" for name in idle]


def complaints_of_ends(
    ends: Mapping[str, Sequence[float]], workers: str, without_broker: Sequence[tuple[float, float]]
) -> list[str]:
    """Return which containers ended by themselves where they should not.

    A worker may: Celery's ends where there is no broker at its start, and the engine starts it again.

    Args:
        ends: When, on the clock of `without_broker`, by the container's name.
        workers: What the names of workers begin with.
        without_broker: From when to when the broker was away.
    """
    return [
        f"{name} has ended by itself"
        for name, moments in ends.items()
        for moment in moments
        if not name.startswith(workers)
        or not any(begin <= moment <= end + _AFTER_THE_BROKER_SECONDS for begin, end in without_broker)
    ]
