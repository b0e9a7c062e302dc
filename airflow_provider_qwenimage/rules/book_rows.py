"""The rows of the books: one for each submission, what a row may become, and what it counts for. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Any

from airflow_provider_qwenimage.contract import TaskSnapshot, TaskStatus
from airflow_provider_qwenimage.exceptions import QwenImageError, QwenImageSubmissionUnknownError
from airflow_provider_qwenimage.rules.retries import is_plain_server_error
from airflow_provider_qwenimage.rules.submission_facts import End, EndKind
from airflow_provider_qwenimage.text.storable import storable_text

# The sizes of the columns. Airflow's own ids have at most 250 characters.
MOST_NAME_CHARACTERS = 250
MOST_TASK_ID_CHARACTERS = 500
MOST_PATH_CHARACTERS = 4000
MOST_HASH_CHARACTERS = 64
# Nobody pays more for an image, and each database can store it.
MOST_CREDITS = 10**9
CREDIT_DIGITS = 6
_MOST_NUMBER = 2**31 - 1


class BookStatus(StrEnum):
    """What is known about a submission.

    - ``reserved``: it is about to be sent, or was sent and the process was killed before it knew more.
    - ``submitted``: the API accepted it.
    - ``done``: its image task is SUCCESS.
    - ``failed``: its image task is FAILED; it may have cost credits.
    - ``unknown``: its answer was lost, so it may be paid, and nobody can ask for it.
    - ``withdrawn``: the API surely did not accept it.
    """

    RESERVED = "reserved"
    SUBMITTED = "submitted"
    DONE = "done"
    FAILED = "failed"
    UNKNOWN = "unknown"
    WITHDRAWN = "withdrawn"


_ENDED = (BookStatus.DONE, BookStatus.FAILED)
# A row only moves on: what is known later is known better.
_NEXT: Mapping[BookStatus, tuple[BookStatus, ...]] = {
    BookStatus.RESERVED: tuple(BookStatus),
    BookStatus.UNKNOWN: (BookStatus.UNKNOWN, BookStatus.SUBMITTED, BookStatus.WITHDRAWN, *_ENDED),
    BookStatus.SUBMITTED: (BookStatus.SUBMITTED, *_ENDED),
    BookStatus.DONE: (BookStatus.DONE,),
    BookStatus.FAILED: (BookStatus.FAILED,),
    BookStatus.WITHDRAWN: (BookStatus.WITHDRAWN,),
}


@dataclass(frozen=True, kw_only=True)
class Reservation:
    """A submission that is about to be sent.

    Attributes:
        submission_id: 32 hexadecimal digits that tell it from every other one.
        account: The id of the Airflow connection that pays.
        credits: What it is assumed to cost.
        fingerprint: That of the request; see `ImageIdentity`.
        dag_id: The DAG; empty outside Airflow's tasks, like the next two.
        run_id: Its run.
        task_id: The task.
        map_index: Its map index; -1 if it is not mapped.
        try_number: Its try.
        batch_row: The row of a batch, counted from 1; None outside batches.
    """

    submission_id: str
    account: str
    credits: float
    fingerprint: str
    dag_id: str = ""
    run_id: str = ""
    task_id: str = ""
    map_index: int = -1
    try_number: int = 0
    batch_row: int | None = None

    def columns(self) -> dict[str, Any]:
        """Return the columns of its row, without its status and times; every database can store them."""
        texts = {name: _text(getattr(self, name)) for name in ("account", "dag_id", "run_id", "task_id")}
        return {
            **texts,
            "submission_id": self.submission_id,
            "fingerprint": self.fingerprint,
            "credits_reserved": _amount(self.credits),
            "map_index": _whole(self.map_index),
            "try_number": _whole(self.try_number),
            "batch_row": None if self.batch_row is None else _whole(self.batch_row),
        }


@dataclass(frozen=True, kw_only=True)
class Change:
    """What has become known about a submission.

    Attributes:
        submission_id: Its id; None if only the image task is known.
        image_task_id: The API's id of the image task, if it is known.
        status: What is known now.
        credits_consumed: What the API charged; None if it is not known, or the API did not report it.
        path: Where the image, or the first of several, is stored.
        sha256: The hash of that file.
    """

    status: BookStatus
    submission_id: str | None = None
    image_task_id: str | None = None
    credits_consumed: float | None = None
    path: str | None = None
    sha256: str | None = None

    def after(self, earlier: Change) -> Change:
        """Return an earlier change of the same submission and this one as one change."""
        if self.status not in _NEXT[earlier.status]:
            return earlier
        filled = {
            name: getattr(earlier, name)
            for name in ("submission_id", "image_task_id", "credits_consumed", "path", "sha256")
            if getattr(self, name) is None
        }
        return replace(self, **filled)


@dataclass(frozen=True, kw_only=True)
class BookRow:
    """The part of a row that a change may alter, and what decides where it counts.

    Attributes:
        submission_id: The id of the submission.
        account: The id of the Airflow connection that pays.
        status: What is known about it; None if this version does not know the status that is stored.
        credits_reserved: What it was assumed to cost.
        reserved_at: When it was reserved; its credits count in the periods of this time.
        credits_consumed: What the API charged, or None.
        image_task_id: The API's id of the image task, or None.
        path: Where its image is stored, or None.
        sha256: The hash of that file, or None.
    """

    submission_id: str
    account: str
    status: BookStatus | None
    credits_reserved: float
    reserved_at: datetime
    credits_consumed: float | None = None
    image_task_id: str | None = None
    path: str | None = None
    sha256: str | None = None

    @property
    def counted(self) -> float:
        """The credits that count against the budgets."""
        if self.status is BookStatus.WITHDRAWN:
            return 0.0
        if self.status in _ENDED and self.credits_consumed is not None:
            return self.credits_consumed
        return self.credits_reserved

    def changed(self, change: Change) -> BookRow:
        """Return the row after a change; the row itself if the change says nothing new, or comes too late."""
        if self.status is None or change.status not in _NEXT[self.status]:
            return self
        known: dict[str, Any] = {
            "image_task_id": None if change.image_task_id is None else task_id_column(change.image_task_id),
            "credits_consumed": None if change.credits_consumed is None else _amount(change.credits_consumed),
            "path": None if change.path is None else storable_text(change.path)[:MOST_PATH_CHARACTERS],
            # A sidecar, which others can write, may be its source.
            "sha256": None if change.sha256 is None else storable_text(change.sha256)[:MOST_HASH_CHARACTERS],
        }
        news = {name: value for name, value in known.items() if value is not None}
        return replace(self, status=change.status, **news)


def done(
    image_task_id: str, consumed_credits: float | None, path: str | None = None, sha256: str | None = None
) -> Change:
    """Return what the books say about an image task that is SUCCESS.

    Args:
        image_task_id: The API's id of the image task.
        consumed_credits: What it cost, or None if the API did not report it.
        path: Where its image is stored, if it is.
        sha256: The hash of that file.
    """
    return Change(
        status=BookStatus.DONE,
        image_task_id=image_task_id,
        credits_consumed=consumed_credits,
        path=path,
        sha256=sha256,
    )


def change_of(snapshot: TaskSnapshot) -> Change | None:
    """Return what the books say about an image task; None if it has not ended."""
    if snapshot.status == TaskStatus.SUCCESS:
        return done(snapshot.task_id, snapshot.consumed_credits)
    if snapshot.status == TaskStatus.FAILED:
        return Change(
            status=BookStatus.FAILED,
            image_task_id=snapshot.task_id,
            credits_consumed=snapshot.consumed_credits or 0.0,
        )
    return None


def recorded_change(image_task_id: str | None, end: End | None) -> Change | None:
    """Return what the books say about a submission, as it is recorded in another store; None if that says nothing.

    A process may have been killed after it wrote the record, and before it wrote the books.

    Args:
        image_task_id: The API's id of the image task, if it is known.
        end: The end of the submission, if it is known.
    """
    known = Change(status=BookStatus.SUBMITTED, image_task_id=image_task_id)
    if end is not None and end.kind in {EndKind.FAILED, EndKind.REFUSED}:
        return replace(known, status=BookStatus.FAILED, credits_consumed=end.consumed_credits)
    if image_task_id is not None:
        # It is accepted, however it ended.
        return known
    if end is not None and end.kind is EndKind.NOT_ACCEPTED:
        return replace(known, status=BookStatus.WITHDRAWN)
    return None if end is None else replace(known, status=BookStatus.UNKNOWN)


def status_after(error: QwenImageError) -> BookStatus:
    """Return what is known about a submission that ended with an error: whether it may be paid."""
    may_be_paid = isinstance(error, QwenImageSubmissionUnknownError) or is_plain_server_error(error)
    return BookStatus.UNKNOWN if may_be_paid else BookStatus.WITHDRAWN


def task_id_column(image_task_id: str) -> str:
    """Return the API's id of an image task as the books store it."""
    return storable_text(image_task_id)[:MOST_TASK_ID_CHARACTERS]


def account_column(account: str) -> str:
    """Return the id of a connection as the books store it."""
    return _text(account)


def dag_id_column(dag_id: str) -> str:
    """Return the id of a DAG as the books store it."""
    return _text(dag_id)


def status_from(stored: object) -> BookStatus | None:
    """Return a status as it is stored; None for one that another program, or a later version, has written."""
    try:
        return BookStatus(str(stored))
    except ValueError:
        return None


def _text(value: object) -> str:
    return storable_text(str(value))[:MOST_NAME_CHARACTERS]


def _amount(value: float) -> float:
    # SQLite stores all digits, the others these.
    return round(min(max(0.0, float(value)), float(MOST_CREDITS)), CREDIT_DIGITS)


def _whole(value: int) -> int:
    return min(max(-1, int(value)), _MOST_NUMBER)
