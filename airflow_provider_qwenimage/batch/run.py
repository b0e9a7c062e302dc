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
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow_provider_qwenimage.batch.image import ImagePipeline
from airflow_provider_qwenimage.batch.spool import Spool
from airflow_provider_qwenimage.exceptions import (
    QwenImageImageError,
    QwenImageSubmissionUnknownError,
    QwenImageTaskFailedError,
)
from airflow_provider_qwenimage.hooks import QwenImageAsyncHook
from airflow_provider_qwenimage.rules.batch_rows import RowStatus, row_error
from airflow_provider_qwenimage.rules.batch_totals import BatchTotals, Limits, in_brief
from airflow_provider_qwenimage.rules.submissions import Resume, Stop, Submit
from airflow_provider_qwenimage.storage.images import StoredImages
from airflow_provider_qwenimage.storage.paths import is_empty
from airflow_provider_qwenimage.tasks.metrics import count_failure

if TYPE_CHECKING:
    from airflow_provider_qwenimage.batch.image import ImageOptions
    from airflow_provider_qwenimage.batch.requests import BatchRequest, BatchRequests
    from airflow_provider_qwenimage.client.connection import AirflowConnection
    from airflow_provider_qwenimage.contract import TaskSnapshot
    from airflow_provider_qwenimage.tasks.ledger import Ledger

log = logging.getLogger(__name__)

# After a signal, Airflow gives a process five seconds before it kills it.
_LAST_ANSWERS_SECONDS = 3.0
_LONGEST_WAIT_SECONDS = 1.0
_MOST_THREADS = 32

# What is left to do for a row.
_SUBMIT, _RESUME, _NOTHING = range(3)


@dataclass
class _ImageInFlight:
    """An image under way: whether its submission has begun, the API's id of its task, and what it was charged."""

    submission_began: bool = False
    image_task_id: str | None = None
    charged: float | None = None

    def note_success(self, snapshot: TaskSnapshot) -> None:
        """Note what the API charged for the image, which has yet to be stored."""
        self.charged = snapshot.consumed_credits

    @property
    def status_if_stopped(self) -> RowStatus | None:
        """The status of its row if the batch is stopped now; None if nothing was submitted."""
        if self.image_task_id is not None:
            return RowStatus.UNFINISHED
        return RowStatus.UNKNOWN if self.submission_began else None


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
        self._in_flight: dict[int, _ImageInFlight] = {}
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
        if self._work is not None:
            self._work.cancel()

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop.set_default_executor(ThreadPoolExecutor(self._threads, thread_name_prefix="qwenimage-ledger"))
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
        """Yield the rows that have no outcome, those that are paid first."""
        for step in (_RESUME, _SUBMIT):
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
        folder_is_empty = await asyncio.to_thread(is_empty, self._options.folder)

        async def find(number: int) -> None:
            item = self.requests[number]
            if item.same_as is not None:
                self._left_to_do[number] = _NOTHING
            elif not folder_is_empty:
                step, ledger = await asyncio.to_thread(self._pipeline.next_step, item)
                self.totals.spend(ledger.spent)
                if isinstance(step, Resume):
                    self._left_to_do[number] = _RESUME
                elif not isinstance(step, Submit):
                    self._record_end(item, step)

        await self._for_each(range(len(self.requests)), find)

    async def _draw_row(self, number: int) -> None:
        is_paid = self._left_to_do[number] == _RESUME
        if not is_paid and self.totals.why_not_to_submit():
            return
        item = self.requests[number]
        in_flight = self._in_flight[number] = _ImageInFlight()
        self.totals.begin()
        try:
            end, is_new = await self._draw_image(item, in_flight)
        except Exception as error:  # noqa: BLE001  whatever is wrong with one image, the others go on
            self._remove_from_flight(number)
            self._record_failure(
                item,
                error,
                paid=in_flight.image_task_id is not None,
                task_id=in_flight.image_task_id,
                charged=in_flight.charged,
            )
        else:
            self._remove_from_flight(number)
            self._record_end(item, end, is_new=is_new)

    async def _draw_image(self, item: BatchRequest, in_flight: _ImageInFlight) -> tuple[StoredImages | Stop, bool]:
        """Return how an image ends, and whether this try has drawn it."""
        step, ledger = await asyncio.to_thread(self._pipeline.next_step, item)
        if isinstance(step, StoredImages | Stop):
            return step, False
        if isinstance(step, Resume):
            in_flight.image_task_id = step.image_task_id
            try:
                return await self._pipeline.wait_and_store(
                    item, ledger, step.image_task_id, in_flight.note_success, check_at_once=True
                ), True
            except QwenImageTaskFailedError as error:
                if error.permanent or self.totals.why_not_to_submit_again(error.cost):
                    raise
                count_failure(error)
                log.warning("%s This try submits it again.", in_brief(error))
                self.totals.spend(error.cost)
                in_flight.image_task_id = None
                step = Submit(ledger.spent)
        image_task_id = await self._submit(item, ledger, step, in_flight)
        return await self._pipeline.wait_and_store(
            item, ledger, image_task_id, in_flight.note_success, check_at_once=False
        ), True

    async def _submit(self, item: BatchRequest, ledger: Ledger, step: Submit, in_flight: _ImageInFlight) -> str:
        in_flight.submission_began = True
        submission = asyncio.create_task(self._pipeline.submit(item, ledger, step, self.totals.note_unrecorded))
        self._submissions.add(submission)

        def note(done: asyncio.Task[str]) -> None:
            self._submissions.discard(done)
            if not done.cancelled() and done.exception() is None:
                in_flight.image_task_id = done.result()

        submission.add_done_callback(note)
        # If the batch is stopped, the submission goes on until its response is written down.
        in_flight.image_task_id = await asyncio.shield(submission)
        return in_flight.image_task_id

    async def _await_last_submissions(self) -> None:
        """Wait some seconds for the submissions under way; then record the images that are left unfinished."""
        if self._submissions:
            await asyncio.wait(set(self._submissions), timeout=_LAST_ANSWERS_SECONDS)
        for submission in set(self._submissions):
            submission.cancel()
        await asyncio.gather(*self._submissions, return_exceptions=True)
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
            is_paid = not isinstance(end.error, QwenImageImageError)
            self._record_failure(item, end.error, paid=is_paid, earlier=was_lost_earlier)
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
