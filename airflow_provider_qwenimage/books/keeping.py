"""Keeps the books for a process: a thread of its own writes what the threads of a task reserve and settle, in blocks.

So a task can be ended from outside while the database hangs, and a batch writes dozens of rows in one transaction.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from airflow_provider_qwenimage.books import accounting
from airflow_provider_qwenimage.books.accounting import PeriodMissingError, RefusedError
from airflow_provider_qwenimage.books.database import BooksAwayError, BooksDatabase
from airflow_provider_qwenimage.rules.book_rows import BookStatus, Change, Reservation
from airflow_provider_qwenimage.rules.budgets import (
    NAMED_SPENDERS,
    Budgets,
    BudgetState,
    Refusal,
    budget_error,
    nearly_spent,
)
from airflow_provider_qwenimage.rules.prices import assumed_price

log = logging.getLogger(__name__)

# How long a submission waits for a database that is away: a restart takes seconds.
AWAY_SECONDS = 30.0
# A wait that is longer than this is that of a database which neither answers nor fails.
_HANGING_SECONDS = 60.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 5.0
_SLICE_SECONDS = 0.2
# The last attempt at the end of a task.
_LAST_SECONDS = 1.0
# How long an entry may wait for others: rows of a batch are reserved and settled at about the same times.
_RESERVE_DELAY, _SETTLE_DELAY, _NOTE_DELAY = 0.02, 0.5, 1.0
# From one reservation of a batch to the next: what comes in between is reserved at once.
_RESERVE_INTERVAL = 0.1
_MOST_AT_ONCE = 500


@dataclass(kw_only=True)
class _Waiting:
    """A thread that waits for the database."""

    due: float
    deadline: float
    written: Future[None] = field(default_factory=Future)
    # Nobody waits for it any more: what is written of it has to be taken back.
    is_abandoned: bool = False


@dataclass(kw_only=True)
class _Reserving(_Waiting):
    reservation: Reservation


class Books:
    """The books of an account, for one process.

    Args:
        database: Their database.
        account: The id of the Airflow connection that pays.
        budgets: Its budgets.
        is_batch: Whether entries wait a moment for others.
        note_nearly_spent: Called with the period's option when this process takes a budget over the share that is
            reported.

    Attributes:
        account: The id of the Airflow connection that pays.
        price: What an image is assumed to cost: what was last charged, and at least the documented price.
    """

    def __init__(
        self,
        database: BooksDatabase,
        account: str,
        budgets: Budgets,
        *,
        is_batch: bool = False,
        note_nearly_spent: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.account = account
        self.price = assumed_price(None)
        self._database = database
        self._budgets = budgets
        self._delays = (_RESERVE_DELAY, _SETTLE_DELAY, _NOTE_DELAY) if is_batch else (0.0, 0.0, 0.0)
        self._note_nearly_spent = note_nearly_spent
        # The thread waits for the one, and those who want to know what is written wait for the other.
        lock = threading.RLock()
        self._changed, self._settled = threading.Condition(lock), threading.Condition(lock)
        self._waiting: list[_Waiting] = []
        # By the submission, or by the image task if that is all that is known.
        self._changes: dict[tuple[str, str], Change] = {}
        self._changes_due: float | None = None
        # How many changes were queued and how many are written, so that a caller can wait for its own.
        self._queued = self._written = 0
        self._away: BooksAwayError | ValueError | None = None
        self._away_since = 0.0
        self._pause = _FIRST_PAUSE
        self._not_before = 0.0
        self._interval = _RESERVE_INTERVAL if is_batch else 0.0
        self._next_reservation = 0.0
        self._may_be_written = False
        self._is_prepared = False
        self._is_stopped = self._is_closed = False
        self._thread: threading.Thread | None = None

    def await_database(self) -> None:
        """Wait for the database, if it was not reached yet or is away.

        Raises:
            QwenImageConnectionError: If the books cannot be reached for `AWAY_SECONDS`, or the task is being ended.
            ValueError: If the database refuses.
        """
        if not self._is_prepared or self._away is not None:
            now = time.monotonic()
            self._wait_for(_Waiting(due=now, deadline=now + AWAY_SECONDS))

    def reserve(self, reservation: Reservation, *, waits: bool = True) -> bool:
        """Write the row of a submission that is about to be sent, and count its credits against the budgets.

        Args:
            reservation: The submission.
            waits: Whether to wait for a database that is away.

        Returns:
            Whether it is reserved: False if the database is away and nobody waits for it.

        Raises:
            QwenImageBudgetError: If a budget has no room for it.
            QwenImageConnectionError: If the books cannot be reached for `AWAY_SECONDS`, or the task is being ended.
            ValueError: If the database refuses.
        """
        now = time.monotonic()
        deadline = now + AWAY_SECONDS if waits else now
        entry = _Reserving(reservation=reservation, due=now + self._delays[0], deadline=deadline)
        try:
            self._wait_for(entry)
        except BooksAwayError:
            if waits or self._is_stopped or not entry.written.done():
                raise
            return False
        return True

    def _wait_for(self, entry: _Waiting) -> None:
        now = time.monotonic()
        with self._changed:
            self._waiting.append(entry)
            if len(self._waiting) == 1:
                # The thread wakes for the first of those who wait.
                self._wake()
        is_over = False
        try:
            while not self._is_stopped and time.monotonic() < now + _HANGING_SECONDS:
                # In slices: a signal is only handled between two of them.
                wait([entry.written], _SLICE_SECONDS)
                if entry.written.done():
                    is_over = True
                    return entry.written.result()
        finally:
            # A signal or a time limit of Airflow may have ended the wait as well.
            if not is_over:
                self._abandon(entry)
        why = "the task is being ended" if self._is_stopped else f"they did not answer within {_HANGING_SECONDS:g} s"
        raise BooksAwayError(f"The books could not be written: {why}. Nothing was submitted.")

    def _abandon(self, entry: _Waiting) -> None:
        with self._changed:
            entry.is_abandoned = True
            # An attempt may have written it, or may be writing it now: the thread takes it back after that.
            self._take_back(entry)

    def note(self, change: Change) -> None:
        """Have it written soon what has become known about a submission; nobody waits for it."""
        self._queue(change, self._delays[2])

    def end(self, change: Change) -> int:
        """Have it written soon how a submission ended; nobody waits for it.

        Returns:
            A number for `is_written`.
        """
        return self._queue(change, self._delays[1])

    def is_written(self, number: int) -> bool:
        """Whether a change that `end` has queued is written."""
        return self._written >= number

    def settle(self, change: Change, seconds: float) -> bool:
        """Write what has become known about a submission, and return whether it is written.

        Args:
            change: What is known.
            seconds: How long to wait for it. If the database is known to be away, nobody waits.
        """
        number = self.end(change)
        return self._wait_until_written(number, 0.0 if self._away else seconds)

    def flush(self, seconds: float) -> bool:
        """Write everything that is known, and return whether it is written.

        Args:
            seconds: How long to wait for it.
        """
        with self._changed:
            number = self._queued
            if self._changes:
                self._changes_due = time.monotonic()
                self._wake()
        return self._wait_until_written(number, seconds)

    def stop(self) -> None:
        """Have nothing more reserved, because the task is being ended."""
        self._is_stopped = True

    def close(self, seconds: float) -> bool:
        """Write what is left, end the thread, and return whether everything is written.

        Args:
            seconds: How long to wait for it, at most.
        """
        if self._away is not None:
            # Who has waited long enough already does not wait as long again.
            seconds = min(seconds, max(_LAST_SECONDS, self._away_since + AWAY_SECONDS - time.monotonic()))
        is_written = self.flush(seconds)
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        if not is_written:
            log.warning(
                "The books could not be written at the end: %s What is not in them yet, `airflow qwenimage books "
                "settle` or a retry of the task writes.",
                self._away or "they do not answer.",
            )
        return is_written

    def _queue(self, change: Change, delay: float) -> int:
        with self._changed:
            key = ("", str(change.image_task_id)) if change.submission_id is None else (change.submission_id, "")
            earlier = self._changes.get(key)
            self._changes[key] = change if earlier is None else change.after(earlier)
            due = time.monotonic() + delay
            self._queued += 1
            if change.credits_consumed is not None and change.status is BookStatus.DONE:
                self.price = assumed_price(change.credits_consumed)
            if self._changes_due is None or due < self._changes_due:
                # Otherwise the thread comes to it sooner anyway, and each time that it wakes costs the others.
                self._changes_due = due
                self._wake()
            return self._queued

    def _wait_until_written(self, number: int, seconds: float) -> bool:
        end = time.monotonic() + seconds
        with self._changed:
            while self._written < number and (left := end - time.monotonic()) > 0:
                # In slices: a signal is only handled between two of them.
                self._settled.wait(min(left, _SLICE_SECONDS))
            return self._written >= number

    def _wake(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="qwenimage-books", daemon=True)
            self._thread.start()
        self._changed.notify_all()

    def _run(self) -> None:
        try:
            while self._wait_for_work():
                self._work()
            if self._changes:
                # Nobody waits for it, but as long as the process lives, it can be done.
                self._work()
        finally:
            self._database.close()

    def _wait_for_work(self) -> bool:
        """Wait until something is due; return False at the end."""
        with self._changed:
            while not self._is_closed:
                dues = [max(min(entry.due for entry in self._waiting), self._next_reservation)] if self._waiting else []
                if self._changes_due is not None:
                    dues.append(self._changes_due)
                now = time.monotonic()
                if not dues:
                    self._changed.wait()
                elif (due := max(min(dues), self._not_before)) > now:
                    self._changed.wait(due - now)
                else:
                    return True
            return False

    def _work(self) -> None:
        now = time.monotonic()
        waiting: list[_Waiting] = []
        with self._changed:
            are_changes_due = self._changes_due is not None and self._changes_due <= now
            if self._waiting and self._next_reservation <= now:
                waiting, self._waiting = self._waiting[:_MOST_AT_ONCE], self._waiting[_MOST_AT_ONCE:]
                self._next_reservation = now + self._interval
        try:
            if not self._is_prepared:
                self._prepare()
            if are_changes_due:
                self._settle()
            left = [entry for entry in waiting if not entry.is_abandoned]
            self._answer([entry for entry in left if not isinstance(entry, _Reserving)])
            self._reserve(self._not_written([entry for entry in left if isinstance(entry, _Reserving)]))
        except BooksAwayError as error:
            self._wait_for_database(error, waiting)
        except Exception as error:  # noqa: BLE001  whatever it is, those who wait must know
            self._refuse([entry for entry in waiting if not entry.written.done()], error)
            self._wait_for_database(error, [])
        else:
            self._away, self._pause, self._may_be_written = None, _FIRST_PAUSE, False

    def _settle(self) -> bool:
        """Write all that is known; return whether there was something."""
        with self._changed:
            changes, self._changes, self._changes_due = self._changes, {}, None
            queued = self._queued
        try:
            if changes:
                self._database.transact(lambda one: accounting.settle(one, changes.values(), self.account, _now()))
        except BaseException:
            with self._changed:
                for key, change in changes.items():
                    newer = self._changes.get(key)
                    self._changes[key] = change if newer is None else newer.after(change)
                self._changes_due = time.monotonic()
            raise
        with self._changed:
            self._written = queued
            self._settled.notify_all()
        return bool(changes)

    def _prepare(self) -> None:
        self._database.prepare()
        price = self._database.transact(lambda one: accounting.last_price(one, self.account))
        self.price = max(self.price, assumed_price(price))
        self._is_prepared = True

    def _answer(self, entries: Sequence[_Waiting]) -> None:
        """Answer those who wait for the database, once it answers."""
        if entries:
            self._database.transact(lambda _: None)
            self._allow(entries)

    def _not_written(self, entries: list[_Reserving]) -> list[_Reserving]:
        """Return the entries that no earlier attempt has written; the others are reserved."""
        if not self._may_be_written or not entries:
            return entries
        ids = [entry.reservation.submission_id for entry in entries]
        rows = self._database.transact(lambda one: accounting.rows_of(one, ids))
        written = {row.submission_id for row in rows}
        self._allow([entry for entry in entries if entry.reservation.submission_id in written])
        return [entry for entry in entries if entry.reservation.submission_id not in written]

    def _allow(self, entries: Sequence[_Waiting]) -> None:
        with self._changed:
            for entry in entries:
                entry.written.set_result(None)
                if entry.is_abandoned:
                    # A settlement in between may have taken it back too early.
                    self._take_back(entry)

    def _refuse(self, entries: Sequence[_Waiting], error: Exception) -> None:
        with self._changed:
            for entry in entries:
                entry.written.set_exception(error)
                if self._may_be_written:
                    self._take_back(entry)

    def _reserve(self, entries: list[_Reserving]) -> None:
        """Reserve as many as the budgets allow, in the order in which they came."""
        left = entries
        while left:
            refusal = self._reserve_all(left)
            if refusal is None:
                self._allow(left)
                return
            # What is not written yet may give credits back.
            if self._settle():
                continue
            allowed = min(refusal.images_left, len(left) - 1)
            if allowed == 0:
                error = self._budget_error(refusal)
                # The first, if it alone is too much; each of the others may cost less.
                refused, left = (left, []) if refusal.images_left == 0 else (left[:1], left[1:])
                self._refuse(refused, error)
            else:
                self._reserve(left[:allowed])
                left = left[allowed:]

    def _reserve_all(self, entries: list[_Reserving]) -> Refusal | None:
        reservations = [
            replace(entry.reservation, credits=max(entry.reservation.credits, self.price)) for entry in entries
        ]
        now = _now()

        def work(connection: Any) -> list[BudgetState]:
            return accounting.reserve(connection, reservations, self._budgets, now)

        try:
            try:
                reached = self._database.transact(work)
            except PeriodMissingError:
                self._database.transact(lambda one: accounting.add_periods(one, self.account, now))
                reached = self._database.transact(work)
        except RefusedError as refused:
            return refused.refusal
        for each in reached:
            log.warning("%s", nearly_spent(self.account, each))
            self._note_nearly_spent(each.period.option)
        return None

    def _budget_error(self, refusal: Refusal) -> Exception:
        spenders = self._database.transact(
            lambda one: accounting.spenders_of(one, self.account, refusal.period, NAMED_SPENDERS)
        )
        return budget_error(self.account, refusal, spenders, _now())

    def _wait_for_database(self, error: Exception, entries: Sequence[_Waiting]) -> None:
        """Keep what could not be written for the next attempt, and fail what has waited long enough."""
        now = time.monotonic()
        with self._changed:
            if self._away is None:
                log.warning("%s Trying again.", error)
                self._away_since = now
            self._away = error if isinstance(error, BooksAwayError | ValueError) else BooksAwayError(str(error))
            self._may_be_written = True
            waiting = [entry for entry in entries if not entry.written.done()]
            for entry in waiting:
                if now >= entry.deadline or self._is_stopped:
                    # It may be written although the answer was lost.
                    self._refuse([entry], _gave_up(error))
            self._waiting[:0] = [entry for entry in waiting if not entry.written.done()]
            if self._changes:
                self._changes_due = now
            self._not_before = now + self._pause
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)

    def _take_back(self, entry: _Waiting) -> None:
        if not isinstance(entry, _Reserving):
            return
        submission_id = entry.reservation.submission_id
        self._changes[submission_id, ""] = Change(status=BookStatus.WITHDRAWN, submission_id=submission_id)
        self._queued += 1
        self._changes_due = time.monotonic()
        self._changed.notify_all()


def _gave_up(error: Exception) -> BooksAwayError:
    return BooksAwayError(f"{error} Nothing was submitted: a retry of the task asks the books again.")


def _now() -> datetime:
    return datetime.now(UTC)
