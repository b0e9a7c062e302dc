"""Remembers, over the tries of an Airflow task, what was submitted, so that no try pays what another one has paid.

An intent is written before a submission, the API's task id after it, and the outcome at the end. What a
new try does about that is decided in `submissions`.
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
from airflow_provider_qwenimage.rules.made_by import description_of, place_of, writer_of
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
        store: Where they are remembered.
        try_number: The number of this try.
        max_tries: The task instance's; only Clear changes it.
        place: The request's place among its like; see `GenerateRequest.fingerprint`.
    """

    def __init__(self, store: Store, *, try_number: int, max_tries: int, place: int) -> None:
        self._store = store
        self._try_number = try_number
        self._max_tries = max_tries
        self._place = place
        self._before: Submission | None = None
        self._record = self._read()

    @property
    def remembers(self) -> bool:
        """Whether the next try will know what this one has submitted."""
        return not isinstance(self._store, NoStore)

    @property
    def is_cleared(self) -> bool:
        """Whether the task was cleared since the last submission was written down."""
        return self._record is not None and self._max_tries != self._record.max_tries

    @property
    def submitted(self) -> tuple[str, GenerateRequest] | None:
        """The id and the request of the image task that was last submitted, if that is on record."""
        if self._record is None or self._record.image_task_id is None:
            return None
        return self._record.image_task_id, GenerateRequest(**self._record.request)

    def next_step(self, request: GenerateRequest) -> Step:
        """Return what this try does; see the function of that name.

        Args:
            request: What it would submit.
        """
        step = next_step(self._record, fingerprint=request.fingerprint(self._place), max_tries=self._max_tries)
        if isinstance(step, Stop) and isinstance(step.error, QwenImageSubmissionUnknownError):
            self.report()
        return step

    def intend(self, request: GenerateRequest, spent: float = 0.0) -> None:
        """Write down that a request is about to be submitted. Without this on record, nothing may be sent.

        Args:
            request: The request.
            spent: Credits that this task has spent before.
        """
        self._before = self._record
        self._write(
            Submission(
                request=request.description(),
                fingerprint=request.fingerprint(self._place),
                intended_at=pendulum.now("UTC").isoformat(timespec="seconds"),
                try_number=self._try_number,
                max_tries=self._max_tries,
                spent=spent,
            )
        )

    def close(self, error: QwenImageError) -> None:
        """Write down what a submission that brought no id leaves behind.

        Args:
            error: What it ended with: it may have been accepted, or it surely was not.
        """
        if isinstance(error, QwenImageSubmissionUnknownError):
            self.report()
        else:
            self.withdraw()

    def withdraw(self) -> None:
        """Take an intent back, because the API surely did not accept the submission."""
        self._record = self._before
        if self._before is None:
            self._store.erase()
        elif self._before.finished:
            self._store.settle(self._before.to_json())
        else:
            self._store.write(self._before.to_json())

    def report(self) -> None:
        """Write down that the user is told of a submission that may have been accepted."""
        self._change(reported=True)

    def accept(self, image_task_id: str) -> None:
        """Write down the API's id of the image task, if need be in several attempts.

        Args:
            image_task_id: The id.
        """
        for attempts_left in reversed(range(_WRITE_TRIES)):
            try:
                self._change(image_task_id=image_task_id)
            except Exception as error:  # any storage's; what is paid is worth another attempt
                if not attempts_left:
                    raise
                log.warning("The id of the image task could not be written down; trying again: %s", error)
                time.sleep(_WRITE_PAUSE_SECONDS)
            else:
                return

    def fail(self, error: QwenImageTaskFailedError) -> None:
        """Write down that the image task FAILED, and what it cost.

        Args:
            error: The failure.
        """
        self._change(
            failure=str(error),
            refused=isinstance(error, QwenImageContentPolicyError),
            spent=self.spent + error.cost,
        )

    def miss(self) -> None:
        """Write down that a cleared task went back to its image task in vain: the next Clear may pay for another."""
        self._change(missed=True)

    def finish(self) -> bool:
        """Write down that the Airflow task has done all that it was to do.

        Returns:
            Whether the end of the image task is still to be counted in the metrics.
        """
        if self._record is None:
            return True
        to_be_counted = not self._record.counted
        if not self._record.finished:
            self._record = replace(self._record, finished=True, counted=True, max_tries=self._max_tries)
            self._store.settle(self._record.to_json())
        return to_be_counted

    def count(self) -> bool:
        """Write down that the end of the image task is counted, though the Airflow task is not done.

        Returns:
            Whether it is still to be counted.
        """
        if self._record is None:
            return True
        to_be_counted = not self._record.counted
        if to_be_counted:
            self._write(replace(self._record, counted=True))
        return to_be_counted

    @property
    def spent(self) -> float:
        """Credits that this task has spent, as far as it is on record, since it was first run or last cleared."""
        return self._record.spent if self._record else 0.0

    def _read(self) -> Submission | None:
        written = self._store.read()
        if written is None:
            return None
        # A record that cannot be read still says that something was submitted: stop, as for an intent without an id.
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
    """Return the ledger of the task instance that runs: in Airflow's store, else in the output folder, else nowhere.

    Args:
        context: The task's context.
        folder: The folder for images, if there is one.
        durable: Whether anything is to be remembered.
    """
    ti = context["ti"]
    accessor = context.get("task_state_store")
    store: Store = NoStore()
    if durable and accessor is not None:
        store = TaskStateStore(accessor)
    elif durable and folder is not None:
        store = _file_store(folder, ti)
    return Ledger(store, try_number=ti.try_number, max_tries=ti.max_tries, place=place_of(ti))


def open_batch_ledger(ti: Any, folder: ObjectStoragePath, request: GenerateRequest, place: int) -> Ledger:
    """Return the ledger of one image of a batch: in the output folder, whatever the Airflow.

    Airflow's own store would take a request to its API server for each line of thousands.

    Args:
        ti: The task instance that runs.
        folder: The folder for images.
        request: What is asked for.
        place: The request's place among its like; see `GenerateRequest.fingerprint`.
    """
    store = _file_store(folder, ti, request.fingerprint(place))
    return Ledger(store, try_number=ti.try_number, max_tries=ti.max_tries, place=place)


def _file_store(folder: ObjectStoragePath, ti: Any, fingerprint: str | None = None) -> FileStore:
    writer = writer_of(description_of(ti))
    name = writer if fingerprint is None else hashlib.sha256(f"{writer} {fingerprint}".encode()).hexdigest()[:16]
    return FileStore(folder / f".submission-{name}.json", writer)
