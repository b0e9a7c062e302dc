"""Find out which triggerer polled which image task and when, and how long two triggerers polled the same one."""

from __future__ import annotations

import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations, product
from types import TracebackType
from typing import Self

import psutil

_PAUSE_SECONDS = 0.25
# A connection may be used shortly before or after the moment at which it was seen.
_SLACK_SECONDS = 3.0
# Ten seconds between polls, plus 20 % jitter, plus the request.
_LONGEST_INTERVAL = 15.0

Poll = tuple[str, float]


class ConnectionWatch:
    """Records in its own thread which process has which connection to the sandbox.

    Args:
        port: The sandbox's port.
        owner_of: Returns the owner of a session id, or None.
    """

    def __init__(self, port: int, owner_of: Callable[[int], str | None]) -> None:
        self._port = port
        self._owner_of = owner_of
        self._seen: dict[int, list[tuple[float, str]]] = defaultdict(list)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._thread.join()

    def owner(self, client_port: int, moment: float) -> str | None:
        """Return the owner of the connection from a port at a time in epoch seconds, or None."""
        near = [(abs(time_seen - moment), owner) for time_seen, owner in self._seen.get(client_port, ())]
        distance, owner = min(near, default=(_SLACK_SECONDS + 1, ""))
        return owner if distance <= _SLACK_SECONDS else None

    def _watch(self) -> None:
        while not self._stopped.wait(_PAUSE_SECONDS):
            now = time.time()
            for connection in psutil.net_connections(kind="tcp"):
                if not connection.raddr or connection.raddr.port != self._port or connection.pid is None:
                    continue
                try:
                    owner = self._owner_of(os.getsid(connection.pid))
                except ProcessLookupError:
                    continue
                if owner is not None:
                    self._seen[connection.laddr.port].append((now, owner))


def overlaps(polls: Mapping[str, Sequence[Poll]]) -> dict[str, float]:
    """Return the longest time, in seconds, that two owners polled the same image task at once, if they did.

    Args:
        polls: The polls of each image task, each as its owner and its time.
    """
    found = {}
    for image_task_id, made in polls.items():
        by_owner: dict[str, list[float]] = defaultdict(list)
        for owner, moment in made:
            by_owner[owner].append(moment)
        periods = {owner: list(_periods(sorted(moments))) for owner, moments in by_owner.items()}
        shared = [
            min(one[1], other[1]) - max(one[0], other[0])
            for first, second in combinations(periods, 2)
            for one, other in product(periods[first], periods[second])
        ]
        longest = max(shared, default=0.0)
        if longest > 0:
            found[image_task_id] = longest
    return found


def _periods(moments: Sequence[float]) -> Iterator[tuple[float, float]]:
    """Return the periods of polling without a pause; a wait can leave a triggerer and return to it."""
    begin = last = moments[0]
    for moment in moments:
        if moment - last > _LONGEST_INTERVAL:
            yield begin, last
            begin = moment
        last = moment
    yield begin, last
