"""Draws a batch: what is paid first, then what is to be submitted, in an event loop of its own beside Airflow's thread.

The task's own thread only reports and waits, so that it can answer a signal at any moment; then submissions that are
under way get a few seconds for their answers, and everything that is paid is written down.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow_provider_qwenimage.batch.image import Drawer
from airflow_provider_qwenimage.batch.spool import Spool
from airflow_provider_qwenimage.exceptions import QwenImageSubmissionUnknownError, QwenImageTaskFailedError
from airflow_provider_qwenimage.hooks import QwenImageAsyncHook
from airflow_provider_qwenimage.rules.batch_totals import BatchTotals, Limits, RowStatus, in_brief, row_error
from airflow_provider_qwenimage.rules.submissions import GoBack, Stop, Submit
from airflow_provider_qwenimage.storage.images import StoredImages
from airflow_provider_qwenimage.storage.paths import is_empty
from airflow_provider_qwenimage.tasks.metrics import count_failure

if TYPE_CHECKING:
    from airflow_provider_qwenimage.batch.image import DrawingOptions
    from airflow_provider_qwenimage.batch.requests import BatchRequest, BatchRequests
    from airflow_provider_qwenimage.client.connection import AirflowConnection
    from airflow_provider_qwenimage.tasks.ledger import Ledger

log = logging.getLogger(__name__)

# After a signal, Airflow gives a process five seconds before it kills it.
_LAST_ANSWERS_SECONDS = 3.0
_LONGEST_WAIT_SECONDS = 1.0
_MOST_THREADS = 32

_TO_SUBMIT, _TO_GO_BACK_TO, _SETTLED = range(3)


@dataclass
class _Flight:
    """An image under way: whether its submission has begun, and the API's id of its task."""

    submitting: bool = False
    image_task_id: str | None = None

    @property
    def left_behind(self) -> RowStatus | None:
        """What becomes of its row when the batch is ended from outside; None if nothing was begun."""
        if self.image_task_id is not None:
            return RowStatus.UNFINISHED
        return RowStatus.UNKNOWN if self.submitting else None


class Batch:
    """The images of one Airflow task, drawn from `start` until `wait` says that they are done.

    Args:
        requests: What is asked for.
        connection: The Airflow connection, looked up.
        options: How the images are drawn.
        limits: What they may cost.
        max_in_flight: How many are under way at once.

    Attributes:
        totals: Where it stands.
        outcomes: What became of each row, by its number counted from 0; complete when it is done.
        interruption: What has ended it from outside, if anything has.
    """

    def __init__(
        self,
        requests: BatchRequests,
        connection: AirflowConnection,
        options: DrawingOptions,
        limits: Limits,
        max_in_flight: int,
    ) -> None:
        self._requests = requests
        self._options = options
        self._max_in_flight = max_in_flight
        self._threads = min(max_in_flight, _MOST_THREADS)
        self._hook = QwenImageAsyncHook(connection.conn_id, connection=connection, log_statuses=False)
        self.totals = BatchTotals(requests.number_to_draw, limits)
        self.outcomes = Spool(options.scratch)
        self.interruption: str | None = None
        self._states = bytearray(len(requests))
        self._flights: dict[int, _Flight] = {}
        self._submissions: set[asyncio.Task[str]] = set()
        self._done = threading.Event()
        self._error: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._work: asyncio.Task[None] | None = None
        self._began: float | None = None

    def start(self) -> None:
        """Begin, in a thread of its own."""
        threading.Thread(target=self._run, name="qwenimage-batch", daemon=True).start()

    def wait(self, seconds: float) -> bool:
        """Wait until it is done, and return whether it is.

        Args:
            seconds: How long at most.

        Raises:
            Exception: What went wrong with the batch as a whole, rather than with an image.
        """
        deadline = time.monotonic() + seconds
        is_done = self._done.is_set()
        # A signal that came just before a wait is handled only after it, so none is long.
        while not is_done and (left := deadline - time.monotonic()) > 0:
            is_done = self._done.wait(min(left, _LONGEST_WAIT_SECONDS))
        if is_done and self._error is not None:
            raise self._error
        return is_done

    def stop(self, reason: str) -> None:
        """Have it end within seconds: nothing more is submitted, and what is paid is written down.

        Args:
            reason: What ends it, for messages.
        """
        self.interruption = self.interruption or reason
        # A loop that is closed has nothing left to stop.
        with suppress(RuntimeError):
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._cancel)

    def close(self) -> None:
        """Remove what is on disk of it."""
        self.outcomes.close()

    def outcome(self, number: int) -> dict[str, Any] | None:
        """Return what became of a row so far, or None if nothing was begun.

        Args:
            number: The row, counted from 0.
        """
        outcome = self.outcomes.get(number)
        flight = self._flights.get(number)
        if outcome is None and flight is not None:
            return {"status": str(RowStatus.IN_PROGRESS), "task_id": flight.image_task_id}
        return outcome

    def progress(self) -> dict[str, Any]:
        """Return where it stands, as plain JSON; see `BatchTotals.progress`."""
        return self.totals.progress(0.0 if self._began is None else time.monotonic() - self._began)

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except BaseException as error:  # noqa: BLE001  it is raised in the thread that waits
            self._error = error
        finally:
            self._done.set()

    def _cancel(self) -> None:
        if self._work is not None:
            self._work.cancel()

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop.set_default_executor(ThreadPoolExecutor(self._threads, thread_name_prefix="qwenimage-ledger"))
        self._work = asyncio.create_task(self._draw_all())
        if self.interruption:
            self._cancel()
        try:
            await self._work
        except asyncio.CancelledError:
            if self.interruption is None:
                raise
        except BaseExceptionGroup as group:
            # One tells enough: where the storage is away, every image says the same.
            raise group.exceptions[0] from None

    async def _draw_all(self) -> None:
        drawer = Drawer(self._hook, self._options, self._threads)
        ended = False
        try:
            async with self._hook:
                try:
                    await self._look_around(drawer)
                    self._began = time.monotonic()
                    left = None
                    # More than once: an image that failed leaves its credits to one passed over because of max_credits.
                    while self.totals.not_submitted != left and not (left and self.totals.why_not_to_submit()):
                        left = self.totals.not_submitted
                        await self._each(self._to_do(), lambda number: self._draw(drawer, number))
                    ended = True
                finally:
                    await asyncio.shield(self._last_answers())
        finally:
            await drawer.close(wait=ended)

    def _to_do(self) -> Iterator[int]:
        """Yield the rows without an outcome: what is paid first."""
        for state in (_TO_GO_BACK_TO, _TO_SUBMIT):
            for number, its_state in enumerate(self._states):
                if its_state == state and self.outcomes.get(number) is None:
                    yield number

    async def _each(self, numbers: Iterable[int], function: Callable[[int], Awaitable[None]]) -> None:
        """Call a function for each number, so many at a time."""
        source = iter(numbers)

        async def work() -> None:
            for number in source:
                await function(number)

        async with asyncio.TaskGroup() as group:
            for _ in range(min(self._max_in_flight, len(self._requests))):
                group.create_task(work())

    async def _look_around(self, drawer: Drawer) -> None:
        """Find what is stored, paid or refused already, before anything is submitted: it counts for the limits."""
        folder_is_empty = await asyncio.to_thread(is_empty, self._options.folder)

        async def look(number: int) -> None:
            item = self._requests[number]
            if item.same_as is not None:
                self._states[number] = _SETTLED
            elif not folder_is_empty:
                beginning, ledger = await asyncio.to_thread(drawer.begin, item)
                self.totals.spent += ledger.spent
                if isinstance(beginning, GoBack):
                    self._states[number] = _TO_GO_BACK_TO
                elif not isinstance(beginning, Submit):
                    self._settle(drawer, item, beginning)

        await self._each(range(len(self._requests)), look)

    def _settle(self, drawer: Drawer, item: BatchRequest, end: StoredImages | Stop, *, now: bool = False) -> None:
        self._states[item.number] = _SETTLED
        if isinstance(end, Stop):
            lost_before = isinstance(end.error, QwenImageSubmissionUnknownError)
            self._fail(item, end.error, paid=True, earlier=lost_before)
            return
        reused = not drawer.is_own(end)
        self.totals.store(end.consumed_credits, reused=reused, now=now)
        self.outcomes[item.number] = {
            "status": str(RowStatus.SUCCESS),
            "task_id": end.image_task_id,
            "image_urls": list(end.image_urls),
            "paths": list(end.paths),
            "consumed_credits": 0 if reused else end.consumed_credits,
            "reused": reused,
            "stored_at": end.stored_at,
        }

    async def _draw(self, drawer: Drawer, number: int) -> None:
        is_paid = self._states[number] == _TO_GO_BACK_TO
        if not is_paid and self.totals.why_not_to_submit():
            return
        item = self._requests[number]
        flight = self._flights[number] = _Flight()
        self.totals.begin()
        try:
            end, now = await self._draw_one(drawer, item, flight)
        except Exception as error:  # noqa: BLE001  whatever is wrong with one image, the others go on
            self._land(number)
            self._fail(item, error, paid=flight.image_task_id is not None, task_id=flight.image_task_id)
        else:
            self._land(number)
            self._settle(drawer, item, end, now=now)

    async def _draw_one(self, drawer: Drawer, item: BatchRequest, flight: _Flight) -> tuple[StoredImages | Stop, bool]:
        """Return what an image ends with, and whether this try has drawn it."""
        beginning, ledger = await asyncio.to_thread(drawer.begin, item)
        if isinstance(beginning, StoredImages | Stop):
            return beginning, False
        if isinstance(beginning, GoBack):
            flight.image_task_id = beginning.image_task_id
            try:
                return await drawer.finish(item, ledger, beginning.image_task_id, at_once=True), True
            except QwenImageTaskFailedError as error:
                if error.permanent or self.totals.why_not_to_submit_again(error.cost):
                    raise
                count_failure(error)
                log.warning("%s This try submits it again.", in_brief(error))
                self.totals.spent += error.cost
                flight.image_task_id = None
                beginning = Submit(ledger.spent)
        await self._submit(drawer, item, ledger, beginning, flight)
        return await drawer.finish(item, ledger, str(flight.image_task_id), at_once=False), True

    async def _submit(self, drawer: Drawer, item: BatchRequest, ledger: Ledger, step: Submit, flight: _Flight) -> None:
        flight.submitting = True
        submission = asyncio.create_task(drawer.submit(item, ledger, step))
        self._submissions.add(submission)

        def note(done: asyncio.Task[str]) -> None:
            self._submissions.discard(done)
            if not done.cancelled() and done.exception() is None:
                flight.image_task_id = done.result()

        submission.add_done_callback(note)
        # Where the batch is stopped, the submission goes on until its answer is written down.
        flight.image_task_id = await asyncio.shield(submission)

    async def _last_answers(self) -> None:
        """Wait for the submissions that are under way, for a while; then tell what is left behind."""
        if self._submissions:
            await asyncio.wait(set(self._submissions), timeout=_LAST_ANSWERS_SECONDS)
        for submission in set(self._submissions):
            submission.cancel()
        await asyncio.gather(*self._submissions, return_exceptions=True)
        for number, flight in list(self._flights.items()):
            self._land(number)
            if flight.left_behind is not None:
                self._leave(number, flight.left_behind, flight.image_task_id)
        for number in self._to_do():
            if self._states[number] == _TO_GO_BACK_TO:
                self._leave(number, RowStatus.UNFINISHED, None)

    def _leave(self, number: int, status: RowStatus, image_task_id: str | None) -> None:
        self.totals.leave(status)
        self.outcomes[number] = {"status": str(status), "task_id": image_task_id}

    def _land(self, number: int) -> None:
        if self._flights.pop(number, None) is not None:
            self.totals.in_flight -= 1

    def _fail(
        self, item: BatchRequest, error: Exception, *, paid: bool, earlier: bool = False, task_id: str | None = None
    ) -> None:
        where = f"row {item.number + 1}"
        status = self.totals.fail(where, error, paid=paid, earlier=earlier)
        # What was told before is in the manifest and in the error at the end.
        if not earlier:
            count_failure(error)
            log.warning("The image of %s could not be had: %s", where, in_brief(error))
        self.outcomes[item.number] = {"status": str(status), "task_id": task_id, **row_error(error)}
