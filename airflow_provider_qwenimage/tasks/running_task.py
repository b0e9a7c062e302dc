"""The Airflow task instance that runs: what it submits, pushes, stores and remembers."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowFailException, AirflowTaskTimeout

from airflow_provider_qwenimage.contract import CREDITS_PER_IMAGE, GenerateRequest
from airflow_provider_qwenimage.exceptions import QwenImageError, QwenImageTaskFailedError
from airflow_provider_qwenimage.rules.made_by import description_of, place_of, writer_of
from airflow_provider_qwenimage.storage.files import remove_leftovers
from airflow_provider_qwenimage.storage.images import StoredImages, find_images, save_images
from airflow_provider_qwenimage.storage.paths import check_storing, open_output_path
from airflow_provider_qwenimage.tasks.failures import (
    keeping_what_is_paid,
    remembering_what_is_paid,
    still_raising,
    submitting,
)
from airflow_provider_qwenimage.tasks.ledger import Ledger, open_ledger
from airflow_provider_qwenimage.tasks.metrics import count_end, count_submission
from airflow_provider_qwenimage.text.storable import storable

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context, ObjectStoragePath

    from airflow_provider_qwenimage.contract import TaskSnapshot
    from airflow_provider_qwenimage.hooks import QwenImageHook
    from airflow_provider_qwenimage.rules.submissions import Submit

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunningTask:
    """The task instance that runs, with the ledger of its submissions and the folder of its images.

    Attributes:
        ti: Airflow's task instance.
        folder: Where the images go, if they are stored.
        ledger: What it has submitted.
        durable: Whether that is to be remembered.
    """

    ti: Any
    folder: ObjectStoragePath | None
    ledger: Ledger
    durable: bool

    @classmethod
    def open(cls, context: Context, *, output_path: str | None, durable: bool) -> RunningTask:
        """Open the folder and the ledger; see `open_output_path` and `ledger.open_ledger`."""
        folder = None if output_path is None else open_output_path(output_path)
        return cls(context["ti"], folder, open_ledger(context, folder, durable=durable), durable)

    @property
    def description(self) -> dict[str, Any]:
        """What a sidecar tells of it."""
        return description_of(self.ti)

    def push(self, key: str, value: Any) -> None:
        """Push an XCom, as far as Airflow's database can store it."""
        self.ti.xcom_push(key=key, value=storable(value))

    def submitted(self) -> tuple[str, GenerateRequest | None]:
        """Return the id of the image task that it has submitted before it was deferred, and the request if it is known.

        The ledger has been read already; each XCom takes a request to Airflow's API.
        """
        if self.ledger.submitted is not None:
            return self.ledger.submitted
        request = self._pushed("request")
        return str(self._pushed("task_id")), GenerateRequest(**request) if request else None

    def _pushed(self, key: str) -> Any:
        return self.ti.xcom_pull(task_ids=self.ti.task_id, key=key, map_indexes=self.ti.map_index)

    def find_images(self, request: GenerateRequest) -> StoredImages | None:
        """Return the images of a request that stand in the folder; see `images.find_images`."""
        return None if self.folder is None else find_images(request, self.folder, variant=place_of(self.ti))

    def save_images(
        self, snapshot: TaskSnapshot, request: GenerateRequest, hook: QwenImageHook, *, max_image_bytes: int
    ) -> list[str]:
        """Store the images of a finished task, if there is a folder; see `images.save_images`."""
        if self.folder is None:
            return []
        paths = save_images(
            snapshot,
            request,
            self.folder,
            variant=place_of(self.ti),
            max_image_bytes=max_image_bytes,
            made_by=self.description,
            verify=hook.settings.verify,
        )
        for path in paths:
            log.info("Stored %s.", path)
        if self.ti.try_number > 1:
            # Hidden files, which are in nobody's way.
            with suppress(OSError):
                remove_leftovers(self.folder, writer_of(self.description))
        return paths

    def submit(self, hook: QwenImageHook, request: GenerateRequest, step: Submit, *, max_credits: float | None) -> str:
        """Submit a request, with an intent before it and the id written down after it.

        Args:
            hook: The client.
            request: The request.
            step: Why it is submitted.
            max_credits: The most credits that the task may spend, or None.

        Returns:
            The API's task id.

        Raises:
            ValueError: If `max_credits` does not allow it, or the connection is not usable; nothing was sent.
            OSError: If nothing can be stored in the folder; nothing was sent.
            QwenImageError: What the submission ended with; see `QwenImageHook.generate`.
            AirflowFailException: If the id could not be written down.
        """
        if max_credits is not None and step.spent + CREDITS_PER_IMAGE > max_credits:
            raise ValueError(
                f"max_credits is {max_credits:g}; an image costs {CREDITS_PER_IMAGE} credits (as "
                f"documented), and this task has spent {step.spent:g} before. Nothing was submitted; raise max_credits "
                "to allow it."
            )
        if step.notice:
            log.warning("%s", step.notice)
        if self.durable and not self.ledger.remembers:
            log.warning(
                "Nothing of this submission outlives this worker: Airflow below 3.3 has no store for it, and there is "
                "no output_path. If the worker is killed after it, a retry submits, and pays, again. Set an "
                "output_path, or upgrade to Airflow 3.3."
            )
        # The connection is read first: an unusable one must not leave an intent behind.
        hook.get_conn()
        if self.folder is not None:
            check_storing(self.folder, writer_of(self.description))
        self.ledger.intend(request, step.spent)
        try:
            with submitting():
                image_task_id = hook.submit(request)
        except QwenImageError as error:
            with still_raising("what became of the submission"):
                self.ledger.close(error)
            raise
        log.info("Submitted image task %s (%s, %s).", image_task_id, request.size, request.output_format)
        count_submission()
        self._accept(image_task_id)
        return image_task_id

    def _accept(self, image_task_id: str) -> None:
        try:
            self.ledger.accept(image_task_id)
        except (Exception, AirflowTaskTimeout) as error:
            with still_raising("the XCom task_id"):
                self.push("task_id", image_task_id)
            raise AirflowFailException(
                f"Image task {image_task_id} is submitted and may be paid, but its id could not be written down "
                f"({type(error).__name__}: {error}). Get the image with a QwenImageStatusSensor for that id."
            ) from error

    @contextmanager
    def keeping(self, image_task_id: str) -> Iterator[None]:
        """See to it that an error after a submission loses nothing and costs nothing more.

        Args:
            image_task_id: The API's id of the image task.
        """
        try:
            with self._telling(image_task_id):
                yield
        except QwenImageTaskFailedError as error:
            if error.snapshot is not None:
                self.push("consumed_credits", error.snapshot.consumed_credits)
                count_end(0, error.snapshot.consumed_credits)
            raise

    def _telling(self, image_task_id: str) -> AbstractContextManager[None]:
        if self.ledger.remembers:
            return remembering_what_is_paid(image_task_id, self.ledger)
        return keeping_what_is_paid(image_task_id) if self.durable else nullcontext()
