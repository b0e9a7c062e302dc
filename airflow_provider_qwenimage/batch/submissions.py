"""Submits the images of a batch in the steps of their drawings, and lets the last answers arrive when it ends."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from airflow_provider_qwenimage.exceptions import QwenImageServerError
from airflow_provider_qwenimage.rules.batch_rows import RowStatus
from airflow_provider_qwenimage.rules.retries import is_plain_server_error
from airflow_provider_qwenimage.tasks.drawing import Found, Pause, Submitted, advance, ended_from_outside

if TYPE_CHECKING:
    from airflow_provider_qwenimage.batch.image import ImagePipeline
    from airflow_provider_qwenimage.contract import TaskSnapshot
    from airflow_provider_qwenimage.rules.batch_totals import BatchTotals
    from airflow_provider_qwenimage.storage.images import StoredImages
    from airflow_provider_qwenimage.tasks.drawing import Action, Answer, Drawing, Steps


@dataclass
class ImageInFlight:
    """An image under way.

    Attributes:
        submission_began: Whether a submission of it may have been sent, without an answer yet.
        image_task_id: The API's id of its task.
        is_own: Whether this task has submitted it, and so pays for it.
        charged: What this task was charged for it, once it is drawn.
        at_risk: Credits that submissions of it may have cost beside the one that counts.
    """

    submission_began: bool = False
    image_task_id: str | None = None
    is_own: bool = True
    charged: float | None = None
    at_risk: float = 0.0

    def forget(self) -> None:
        """Begin again, after its image task FAILED."""
        self.submission_began, self.image_task_id, self.charged = False, None, None

    def may_be_paid_after(self, error: Exception) -> bool:
        """Whether it may be paid, although its submission ended with an error."""
        is_server_error = isinstance(error, QwenImageServerError) and is_plain_server_error(error)
        return self.image_task_id is not None or is_server_error

    def note_success(self, snapshot: TaskSnapshot) -> None:
        """Note what the API charged this task for the image, which has yet to be stored."""
        self.charged = snapshot.consumed_credits if self.is_own else 0

    @property
    def status_if_stopped(self) -> RowStatus | None:
        """The status of its row if the batch is stopped now; None if nothing was submitted."""
        if self.image_task_id is not None:
            return RowStatus.UNFINISHED
        return RowStatus.UNKNOWN if self.submission_began else None


class Submissions:
    """The submissions of a batch that are under way.

    Args:
        pipeline: Sends them.
        totals: The counts of the batch.
        at_once: How many threads may be busy with images that are not submitted yet. The event loop's executor has
            more, so that the id of an accepted image task is recorded while others wait for storage or for the books.
    """

    def __init__(self, pipeline: ImagePipeline, totals: BatchTotals, at_once: int) -> None:
        self._pipeline = pipeline
        self._totals = totals
        self._under_way: set[asyncio.Task[StoredImages | Submitted]] = set()
        self._stopping = asyncio.Event()
        self._free_threads = asyncio.Semaphore(at_once)

    async def submit(
        self, drawing: Drawing, in_flight: ImageInFlight, *, was_looked_for: bool
    ) -> StoredImages | Submitted:
        """Find an image or submit it. If the caller is cancelled, this goes on until the answer is recorded.

        Args:
            drawing: The drawing.
            in_flight: What is known about the image; it is kept up to date.
            was_looked_for: See `Drawing.steps`.
        """
        work = self._take_steps(drawing, in_flight, was_looked_for=was_looked_for)
        submission = asyncio.create_task(work)
        self._under_way.add(submission)
        submission.add_done_callback(self._under_way.discard)
        return await asyncio.shield(submission)

    def stop(self) -> None:
        """Have nothing more sent."""
        self._stopping.set()

    async def end(self, seconds: float) -> None:
        """Wait for the last answers, for so many seconds at most."""
        if self._under_way:
            await asyncio.wait(set(self._under_way), timeout=seconds)
        for submission in set(self._under_way):
            submission.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)

    async def _take_steps(
        self, drawing: Drawing, in_flight: ImageInFlight, *, was_looked_for: bool
    ) -> StoredImages | Submitted:
        steps = drawing.steps(was_looked_for=was_looked_for)
        answer: Answer = None
        while not isinstance(action := await self._advance(steps, answer), Found):
            answer = None
            in_flight.at_risk += self._totals.risk(drawing.at_risk - in_flight.at_risk)
            if isinstance(action, Pause):
                in_flight.submission_began = False
                await self._pause(action.seconds)
            elif not self._stopping.is_set():
                in_flight.submission_began = True
                answer = await self._pipeline.post(action.request)
        if isinstance(action.result, Submitted):
            in_flight.image_task_id, in_flight.is_own = action.result.image_task_id, action.result.is_own
        return action.result

    async def _advance(self, steps: Steps, answer: Answer) -> Action:
        if answer is not None:
            return await asyncio.to_thread(advance, steps, answer)
        async with self._free_threads:
            return await asyncio.to_thread(advance, steps, answer)

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        if self._stopping.is_set():
            raise ended_from_outside()
