"""Draws one image of a batch: resumes or submits it, waits, downloads, verifies and stores it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import pendulum

from airflow_provider_qwenimage.client.downloads import AsyncImageClient, fetch_async
from airflow_provider_qwenimage.contract import DEFAULT_MAX_IMAGE_BYTES
from airflow_provider_qwenimage.exceptions import QwenImageError, QwenImageImageError, QwenImageTaskFailedError
from airflow_provider_qwenimage.rules import polling
from airflow_provider_qwenimage.rules.origins import displayed_url
from airflow_provider_qwenimage.rules.submissions import Resume, Stop, Submit
from airflow_provider_qwenimage.storage.images import Obstacle, StoredImages, find_images, verify_and_store
from airflow_provider_qwenimage.tasks.failures import logging_errors, record_end
from airflow_provider_qwenimage.tasks.ledger import Ledger, open_batch_ledger
from airflow_provider_qwenimage.tasks.metrics import count_end, count_submission

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import ObjectStoragePath

    from airflow_provider_qwenimage.batch.requests import BatchRequest
    from airflow_provider_qwenimage.contract import TaskSnapshot
    from airflow_provider_qwenimage.hooks import QwenImageAsyncHook

log = logging.getLogger(__name__)

NextStep: TypeAlias = StoredImages | Resume | Submit | Stop


@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """How the images of a batch are drawn and stored.

    Attributes:
        ti: Airflow's task instance.
        made_by: Its description for sidecars; see `made_by.description_of`.
        folder: The folder for the images.
        scratch: A local folder for temporary files.
        poll_interval: Seconds between the first polls.
        timeout: The longest wait for one image, in seconds.
        max_consecutive_failures: How many failed reads in a row end the wait for one image.
        max_image_bytes: A longer download is refused.
        overwrite: Whether to draw a new image if one is stored for the request already.
    """

    ti: Any
    made_by: dict[str, Any]
    folder: ObjectStoragePath
    scratch: Path
    poll_interval: float = polling.DEFAULT_POLL_INTERVAL
    timeout: float = polling.DEFAULT_TIMEOUT
    max_consecutive_failures: int = polling.DEFAULT_MAX_CONSECUTIVE_FAILURES
    max_image_bytes: int = DEFAULT_MAX_IMAGE_BYTES
    overwrite: bool = False


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

    def next_step(self, item: BatchRequest) -> tuple[NextStep, Ledger]:
        """Return what is stored or submitted already for a request, or that it is to be submitted. Blocks."""
        options = self._options
        ledger = open_batch_ledger(options.ti, options.folder, item.request, item.variant)
        step = ledger.next_step(item.request)
        if isinstance(step, Stop):
            return step, ledger
        stored = find_images(item.identity, options.folder)
        if isinstance(step, Resume):
            if not isinstance(stored, StoredImages) or stored.image_task_id != step.image_task_id:
                return step, ledger
            if ledger.finish():
                count_end(len(stored.paths), stored.consumed_credits)
            return stored, ledger
        if isinstance(stored, Obstacle) and not options.overwrite:
            return Stop(QwenImageImageError(stored.message, permanent=True)), ledger
        if isinstance(stored, StoredImages) and (self.was_stored_by_this_task(stored) or not options.overwrite):
            return stored, ledger
        return step, ledger

    def was_stored_by_this_task(self, stored: StoredImages) -> bool:
        """Whether this task has stored an image, in this try or in an earlier one."""
        return stored.made_by == self._options.made_by

    async def submit(
        self, item: BatchRequest, ledger: Ledger, step: Submit, note_unrecorded: Callable[[int, str], None]
    ) -> str:
        """Submit a request; write down the intent before, and the id after it.

        Args:
            item: The request.
            ledger: Its ledger.
            step: What was spent before.
            note_unrecorded: Called with the row, counted from 1, and the id, if the id cannot be written down.

        Returns:
            The API's id of the image task.

        Raises:
            QwenImageError: If the submission failed or its outcome is unknown; see `QwenImageHook.generate`.
        """
        if step.notice:
            log.warning("%s", step.notice)
        await asyncio.to_thread(ledger.intend, item.request, step.spent)
        try:
            image_task_id = await self._hook.submit(item.request)
        except QwenImageError as error:
            with logging_errors("what became of the submission"):
                await asyncio.to_thread(ledger.close, error)
            raise
        count_submission()
        try:
            await asyncio.to_thread(ledger.accept, image_task_id)
        except Exception as error:  # noqa: BLE001  any storage's; the image is paid and can still be stored
            note_unrecorded(item.number + 1, image_task_id)
            log.warning(
                "Image task %s was submitted, but its id could not be written down (%s: %s). If this task ends before "
                "the image is stored, use a QwenImageStatusSensor with that id to get the image.",
                image_task_id,
                type(error).__name__,
                error,
            )
        return image_task_id

    async def wait_and_store(
        self,
        item: BatchRequest,
        ledger: Ledger,
        image_task_id: str,
        note_success: Callable[[TaskSnapshot], None],
        *,
        check_at_once: bool,
    ) -> StoredImages:
        """Wait for a submitted image and store it.

        Args:
            item: The request.
            ledger: Its ledger.
            image_task_id: The API's id of the image task.
            note_success: Called when the image is drawn, before it is stored.
            check_at_once: Whether to poll without delay, because the image task may have ended already.

        Raises:
            QwenImageError: If the image could not be drawn, downloaded or stored; the ledger has a record of it.
        """
        options = self._options
        now = time.time()
        policy = polling.PollPolicy.for_timeout(
            options.timeout, options.poll_interval, options.max_consecutive_failures, now=now
        )
        try:
            delay = 0.0 if check_at_once else policy.first_delay(now)
            end = await self._hook.follow(image_task_id, policy, first_delay=delay)
            snapshot = _successful(end)
            note_success(snapshot)
            return await self._save(item, ledger, snapshot)
        except Exception as error:
            if isinstance(error, QwenImageTaskFailedError) and error.snapshot is not None:
                count_end(0, error.snapshot.consumed_credits)
            await asyncio.to_thread(record_end, error, ledger)
            raise

    async def _save(self, item: BatchRequest, ledger: Ledger, snapshot: TaskSnapshot) -> StoredImages:
        numbers = range(1, len(snapshot.image_urls) + 1)
        try:
            paths = [await self._save_image(item, ledger, snapshot, number) for number in numbers]
        except Exception:
            # The credits are spent even if the image cannot be stored.
            if await asyncio.to_thread(ledger.count):
                count_end(len(snapshot.image_urls), snapshot.consumed_credits)
            raise
        return StoredImages(
            image_task_id=snapshot.task_id,
            paths=tuple(paths),
            # As in the sidecar: the query of a URL may grant access, and the manifest is stored next to the images.
            image_urls=tuple(displayed_url(url) for url in snapshot.image_urls),
            consumed_credits=snapshot.consumed_credits,
            made_by=self._options.made_by,
            stored_at=pendulum.now("UTC").isoformat(),
        )

    async def _image_client(self) -> AsyncImageClient:
        settings = await self._hook.get_settings()
        if self._client is None:
            self._client = AsyncImageClient(self._at_once, settings.verify)
        return self._client

    async def _save_image(self, item: BatchRequest, ledger: Ledger, snapshot: TaskSnapshot, number: int) -> str:
        loop = asyncio.get_running_loop()

        async def verify_and_store(content: bytes) -> str | QwenImageImageError:
            return await loop.run_in_executor(
                self._storing, self._verify_and_store, content, item, ledger, snapshot, number
            )

        url = snapshot.image_urls[number - 1]
        async with self._slots:
            stored = await fetch_async(await self._image_client(), url, self._options.max_image_bytes, verify_and_store)
        if isinstance(stored, QwenImageImageError):
            raise stored
        return stored

    def _verify_and_store(
        self, content: bytes, item: BatchRequest, ledger: Ledger, snapshot: TaskSnapshot, number: int
    ) -> str | QwenImageImageError:
        """Return the path of an image, or the error of storing it, which another download would not correct."""
        options = self._options
        path = verify_and_store(
            content,
            snapshot,
            item.identity,
            options.folder,
            number=number,
            made_by=options.made_by,
            replace=options.overwrite,
        )
        if isinstance(path, QwenImageImageError):
            return path
        if number == len(snapshot.image_urls):
            # The image and its sidecar are stored: a record that stays costs nothing.
            with suppress(OSError):
                if ledger.finish():
                    count_end(number, snapshot.consumed_credits)
        return path


def _successful(end: polling.Done | polling.GiveUp) -> TaskSnapshot:
    if isinstance(end, polling.GiveUp):
        raise end.error
    return end.snapshot
