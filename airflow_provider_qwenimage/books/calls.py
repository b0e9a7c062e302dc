"""Keeps the books of submissions that a hook makes by itself, for a function of the user's own.

Every hook imports this module, so it imports the rest of the books only if a connection names some.
"""

from __future__ import annotations

import logging
import os
import uuid
from typing import TYPE_CHECKING

from airflow_provider_qwenimage.rules.book_rows import BookStatus, Change, Reservation, change_of, status_after

if TYPE_CHECKING:
    from airflow_provider_qwenimage.books.keeping import Books
    from airflow_provider_qwenimage.contract import GenerateRequest, TaskSnapshot
    from airflow_provider_qwenimage.exceptions import QwenImageError
    from airflow_provider_qwenimage.rules.budgets import BooksOptions

log = logging.getLogger(__name__)

_SECONDS = 10.0
# What Airflow tells a running task about itself.
_DAG, _RUN, _TASK, _TRY = (f"AIRFLOW_CTX_{name}" for name in ("DAG_ID", "DAG_RUN_ID", "TASK_ID", "TRY_NUMBER"))


class NotBooked:
    """The submissions of a connection without books."""

    def reserve(self) -> None:
        """Do nothing."""

    def note(self, outcome: str | QwenImageError) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class BookedCalls:
    """The submissions of one request by a hook, each sent once; `close` writes what is left.

    Args:
        options: What the connection says about its books.
        conn_id: Its id.
        request: The request.

    Raises:
        ValueError: If the books' own connection is not usable.
        QwenImageConnectionError: If Airflow cannot look it up for the moment.
    """

    def __init__(self, options: BooksOptions, conn_id: str, request: GenerateRequest) -> None:
        from airflow_provider_qwenimage.books.opening import open_books

        self._books: Books = open_books(options, conn_id)
        self._request = request
        self._submission_id: str | None = None

    def reserve(self) -> None:
        """Reserve the credits of the next submission.

        Raises:
            QwenImageBudgetError: If a budget has no room for it.
            QwenImageConnectionError: If the books cannot be reached, after a wait.
            ValueError: If the books cannot be used.
        """
        submission_id = uuid.uuid4().hex
        self._books.reserve(
            Reservation(
                submission_id=submission_id,
                account=self._books.account,
                credits=self._books.price,
                fingerprint=self._request.fingerprint(),
                dag_id=os.environ.get(_DAG, ""),
                run_id=os.environ.get(_RUN, ""),
                task_id=os.environ.get(_TASK, ""),
                try_number=_number(_TRY, 0),
            )
        )
        self._submission_id = submission_id

    def note(self, outcome: str | QwenImageError) -> None:
        """Have the outcome of the submission written: the API's id of the image task, or the error."""
        if isinstance(outcome, str):
            self._change(BookStatus.SUBMITTED, outcome)
        else:
            self._change(status_after(outcome))

    def close(self) -> None:
        """Write what is left. A submission whose outcome nobody noted may be paid."""
        self._change(BookStatus.UNKNOWN)
        self._books.close(_SECONDS)

    def _change(self, status: BookStatus, image_task_id: str | None = None) -> None:
        submission_id, self._submission_id = self._submission_id, None
        if submission_id is not None:
            self._books.note(Change(status=status, submission_id=submission_id, image_task_id=image_task_id))


def booked_calls(options: BooksOptions, conn_id: str, request: GenerateRequest) -> BookedCalls | NotBooked:
    """Return what keeps the books of the submissions of a request; see `BookedCalls`."""
    return NotBooked() if options.conn_id is None else BookedCalls(options, conn_id, request)


def settle_end(options: BooksOptions, conn_id: str, snapshot: TaskSnapshot) -> None:
    """Write how an image task ended, for the submission that has its id. An error is logged: the image matters more.

    Args:
        options: What the connection says about its books.
        conn_id: Its id.
        snapshot: The last status of the image task.
    """
    change = change_of(snapshot)
    if change is None or options.conn_id is None:
        return
    from airflow_provider_qwenimage.books.opening import open_books

    try:
        books = open_books(options, conn_id)
        books.note(change)
        books.close(_SECONDS)
    except Exception:
        log.warning(
            "The books could not be opened for the end of image task %s; `airflow qwenimage books settle` writes it.",
            snapshot.task_id,
            exc_info=True,
        )


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else default
