"""Records what an Airflow task submits, so that no try pays for what another try paid.

The intent is recorded before a submission, the API's task id after it, and the outcome at the end. What a
new try does about the record is decided in `rules.submissions`.
"""

from __future__ import annotations

import hashlib
import logging
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pendulum

from airflow_provider_qwenimage.contract import GenerateRequest
from airflow_provider_qwenimage.exceptions import (
    QwenImageContentPolicyError,
    QwenImageError,
    QwenImageSubmissionUnknownError,
    QwenImageTaskFailedError,
)
from airflow_provider_qwenimage.rules.made_by import description_of, variant_of, writer_of
from airflow_provider_qwenimage.rules.submissions import UNREADABLE, Step, Stop, Submission, next_step
from airflow_provider_qwenimage.tasks.stores import FileStore, NoStore, Store, TaskStateStore

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context, ObjectStoragePath

log = logging.getLogger(__name__)

_WRITE_TRIES = 3
_WRITE_PAUSE_SECONDS = 1.0


class Ledger:
    """The submissions of one Airflow task instance.

    Args:
        store: Where they are recorded.
        try_number: The number of this try.
        max_tries: The task instance's; only Clear changes it.
        variant: Tells equal requests with a random seed apart; see `GenerateRequest.fingerprint`.
    """

    def __init__(self, store: Store, *, try_number: int, max_tries: int, variant: int) -> None:
        self._store = store
        self._try_number = try_number
        self._max_tries = max_tries
        self._variant = variant
        self._before: Submission | None = None
        self._record = self._read()

    @property
    def remembers(self) -> bool:
        """Whether the next try will know what this one submitted."""
        return not isinstance(self._store, NoStore)

    @property
    def is_cleared(self) -> bool:
        """Whether the task was cleared after its last submission was recorded."""
        return self._record is not None and self._max_tries != self._record.max_tries

    @property
    def submitted(self) -> tuple[str, GenerateRequest] | None:
        """The id and the request of the image task that was last submitted, if they are recorded."""
        if self._record is None or self._record.image_task_id is None:
            return None
        return self._record.image_task_id, GenerateRequest(**self._record.request)

    def next_step(self, request: GenerateRequest) -> Step:
        """Return what this try does instead of, or by, submitting a request; see `submissions.next_step`."""
        step = next_step(self._record, fingerprint=request.fingerprint(self._variant), max_tries=self._max_tries)
        if isinstance(step, Stop) and isinstance(step.error, QwenImageSubmissionUnknownError):
            self.report()
        return step

    def intend(self, request: GenerateRequest, spent: float = 0.0) -> None:
        """Record that a request is about to be submitted. Before that, nothing may be sent.

        Args:
            request: The request.
            spent: Credits that this task spent before.
        """
        self._before = self._record
        self._write(
            Submission(
                request=request.description(),
                fingerprint=request.fingerprint(self._variant),
                intended_at=pendulum.now("UTC").isoformat(timespec="seconds"),
                try_number=self._try_number,
                max_tries=self._max_tries,
                spent=spent,
            )
        )

    def close(self, error: QwenImageError) -> None:
        """Record the end of a submission that returned no id.

        Args:
            error: What it ended with; by its class, the API may have accepted it, or surely did not.
        """
        if isinstance(error, QwenImageSubmissionUnknownError):
            self.report()
        else:
            self.withdraw()

    def withdraw(self) -> None:
        """Take the intent back, because the API surely did not accept the submission."""
        self._record = self._before
        if self._before is None:
            self._store.erase()
        elif self._before.finished:
            self._store.settle(self._before.to_json())
        else:
            self._store.write(self._before.to_json())

    def report(self) -> None:
        """Record that an error told the user of a submission that may have been accepted."""
        self._change(reported=True)

    def accept(self, image_task_id: str) -> None:
        """Record the API's id of the image task, in up to three attempts."""
        for attempts_left in reversed(range(_WRITE_TRIES)):
            try:
                self._change(image_task_id=image_task_id)
            except Exception as error:  # any storage's; what is paid is worth another attempt
                if not attempts_left:
                    raise
                log.warning("The id of the image task could not be recorded; trying again: %s", error)
                time.sleep(_WRITE_PAUSE_SECONDS)
            else:
                return

    def fail(self, error: QwenImageTaskFailedError) -> None:
        """Record that the image task FAILED, and what it cost."""
        self._change(
            failure=str(error),
            refused=isinstance(error, QwenImageContentPolicyError),
            spent=self.spent + error.cost,
        )

    def record_failed_resume(self) -> None:
        """Record that a cleared task could not resume its image task: the next Clear may pay for another."""
        self._change(missed=True)

    def finish(self) -> bool:
        """Record that the Airflow task is done with its image task.

        Returns:
            Whether the metrics have yet to count the end of the image task.
        """
        if self._record is None:
            return True
        to_be_counted = not self._record.counted
        if not self._record.finished:
            self._record = replace(self._record, finished=True, counted=True, max_tries=self._max_tries)
            self._store.settle(self._record.to_json())
        return to_be_counted

    def count(self) -> bool:
        """Record that the end of the image task is counted, although the Airflow task is not done.

        Returns:
            Whether the metrics have yet to count it.
        """
        if self._record is None:
            return True
        to_be_counted = not self._record.counted
        if to_be_counted:
            self._write(replace(self._record, counted=True))
        return to_be_counted

    @property
    def spent(self) -> float:
        """Credits that this task spent since it was first run or last cleared, as far as they are recorded."""
        return self._record.spent if self._record else 0.0

    def _read(self) -> Submission | None:
        written = self._store.read()
        if written is None:
            return None
        # An unreadable record still means that something was submitted: stop, as for an intent without an id.
        return Submission.from_json(written) or Submission(
            request={}, fingerprint=UNREADABLE, intended_at="", try_number=0, max_tries=self._max_tries
        )

    def _change(self, **changes: Any) -> None:
        if self._record is not None:
            self._write(replace(self._record, max_tries=self._max_tries, **changes))

    def _write(self, record: Submission) -> None:
        self._store.write(record.to_json())
        self._record = record


def open_ledger(context: Context, folder: ObjectStoragePath | None, *, durable: bool) -> Ledger:
    """Return the ledger of the running task instance: in Airflow's task state, else in the output folder, else nowhere.

    Args:
        context: The task's context.
        folder: The folder for images, or None.
        durable: Whether to record anything.
    """
    ti = context["ti"]
    accessor = context.get("task_state_store")
    store: Store = NoStore()
    if durable and accessor is not None:
        store = TaskStateStore(accessor)
    elif durable and folder is not None:
        store = _file_store(folder, ti)
    return Ledger(store, try_number=ti.try_number, max_tries=ti.max_tries, variant=variant_of(ti))


def open_batch_ledger(ti: Any, folder: ObjectStoragePath, request: GenerateRequest, variant: int) -> Ledger:
    """Return the ledger of one image of a batch: in the output folder, with every version of Airflow.

    Airflow's task state would take a request to its API server for each of thousands of rows.

    Args:
        ti: The running task instance.
        folder: The folder for images.
        request: The request of the row.
        variant: Tells equal requests with a random seed apart; see `GenerateRequest.fingerprint`.
    """
    store = _file_store(folder, ti, request.fingerprint(variant))
    return Ledger(store, try_number=ti.try_number, max_tries=ti.max_tries, variant=variant)


def _file_store(folder: ObjectStoragePath, ti: Any, fingerprint: str | None = None) -> FileStore:
    writer = writer_of(description_of(ti))
    name = writer if fingerprint is None else hashlib.sha256(f"{writer} {fingerprint}".encode()).hexdigest()[:16]
    return FileStore(folder / f".submission-{name}.json", writer)
