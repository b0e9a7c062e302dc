"""Keeps the books of a running Airflow task, if its connection names some: see the package `books`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from threading import Lock
from typing import TYPE_CHECKING, Any

from airflow_provider_qwenimage.rules.book_rows import Change, Reservation, done

if TYPE_CHECKING:
    from airflow_provider_qwenimage.books.keeping import Books
    from airflow_provider_qwenimage.client.connection import ConnectionSettings
    from airflow_provider_qwenimage.contract import TaskSnapshot
    from airflow_provider_qwenimage.rules.submission_facts import Intent
    from airflow_provider_qwenimage.storage.images import StoredFile

# A restart of the database takes seconds. So long a stored image waits for its row, and the end of a task for the rest.
_SETTLE_SECONDS = 10.0
_CLOSE_SECONDS = 15.0
# After a signal, Airflow gives a process five seconds before it kills it.
_STOP_SECONDS = 1.0


class TaskBooks:
    """The books, as one try of an Airflow task writes them.

    Args:
        books: The books of the task's connection.
        instance: The task; see `made_by.description_of`.
        try_number: Its try.
        is_batch: Whether the task submits many images at once, which do not wait for their rows.
    """

    def __init__(self, books: Books, instance: Mapping[str, Any], try_number: int, *, is_batch: bool = False) -> None:
        self._books = books
        self._instance = instance
        self._try_number = try_number
        self._is_batch = is_batch
        self._is_stopped = False
        # What is to be done when a change is written, by the number of the change. Threads of a batch share it.
        self._left: list[tuple[int, Callable[[], None]]] = []
        self._lock = Lock()

    def await_database(self) -> None:
        """Wait for the database of the books, if it is away.

        Raises:
            QwenImageConnectionError: If it stays away.
            ValueError: If the books cannot be used.
        """
        self._books.await_database()

    def reserve(self, intent: Intent, batch_row: int | None) -> bool:
        """Reserve the credits of a submission that is about to be sent.

        Args:
            intent: The submission.
            batch_row: The row of a batch, counted from 1, or None.

        Returns:
            Whether they are reserved: False if the database is away, which is not waited for here.

        Raises:
            QwenImageBudgetError: If a budget has no room for it.
            QwenImageConnectionError: If the books do not answer, or the task is being ended.
            ValueError: If the books cannot be used.
        """
        instance = self._instance
        return self._books.reserve(
            Reservation(
                submission_id=intent.submission_id,
                account=self._books.account,
                credits=self._books.price,
                fingerprint=intent.fingerprint,
                dag_id=instance["dag_id"],
                run_id=instance["run_id"],
                task_id=instance["task_id"],
                map_index=-1 if instance["map_index"] is None else instance["map_index"],
                try_number=self._try_number,
                batch_row=batch_row,
            ),
            waits=False,
        )

    def note(self, change: Change) -> None:
        """Have it written soon what has become known about a submission."""
        self._books.note(change)

    def settle(self, change: Change, then: Callable[[], None]) -> None:
        """Write the end of a submission, and only then do what makes it unknown to a retry.

        Args:
            change: The end.
            then: Removes the records of the submission. In a batch, it is called with the next image or at the end. If
                the books are away, it is called at the end of the task, or never: then the next one that asks for the
                image, or ``airflow qwenimage books settle``, finds them.
        """
        if self._is_batch:
            # A thread that waited would not store the next image meanwhile.
            with self._lock:
                self._left.append((self._books.end(change), then))
            self._finish_written()
        elif self._books.settle(change, _STOP_SECONDS if self._is_stopped else _SETTLE_SECONDS):
            then()
        else:
            self._left.append((self._books.end(change), then))

    def stop(self) -> None:
        """Reserve nothing more, because the task is being ended from outside."""
        self._is_stopped = True
        self._books.stop()

    def close(self) -> None:
        """Write what is left, within seconds."""
        self._books.close(_STOP_SECONDS if self._is_stopped else _CLOSE_SECONDS)
        self._finish_written()

    def _finish_written(self) -> None:
        written: list[tuple[int, Callable[[], None]]] = []
        with self._lock:
            left, self._left = self._left, []
            for number, then in left:
                (written if self._books.is_written(number) else self._left).append((number, then))
        for _, then in written:
            # The image is stored: a record that stays costs nothing.
            with suppress(OSError):
                then()


def paid_for(snapshot: TaskSnapshot, stored: StoredFile | None) -> Change:
    """Return what the books say about an image task that is SUCCESS.

    Args:
        snapshot: The image task.
        stored: Its image, or the first of several; None if it is not stored.
    """
    path, sha256 = (None, None) if stored is None else (stored.path, stored.sha256)
    return done(snapshot.task_id, snapshot.consumed_credits, path, sha256)


def open_task_books(
    settings: ConnectionSettings, conn_id: str, instance: Mapping[str, Any], try_number: int, *, is_batch: bool = False
) -> TaskBooks | None:
    """Return the books of a connection; None if it names none. Nothing is read or written yet.

    Args:
        settings: The settings of the connection.
        conn_id: Its id.
        instance: The task that uses it; see `made_by.description_of`.
        try_number: Its try.
        is_batch: Whether the task submits many images at once.

    Raises:
        ValueError: If the books' own connection is not usable.
        QwenImageConnectionError: If Airflow cannot look it up for the moment.
    """
    if settings.books.conn_id is None:
        return None
    from airflow_provider_qwenimage.books.opening import open_books

    books = open_books(settings.books, conn_id, is_batch=is_batch)
    return TaskBooks(books, instance, try_number, is_batch=is_batch)
