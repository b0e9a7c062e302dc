"""Gives each read of storage a time limit, so that storage that never answers costs its own DAG a few threads.

A thread that waits for storage cannot be ended. It is given up and counted; where too many of a DAG, of a storage or of
all have been given up, the next read is refused at once, until some have come back. The threads are daemons: the API
server ends without them.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from anyio import CapacityLimiter, to_thread

from airflow_provider_qwenimage.plugin.storage_access import RefusedError
from airflow_provider_qwenimage.text.messages import printable

log = logging.getLogger(__name__)

Result = TypeVar("Result")


@dataclass
class _Read:
    """A read in a thread of its own."""

    function: Callable[[], Any]
    end: Callable[[], None]
    has_ended: threading.Event = field(default_factory=threading.Event)
    result: Any = None
    error: BaseException | None = None

    def run(self) -> None:
        try:
            self.result = self.function()
        except BaseException as error:  # noqa: BLE001  raised again by who waits for it
            self.error = error
        self.has_ended.set()
        self.end()


class TimeLimitedReads:
    """Reads storage within a time limit.

    Args:
        seconds: How long one read may take.
        most_of_dag: How many threads may be given up for one DAG before its reads are refused.
        most_of_storage: The same for one storage.
        most: The same for all.
    """

    def __init__(self, seconds: float = 8, *, most_of_dag: int = 4, most_of_storage: int = 8, most: int = 32) -> None:
        self.seconds = seconds
        self._limits = {"dag": most_of_dag, "storage": most_of_storage, "all": most}
        self._given_up: Counter[tuple[str, str]] = Counter()
        self._lock = threading.Lock()

    @property
    def given_up(self) -> int:
        """How many threads have been given up and have not come back."""
        return self._given_up["all", ""]

    def run(self, dag_id: str, storage: str, function: Callable[[], Result], deadline: float | None = None) -> Result:
        """Return what a function returns, which reads storage; raise what it raises.

        Args:
            dag_id: The DAG whose files it reads.
            storage: A name for where they are; see `storage_access.storage_of`.
            function: What reads them.
            deadline: When all reads of a page must have ended, by `time.monotonic`.

        Raises:
            RefusedError: If it takes too long, or others before it have.
        """
        keys = (("dag", dag_id), ("storage", storage), ("all", ""))
        seconds = self.seconds if deadline is None else min(self.seconds, deadline - time.monotonic())
        if seconds <= 0:
            raise RefusedError("The storage is too slow to read everything at once. Reload the page later.")
        if any(self._given_up[key] >= self._limits[key[0]] for key in keys):
            raise RefusedError(
                "The storage does not respond: earlier reads of it have not ended yet. They are tried again when some "
                "have ended; check the storage."
            )
        is_given_up = False

        def end() -> None:
            with self._lock:
                if is_given_up:
                    self._given_up.subtract(keys)

        read = _Read(function, end)
        try:
            threading.Thread(target=read.run, name="qwenimage-gallery-read", daemon=True).start()
        except RuntimeError as error:
            raise RefusedError("The API server can start no thread to read the storage. Try again later.") from error
        if not read.has_ended.wait(seconds):
            with self._lock:
                if not read.has_ended.is_set():
                    is_given_up = True
                    self._given_up.update(keys)
            if is_given_up:
                log.warning(
                    "The gallery gives up a read of %s for DAG %s after %.1f s; %d such threads have not ended.",
                    printable(storage),
                    dag_id,
                    seconds,
                    self.given_up,
                )
                raise RefusedError(f"The storage did not respond within {seconds:.0f} seconds. Reload the page later.")
        if read.error is not None:
            raise read.error
        return cast("Result", read.result)


class BusyError(Exception):
    """Too many requests for a DAG's files are waiting already."""


class Shares:
    """Runs functions in threads, so many at once, of which a DAG gets its share.

    Args:
        at_once: How many run at once.
        of_dag: How many of these may be one DAG's.
        most_waiting: How many of one DAG may wait.
    """

    def __init__(self, at_once: int, of_dag: int, most_waiting: int = 500) -> None:
        self._all = CapacityLimiter(at_once)
        self._of_dag = of_dag
        self._most_waiting = most_waiting
        self._own: dict[str, tuple[CapacityLimiter, list[None]]] = {}

    async def run(self, dag_id: str, function: Callable[[], Result]) -> Result:
        """Return what a function returns, once it is the DAG's turn.

        Raises:
            BusyError: If too many of the DAG's wait already.
        """
        limiter, waiting = self._own.setdefault(dag_id, (CapacityLimiter(self._of_dag), []))
        if len(waiting) >= self._most_waiting:
            raise BusyError
        waiting.append(None)
        try:
            async with limiter:
                return await to_thread.run_sync(function, limiter=self._all)
        finally:
            waiting.pop()
            if not waiting:
                self._own.pop(dag_id, None)
