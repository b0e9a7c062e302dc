"""Limits the time of each read of storage, so that a storage that never responds blocks only a few threads.

A thread that waits for storage cannot be stopped. It is abandoned and counted; if too many threads of a DAG, of a
storage or in total are abandoned, further reads are refused at once until some of these have ended. The threads are
daemons, so the API server can exit while they wait.
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
    """A read in its own thread."""

    function: Callable[[], Any]
    end: Callable[[], None]
    has_ended: threading.Event = field(default_factory=threading.Event)
    result: Any = None
    error: BaseException | None = None

    def run(self) -> None:
        try:
            self.result = self.function()
        except BaseException as error:  # noqa: BLE001  raised again in the waiting thread
            self.error = error
        self.has_ended.set()
        self.end()


class TimeLimitedReads:
    """Reads storage within a time limit.

    Args:
        seconds: The limit of one read.
        most_of_dag: The number of abandoned threads of one DAG at which its reads are refused.
        most_of_storage: The same for one storage.
        most: The same in total.
    """

    def __init__(self, seconds: float = 8, *, most_of_dag: int = 4, most_of_storage: int = 8, most: int = 32) -> None:
        self.seconds = seconds
        self._limits = {"dag": most_of_dag, "storage": most_of_storage, "all": most}
        self._abandoned: Counter[tuple[str, str]] = Counter()
        self._lock = threading.Lock()

    @property
    def abandoned(self) -> int:
        """The number of abandoned threads that have not ended."""
        return self._abandoned["all", ""]

    def run(self, dag_id: str, storage: str, function: Callable[[], Result], deadline: float | None = None) -> Result:
        """Return what a function that reads storage returns, or raise what it raises.

        Args:
            dag_id: The DAG whose files it reads.
            storage: The name of their storage; see `storage_access.storage_of`.
            deadline: When all reads of a page must have ended, by `time.monotonic`.

        Raises:
            RefusedError: If it takes too long, or too many earlier reads have not ended.
        """
        keys = (("dag", dag_id), ("storage", storage), ("all", ""))
        seconds = self.seconds if deadline is None else min(self.seconds, deadline - time.monotonic())
        if seconds <= 0:
            raise RefusedError(
                "The storage is too slow to read everything that this page shows. Reload the page later."
            )
        if any(self._abandoned[key] >= self._limits[key[0]] for key in keys):
            raise RefusedError(
                "The storage does not respond: too many earlier reads have not ended. Check the storage; files are "
                "read again when some of these reads have ended."
            )
        is_abandoned = False

        def end() -> None:
            with self._lock:
                if is_abandoned:
                    self._abandoned.subtract(keys)

        read = _Read(function, end)
        try:
            threading.Thread(target=read.run, name="qwenimage-gallery-read", daemon=True).start()
        except RuntimeError as error:
            raise RefusedError(
                "The API server cannot start a thread to read the storage. Reload the page later."
            ) from error
        if not read.has_ended.wait(seconds):
            with self._lock:
                if not read.has_ended.is_set():
                    is_abandoned = True
                    self._abandoned.update(keys)
            if is_abandoned:
                log.warning(
                    "The gallery abandoned a read of %s for DAG %s after %.1f s; %d such reads have not ended.",
                    printable(storage),
                    dag_id,
                    seconds,
                    self.abandoned,
                )
                raise RefusedError(f"The storage did not respond within {seconds:.0f} seconds. Reload the page later.")
        if read.error is not None:
            raise read.error
        return cast("Result", read.result)


class BusyError(Exception):
    """Too many requests for the files of a DAG are waiting."""


class Shares:
    """Runs functions in a limited number of threads, of which each DAG gets a share.

    Args:
        at_once: The number of threads.
        of_dag: The number of threads for one DAG.
        most_waiting: The number of waiting and running functions of one DAG.
    """

    def __init__(self, at_once: int, of_dag: int, most_waiting: int = 500) -> None:
        self._all = CapacityLimiter(at_once)
        self._of_dag = of_dag
        self._most_waiting = most_waiting
        self._own: dict[str, tuple[CapacityLimiter, list[None]]] = {}

    async def run(self, dag_id: str, function: Callable[[], Result]) -> Result:
        """Run a function as soon as the DAG has a free thread, and return what it returns.

        Raises:
            BusyError: If too many functions of the DAG are waiting.
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
