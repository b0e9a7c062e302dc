"""Sends, follows, downloads and stores the images of a batch, over one client; `tasks.drawing` has what they share."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pendulum

from airflow_provider_qwenimage.client.downloads import AsyncImageClient, fetch_async
from airflow_provider_qwenimage.contract import DEFAULT_MAX_IMAGE_BYTES
from airflow_provider_qwenimage.exceptions import QwenImageError, QwenImageImageError, QwenImageTaskFailedError
from airflow_provider_qwenimage.rules import polling, wait_defaults
from airflow_provider_qwenimage.rules.book_rows import done
from airflow_provider_qwenimage.rules.origins import displayed_url
from airflow_provider_qwenimage.storage.images import StoredFile, StoredImages, verify_and_store
from airflow_provider_qwenimage.tasks.bookkeeping import paid_for
from airflow_provider_qwenimage.tasks.drawing import Drawing, DrawingOptions, Submitted, is_of_this_task
from airflow_provider_qwenimage.tasks.failures import record_end
from airflow_provider_qwenimage.tasks.metrics import count_end
from airflow_provider_qwenimage.tasks.opening import find_left, open_row_ledger, try_of

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import ObjectStoragePath

    from airflow_provider_qwenimage.batch.requests import BatchRequest
    from airflow_provider_qwenimage.contract import GenerateRequest, TaskSnapshot
    from airflow_provider_qwenimage.hooks import QwenImageAsyncHook
    from airflow_provider_qwenimage.rules.submission_facts import Submission
    from airflow_provider_qwenimage.rules.submissions import Submit
    from airflow_provider_qwenimage.storage.images import Mark
    from airflow_provider_qwenimage.tasks.bookkeeping import TaskBooks

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """How the images of a batch are drawn and stored.

    Attributes:
        context: The context of the Airflow task.
        instance: The task, for sidecars and records; see `made_by.description_of`.
        folder: The folder for the images.
        scratch: A local folder for temporary files.
        poll_interval: Seconds between the first polls.
        timeout: The longest wait for one image, in seconds.
        max_consecutive_failures: How many failed reads in a row end the wait for one image.
        max_image_bytes: A longer download is refused.
        overwrite: Whether to draw a new image if one is stored for the request already.
        answer_seconds: How long the answer to a submission may take.
        before_submission: Called before each submission, in a thread.
        books: The books of the connection, or None.
        mark: Writes something beside the pixels of each image; None to store the bytes as they came.
    """

    context: Any
    instance: dict[str, Any]
    folder: ObjectStoragePath
    scratch: Path
    poll_interval: float = wait_defaults.DEFAULT_POLL_INTERVAL
    timeout: float = wait_defaults.DEFAULT_TIMEOUT
    max_consecutive_failures: int = wait_defaults.DEFAULT_MAX_CONSECUTIVE_FAILURES
    max_image_bytes: int = DEFAULT_MAX_IMAGE_BYTES
    overwrite: bool = False
    answer_seconds: float = 60.0
    before_submission: Callable[[], None] = lambda: None
    books: TaskBooks | None = None
    mark: Mark | None = None


class ImagePipeline:
    """Takes images from request to storage, with one client for all images and threads for blocking work.

    Args:
        hook: The client.
        options: How the images are drawn and stored.
        at_once: How many images are downloaded, verified and stored at once, each of them in memory.
    """

    def __init__(self, hook: QwenImageAsyncHook, options: ImageOptions, at_once: int) -> None:
        self._hook = hook
        self._options = options
        self._at_once = at_once
        self._drawing_options = DrawingOptions(
            instance=options.instance,
            made_in=try_of(options.context),
            folder=options.folder,
            overwrite=options.overwrite,
            answer_seconds=options.answer_seconds,
        )
        self._client: AsyncImageClient | None = None
        # Held from the download until the image is stored, so that few images wait in memory for a thread.
        self._slots = asyncio.Semaphore(at_once)
        # Apart from the event loop's own threads: slow storage must not delay writing down an id.
        self._storing = ThreadPoolExecutor(at_once, thread_name_prefix="qwenimage-storing")

    async def close(self, *, wait: bool) -> None:
        """End the downloads and the threads that store images.

        Args:
            wait: Whether to wait until the threads have finished.
        """
        self._storing.shutdown(wait=wait, cancel_futures=True)
        if self._client is not None:
            await self._client.close()

    def drawing(
        self, item: BatchRequest, check: Callable[[Submit], None], *, known: Collection[str] | None = None
    ) -> Drawing:
        """Return the drawing of a request.

        Args:
            item: The request.
            check: Called before each submission; raises if there must be none.
            known: The names of the records that the folder has, if they were just listed.
        """
        options = self._options
        made_in = self._drawing_options.made_in
        ledger = open_row_ledger(
            made_in,
            options.folder,
            options.instance,
            item.identity,
            known=known,
            books=options.books,
            row=item.number + 1,
        )
        return Drawing(
            item.identity,
            ledger,
            self._drawing_options,
            check=check,
            pause_before_resend=self._hook.pause_before_resend,
        )

    def left_by_this_task(self, key: str) -> Submission | None:
        """Return the paid submission of this task that is recorded for an image, if there is one. Blocks."""
        options = self._options
        return find_left(options.context, options.folder, options.instance, key)

    def was_stored_by_this_task(self, stored: StoredImages) -> bool:
        """Whether this task has paid for a stored image, in this try or in an earlier one."""
        return is_of_this_task(stored.made_by, self._options.instance)

    async def post(self, request: GenerateRequest) -> str | QwenImageError:
        """Submit a request in one POST, and return the API's id of the image task, or the error."""
        try:
            return await self._hook.submit_once(request)
        except QwenImageError as error:
            return error

    async def wait_and_store(
        self, drawing: Drawing, submitted: Submitted, note_success: Callable[[TaskSnapshot], None]
    ) -> StoredImages:
        """Wait for a submitted image and store it.

        Args:
            drawing: The drawing.
            submitted: What it has submitted or found.
            note_success: Called when the image is drawn, before it is stored.

        Raises:
            QwenImageError: If the image could not be drawn, downloaded or stored; the ledger has a record of it.
        """
        options = self._options
        now = time.time()
        policy = polling.PollPolicy.for_timeout(
            options.timeout, options.poll_interval, options.max_consecutive_failures, now=now
        )
        try:
            # What an earlier try has submitted may have ended already.
            delay = policy.first_delay(now) if submitted.is_new else 0.0
            snapshot = _successful(await self._hook.follow(submitted.image_task_id, policy, first_delay=delay))
            note_success(snapshot)
            drawing.ledger.succeed(done(snapshot.task_id, snapshot.consumed_credits))
            # The credits are spent even if the image cannot be stored.
            if submitted.is_own and (submitted.is_new or not await asyncio.to_thread(drawing.ledger.was_lost_earlier)):
                count_end(len(snapshot.image_urls), snapshot.consumed_credits)
            return await self._save(drawing, submitted, snapshot)
        except Exception as error:
            if isinstance(error, QwenImageTaskFailedError) and error.snapshot is not None and submitted.is_own:
                count_end(0, error.snapshot.consumed_credits)
            await asyncio.to_thread(record_end, error, drawing.ledger)
            raise

    async def _save(self, drawing: Drawing, submitted: Submitted, snapshot: TaskSnapshot) -> StoredImages:
        if not submitted.is_own:
            stored = await asyncio.to_thread(drawing.stored, submitted)
            if stored is not None:
                return stored
        numbers = range(1, len(snapshot.image_urls) + 1)
        paths = [await self._save_image(drawing, submitted, snapshot, number) for number in numbers]
        return StoredImages(
            image_task_id=snapshot.task_id,
            paths=tuple(paths),
            # As in the sidecar: the query of a URL may grant access, and the manifest is stored next to the images.
            image_urls=tuple(displayed_url(url) for url in snapshot.image_urls),
            consumed_credits=snapshot.consumed_credits,
            made_by=submitted.made_by,
            stored_at=pendulum.now("UTC").isoformat(),
        )

    async def _image_client(self) -> AsyncImageClient:
        settings = await self._hook.get_settings()
        if self._client is None:
            self._client = AsyncImageClient(self._at_once, settings.verify)
        return self._client

    async def _save_image(self, drawing: Drawing, submitted: Submitted, snapshot: TaskSnapshot, number: int) -> str:
        """Return the path of an image, once it is stored."""
        loop = asyncio.get_running_loop()

        async def use(content: bytes) -> StoredFile | QwenImageImageError:
            # Its spans are below that of the task.
            in_context = copy_context().run
            return await loop.run_in_executor(
                self._storing, in_context, self._verify_and_store, content, drawing, submitted, snapshot, number
            )

        url = snapshot.image_urls[number - 1]
        async with self._slots:
            stored = await fetch_async(
                await self._image_client(), url, self._options.max_image_bytes, use, snapshot.task_id
            )
        if isinstance(stored, QwenImageImageError):
            raise stored
        return stored.path

    def _verify_and_store(
        self, content: bytes, drawing: Drawing, submitted: Submitted, snapshot: TaskSnapshot, number: int
    ) -> StoredFile | QwenImageImageError:
        """Return the file of an image, or the error of storing it, which another download would not correct."""
        stored = verify_and_store(
            content,
            snapshot,
            submitted.identity,
            self._options.folder,
            number=number,
            made_by=submitted.made_by,
            replace=self._options.overwrite,
            mark=self._options.mark,
        )
        if isinstance(stored, QwenImageImageError):
            return stored
        if number == len(snapshot.image_urls):
            # The image and its sidecar are stored: a record that stays costs nothing.
            with suppress(OSError):
                drawing.ledger.finish(paid_for(snapshot, stored))
        return stored


def _successful(end: polling.Done | polling.GiveUp) -> TaskSnapshot:
    if isinstance(end, polling.GiveUp):
        raise end.error
    return end.snapshot
