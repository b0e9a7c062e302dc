"""Draws a batch in an event loop of its own, in a second thread: first the images that are paid, then the others.

The task's own thread only waits and reports, so that it can react to a signal at any moment. Submissions under way then
get a few seconds for their responses, and everything that is paid is written down.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

from airflow_provider_qwenimage.batch.image import ImagePipeline
from airflow_provider_qwenimage.batch.listing import FolderListing, list_records
from airflow_provider_qwenimage.batch.spool import Spool
from airflow_provider_qwenimage.batch.submissions import ImageInFlight, Submissions
from airflow_provider_qwenimage.exceptions import (
    QwenImageBudgetError,
    QwenImageSubmissionUnknownError,
    QwenImageTaskFailedError,
)
from airflow_provider_qwenimage.hooks import QwenImageAsyncHook
from airflow_provider_qwenimage.rules.batch_rows import RowStatus, row_error
from airflow_provider_qwenimage.rules.batch_totals import BatchTotals, Limits, in_brief
from airflow_provider_qwenimage.rules.submissions import LookAgain, Resume, Step, Stop, Submit
from airflow_provider_qwenimage.storage.images import StoredImages
from airflow_provider_qwenimage.tasks.drawing import ended_from_outside
from airflow_provider_qwenimage.tasks.metrics import count_failure

if TYPE_CHECKING:
    from airflow_provider_qwenimage.batch.image import ImageOptions
    from airflow_provider_qwenimage.batch.requests import BatchRequest, BatchRequests
    from airflow_provider_qwenimage.client.connection import AirflowConnection
    from airflow_provider_qwenimage.tasks.drawing import Drawing

log = logging.getLogger(__name__)

# After a signal, Airflow gives a process five seconds before it kills it.
_LAST_ANSWERS_SECONDS = 3.0
_LONGEST_WAIT_SECONDS = 1.0
_MOST_THREADS = 32
# Records of images that no row asks for any more, of which the log names so many.
_MOST_LEFT = 100

# What is left to do for a row.
_SUBMIT, _LOOK_AGAIN, _RESUME, _NOTHING = range(4)


class Batch:
    """The images of one Airflow task, drawn from `start` until `wait` returns True.

    Args:
        requests: The requests.
        connection: The Airflow connection, looked up.
        options: How the images are drawn and stored.
        limits: The limits for credits and failures.
        max_in_flight: How many images are submitted, drawn or stored at once.

    Attributes:
        requests: The requests.
        totals: The counts so far.
        outcomes: The outcome of each row, by its number counted from 0; complete once the batch is done.
        interruption: Why it was stopped from outside, or None.
    """

    def __init__(
        self,
        requests: BatchRequests,
        connection: AirflowConnection,
        options: ImageOptions,
        limits: Limits,
        max_in_flight: int,
    ) -> None:
        self.requests = requests
        self._options = options
        self._max_in_flight = max_in_flight
        self._threads = min(max_in_flight, _MOST_THREADS)
        self._hook = QwenImageAsyncHook(connection.conn_id, connection=connection, log_statuses=False)
        self._pipeline = ImagePipeline(self._hook, options, self._threads)
        self.totals = BatchTotals(requests.number_to_draw, limits, connection.conn_id or "")
        self.outcomes = Spool(options.scratch, survives_full_disk=True)
        self.interruption: str | None = None
        self._left_to_do = bytearray([_SUBMIT]) * len(requests)
        self._in_flight: dict[int, ImageInFlight] = {}
        self._submissions = Submissions(self._pipeline, self.totals, self._threads)
        self._one_at_a_time = asyncio.Lock()
        self._listing = FolderListing()
        self._done = threading.Event()
        self._error: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._work: asyncio.Task[None] | None = None
        self._began: float | None = None

    def start(self) -> None:
        """Begin, in a thread of its own."""
        # Spans that begin there are below that of the task.
        in_context = copy_context().run
        threading.Thread(target=in_context, args=(self._run,), name="qwenimage-batch", daemon=True).start()

    def wait(self, seconds: float) -> bool:
        """Wait until it is done, for so many seconds at most, and return whether it is done.

        Raises:
            Exception: The error of the batch as a whole, rather than of an image.
        """
        deadline = time.monotonic() + seconds
        # In short waits: a signal that came just before a wait is only handled after it.
        while not self._done.is_set() and (left := deadline - time.monotonic()) > 0:
            self._done.wait(min(left, _LONGEST_WAIT_SECONDS))
        if not self._done.is_set():
            return False
        if self._error is not None:
            raise self._error
        return True

    def stop(self, reason: str) -> None:
        """End it within seconds: nothing more is submitted, and everything that is paid is written down.

        Args:
            reason: Why, for messages.
        """
        self.interruption = self.interruption or reason
        # A closed loop has nothing left to stop.
        with suppress(RuntimeError):
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._cancel)

    def close(self) -> None:
        """Remove its temporary file."""
        self.outcomes.close()

    def outcome(self, number: int) -> dict[str, Any] | None:
        """Return the outcome of a row so far, or None if nothing was begun.

        Args:
            number: The row, counted from 0.
        """
        outcome = self.outcomes.get(number)
        in_flight = self._in_flight.get(number)
        if outcome is None and in_flight is not None:
            return {"status": str(RowStatus.IN_PROGRESS), "task_id": in_flight.image_task_id}
        return outcome

    def progress(self) -> dict[str, Any]:
        """Return the progress as plain JSON; see `BatchTotals.progress`."""
        return self.totals.progress(0.0 if self._began is None else time.monotonic() - self._began)

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except BaseException as error:  # noqa: BLE001  it is raised in the thread that waits
            self._error = error
        finally:
            self._done.set()

    def _cancel(self) -> None:
        self._submissions.stop()
        if self._options.books is not None:
            self._options.books.stop()
        if self._work is not None:
            self._work.cancel()

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        threads = 2 * self._threads
        self._loop.set_default_executor(ThreadPoolExecutor(threads, thread_name_prefix="qwenimage-ledger"))
        self._work = asyncio.create_task(self._draw())
        if self.interruption:
            self._cancel()
        try:
            await self._work
        except asyncio.CancelledError:
            if self.interruption is None:
                raise
        except BaseExceptionGroup as group:
            # One is enough: if the storage is unavailable, every image fails for the same reason.
            raise group.exceptions[0] from None

    async def _draw(self) -> None:
        is_complete = False
        try:
            async with self._hook:
                try:
                    await self._find_earlier_work()
                    self._began = time.monotonic()
                    is_progressing = await self._draw_remaining()
                    # An image that failed leaves its credits to a row that was skipped because of max_credits.
                    while is_progressing and not self.totals.why_not_to_submit():
                        is_progressing = await self._draw_remaining()
                    is_complete = True
                finally:
                    await asyncio.shield(self._await_last_submissions())
        finally:
            await self._pipeline.close(wait=is_complete)

    async def _draw_remaining(self) -> bool:
        """Draw each row that has no outcome and is allowed by the limits; return whether there was one."""
        before = self.totals.not_submitted
        await self._for_each(self._rows_without_outcome(), self._draw_row)
        return self.totals.not_submitted < before

    def _rows_without_outcome(self) -> Iterator[int]:
        """Yield the rows that have no outcome: first those that are paid, last those that another process submits."""
        for step in (_RESUME, _SUBMIT, _LOOK_AGAIN):
            for number, left_to_do in enumerate(self._left_to_do):
                if left_to_do == step and self.outcomes.get(number) is None:
                    yield number

    async def _for_each(self, numbers: Iterable[int], function: Callable[[int], Awaitable[None]]) -> None:
        """Call a function for each number, at most `max_in_flight` at a time."""
        source = iter(numbers)

        async def work() -> None:
            for number in source:
                await function(number)

        async with asyncio.TaskGroup() as group:
            for _ in range(min(self._max_in_flight, len(self.requests))):
                group.create_task(work())

    async def _find_earlier_work(self) -> None:
        """Find the images that are stored, paid or refused already, before anything is submitted: they count."""
        self._listing = await asyncio.to_thread(list_records, self._options.folder)

        async def find(number: int) -> None:
            item = self.requests[number]
            if item.same_as is not None:
                self._left_to_do[number] = _NOTHING
            elif not self._listing.is_empty:
                drawing = self._pipeline.drawing(item, self._check, known=self._listing.records)
                step = await asyncio.to_thread(self._look, drawing)
                if isinstance(step, Submit):
                    self.totals.spend(step.spent)
                elif isinstance(step, LookAgain):
                    self._left_to_do[number] = _LOOK_AGAIN
                elif isinstance(step, Resume):
                    self._left_to_do[number] = _RESUME
                else:
                    self._record_end(item, step)

        await self._for_each(range(len(self.requests)), find)
        await asyncio.to_thread(self._name_what_is_left)

    def _look(self, drawing: Drawing) -> StoredImages | Step:
        step = drawing.look()
        names = self._listing.records_by_key.get(drawing.identity.key)
        if isinstance(step, StoredImages) and names:
            drawing.remove_records_of(step, names)
        return step

    def _name_what_is_left(self) -> None:
        """Log what earlier tries of this task have paid for, and what no row asks for any more."""
        left = set(self._listing.records_by_key)
        for number in range(len(self.requests)):
            if not left:
                return
            left.discard(self.requests[number].identity.key)
        for key in sorted(left)[:_MOST_LEFT]:
            submission = self._pipeline.left_by_this_task(key)
            if submission is not None:
                log.warning(
                    "Image task %s (%s) was submitted by try %d of this task, and no row asks for its image any more. "
                    "It may be paid; to get the image, wait for that id with a QwenImageStatusSensor.",
                    submission.image_task_id,
                    submission.intent.identity.stem,
                    submission.intent.made_in.number,
                )

    def _check(self, _: Submit) -> None:
        """Mark the folder before the first submission; raise if the batch has been ended from outside."""
        if self.interruption is not None:
            raise ended_from_outside()
        self._options.before_submission()

    async def _draw_row(self, number: int) -> None:
        is_paid = self._left_to_do[number] == _RESUME
        if not is_paid and self.totals.why_not_to_submit():
            return
        if not is_paid and not self.totals.knows_its_price:
            # Until the first image has ended, nobody knows what one costs: the limit could not hold.
            async with self._one_at_a_time:
                if await self._draw_first(number):
                    return
            if self.totals.why_not_to_submit():
                return
        await self._draw_now(number)

    async def _draw_first(self, number: int) -> bool:
        """Draw a row alone, if the price of an image is not known yet; return whether that is so."""
        if self.totals.knows_its_price:
            return False
        if not self.totals.why_not_to_submit():
            await self._draw_now(number)
        return True

    async def _draw_now(self, number: int) -> None:
        item = self.requests[number]
        in_flight = self._in_flight[number] = ImageInFlight()
        self.totals.begin()
        try:
            end, is_new = await self._draw_image(item, in_flight)
        except QwenImageBudgetError as error:
            # Nothing was submitted: the row stays as it was, for the next try.
            self._remove_from_flight(number)
            self.totals.stop_for(error)
        except Exception as error:  # noqa: BLE001  whatever is wrong with one image, the others go on
            self._remove_from_flight(number)
            self._record_failure(
                item,
                error,
                paid=in_flight.may_be_paid_after(error),
                task_id=in_flight.image_task_id,
                charged=in_flight.charged if in_flight.is_own else 0,
            )
        else:
            self._remove_from_flight(number)
            # The image is there: which of its submissions was accepted does not matter any more.
            self.totals.risk(-in_flight.at_risk)
            self._record_end(item, end, is_new=is_new)

    async def _draw_image(self, item: BatchRequest, in_flight: ImageInFlight) -> tuple[StoredImages, bool]:
        """Return the stored image of a row, and whether this try has drawn it."""
        was_looked_for = self._left_to_do[item.number] == _SUBMIT
        drawing = self._pipeline.drawing(item, self._check, known=self._listing.records if was_looked_for else None)
        while True:
            result = await self._submissions.submit(drawing, in_flight, was_looked_for=was_looked_for)
            was_looked_for = False
            if isinstance(result, StoredImages):
                return result, False
            if result.unrecorded is not None:
                self.totals.note_unrecorded(item.number + 1, result.image_task_id)
                log.warning(
                    "Row %d: image task %s was submitted, but its id could not be recorded (%s).",
                    item.number + 1,
                    result.image_task_id,
                    result.unrecorded,
                )
            try:
                return await self._pipeline.wait_and_store(drawing, result, in_flight.note_success), True
            except QwenImageTaskFailedError as error:
                cost = error.cost if result.is_own else 0.0
                if result.is_new or error.permanent or self.totals.why_not_to_submit_again(cost):
                    raise
                count_failure(error)
                log.warning("%s This try submits it again.", in_brief(error))
                self.totals.spend(cost)
                in_flight.forget()

    async def _await_last_submissions(self) -> None:
        """Wait some seconds for the submissions under way; then record the images that are left unfinished."""
        await self._submissions.end(_LAST_ANSWERS_SECONDS)
        for number, in_flight in list(self._in_flight.items()):
            self._remove_from_flight(number)
            if in_flight.status_if_stopped is not None:
                self._record_unfinished(number, in_flight.status_if_stopped, in_flight.image_task_id, in_flight.charged)
        for number in self._rows_without_outcome():
            if self._left_to_do[number] == _RESUME:
                self._record_unfinished(number, RowStatus.UNFINISHED, None)

    def _remove_from_flight(self, number: int) -> None:
        if self._in_flight.pop(number, None) is not None:
            self.totals.end()

    def _record_end(self, item: BatchRequest, end: StoredImages | Stop, *, is_new: bool = False) -> None:
        self._left_to_do[item.number] = _NOTHING
        if isinstance(end, Stop):
            was_lost_earlier = isinstance(end.error, QwenImageSubmissionUnknownError)
            self._record_failure(item, end.error, paid=was_lost_earlier, earlier=was_lost_earlier)
            return
        reused = not self._pipeline.was_stored_by_this_task(end)
        self.totals.store(end.consumed_credits, reused=reused, now=is_new, row=item.number + 1)
        self.outcomes[item.number] = {
            "status": str(RowStatus.SUCCESS),
            "task_id": end.image_task_id,
            "image_urls": list(end.image_urls),
            "paths": list(end.paths),
            "consumed_credits": 0 if reused else end.consumed_credits,
            "reused": reused,
            "stored_at": end.stored_at,
        }

    def _record_failure(
        self,
        item: BatchRequest,
        error: Exception,
        *,
        paid: bool,
        earlier: bool = False,
        task_id: str | None = None,
        charged: float | None = None,
    ) -> None:
        row = item.number + 1
        status = self.totals.fail(row, error, paid=paid, earlier=earlier, charged=charged)
        # An earlier try has logged an earlier failure; the manifest and the final error repeat it.
        if not earlier:
            count_failure(error)
            log.warning("Row %d failed: %s", row, in_brief(error))
        self.outcomes[item.number] = {
            "status": str(status),
            "task_id": task_id,
            **({} if charged is None else {"consumed_credits": charged}),
            **row_error(error),
        }

    def _record_unfinished(
        self, number: int, status: RowStatus, image_task_id: str | None, charged: float | None = None
    ) -> None:
        self.totals.leave(number + 1, status, charged=charged)
        spent = {} if charged is None else {"consumed_credits": charged}
        self.outcomes[number] = {"status": str(status), "task_id": image_task_id, **spent}
