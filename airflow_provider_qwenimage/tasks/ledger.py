"""Records what Airflow tasks submit, so that no task pays for what another one, or an earlier try, has paid.

A fact is appended before a submission, one after it, and one at its end. With an output folder they are recorded there
as well, shared by all who ask for the same image. What a task does about them is decided in `rules.submissions`.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pendulum

from airflow_provider_qwenimage.exceptions import QwenImageContentPolicyError, QwenImageError, QwenImageTaskFailedError
from airflow_provider_qwenimage.rules.book_rows import BookStatus, Change, recorded_change
from airflow_provider_qwenimage.rules.made_by import writer_of
from airflow_provider_qwenimage.rules.submission_facts import End, EndKind, Fact, Intent, Submission
from airflow_provider_qwenimage.rules.submissions import Asking, Resume, Step, Stop, Submit, combined, next_step
from airflow_provider_qwenimage.rules.tries import Try
from airflow_provider_qwenimage.tasks.records import Records

if TYPE_CHECKING:
    from airflow_provider_qwenimage.tasks.bookkeeping import TaskBooks

log = logging.getLogger(__name__)

_WRITE_TRIES = 3
_WRITE_PAUSE_SECONDS = 1.0


class Ledger:
    """The submissions of one image of an Airflow task, in every place where they are recorded.

    Args:
        instance: The Airflow task; see `made_by.description_of`.
        made_in: Its try.
        own: The records of this task alone, or None if it has none.
        shared: Returns the records in the folder for the key of an image; None without a folder.
        books: The books of the connection, or None.
        batch_row: The row of a batch, counted from 1, for the books; None outside batches.
    """

    def __init__(
        self,
        instance: Mapping[str, Any],
        made_in: Try,
        *,
        own: Records | None,
        shared: Callable[[str], Records] | None,
        books: TaskBooks | None = None,
        batch_row: int | None = None,
    ) -> None:
        self._instance = instance
        self._writer = writer_of(instance)
        self._made_in = made_in
        self._own = own
        self._open_shared = shared
        self._shared: Records | None = None
        self._current: Submission | None = None
        self._given_up: list[tuple[Records, Submission]] = []
        self._books = books
        self._batch_row = batch_row
        self._is_reserved = False

    @property
    def remembers(self) -> bool:
        """Whether the next try will know what this one submitted."""
        return self._own is not None or self._open_shared is not None

    @property
    def is_empty(self) -> bool:
        """Whether the records of this task alone, as they were read, have no submission."""
        return self._own is None or not self._own.history

    @property
    def current(self) -> Submission | None:
        """The submission that this task makes or resumes, if any."""
        return self._current

    def is_own(self, submission: Submission) -> bool:
        """Whether this Airflow task, in whichever try, has made a submission."""
        return writer_of(submission.intent.by) == self._writer

    def look_at_own(self, asking: Asking) -> Step:
        """Read the records of this task alone, and return what it does about them; see `submissions.next_step`."""
        self._current, self._shared, self._given_up = None, None, []
        if self._own is None:
            return Submit()
        self._read_own(self._own)
        return self._decide(self._own, asking, lambda _: True)

    def look_at_shared(self, asking: Asking, own: Submit) -> Step:
        """Read the records that the folder has of the image, and return what this task does about both.

        Args:
            asking: The image, and who asks for it.
            own: What `look_at_own` returned.
        """
        if self._open_shared is None:
            return own
        self._shared = self._open_shared(asking.identity.key)
        self._shared.read(self._made_in)
        last = self._shared.history[-1] if self._shared.history else None
        if last is not None and any(last.intent.submission_id == one.intent.submission_id for _, one in self._given_up):
            self._given_up.append((self._shared, last))
            return own
        theirs = self._decide(self._shared, asking, self.is_own)
        return combined(own, theirs) if isinstance(theirs, Submit) else theirs

    def find(self, image_task_id: str | None) -> Submission | None:
        """Return the submission of this task with an id, and make it the current one; without any decision.

        Args:
            image_task_id: The API's id of the image task, or None for the last that has one.
        """
        if self._own is not None:
            self._read_own(self._own)
            self._make_current(self._own, image_task_id)
        return self._current

    def find_shared(self, key: str, image_task_id: str) -> Submission | None:
        """Return the submission with an id that another task has recorded in the folder, and make it the current one.

        Args:
            key: The key of the image; see `ImageIdentity`.
            image_task_id: The API's id of the image task.
        """
        if self._open_shared is not None:
            self._shared = self._open_shared(key)
            self._shared.read(self._made_in)
            self._make_current(self._shared, image_task_id)
        return self._current

    def intend(self, asking: Asking, callback: str | None = None) -> bool:
        """Record that a request is about to be submitted. Before that, nothing may be sent.

        Args:
            asking: The image, and who asks for it.
            callback: See `Intent`.

        Returns:
            Whether it may be sent: False if another task has recorded its intent for the same image in between.
        """
        for records, submission in self._given_up:
            end = self._end(EndKind.GIVEN_UP, image_task_id=submission.image_task_id)
            records.write_end(submission.intent.submission_id, end)
        self._given_up = []
        identity = asking.identity
        intent = Intent(
            submission_id=uuid.uuid4().hex,
            request=identity.request.description(),
            fingerprint=identity.fingerprint,
            variant=identity.variant,
            name=identity.name,
            intended_at=pendulum.now("UTC").isoformat(timespec="seconds"),
            made_in=self._made_in,
            by=self._instance,
            callback=callback,
        )
        self._current = Submission(number=0, intent=intent)
        self._is_reserved = False
        try:
            if self._own is not None:
                self._own.add(intent)
            if self._shared is None or self._claim(self._shared, intent):
                return True
        except BaseException:
            # An execution_timeout as well: nothing was sent, and the next try should know.
            with suppress(Exception):
                self.withdraw()
            raise
        self.withdraw()
        return False

    def await_books(self) -> None:
        """Wait for the books, if there are any and their database is away.

        Raises:
            QwenImageConnectionError: If they cannot be reached.
            ValueError: If they cannot be used.
        """
        if self._books is not None:
            self._books.await_database()

    def reserve(self) -> bool:
        """Reserve the credits of the intended submission in the books, if there are any.

        Returns:
            Whether it may be sent: False if the books are away now.

        Raises:
            QwenImageBudgetError: If a budget has no room for it.
            QwenImageConnectionError: If the books do not answer.
            ValueError: If the books cannot be used.
        """
        if self._books is None or self._current is None:
            return True
        # Before it is: an interruption may hide that it was.
        self._is_reserved = True
        try:
            self._is_reserved = self._books.reserve(self._current.intent, self._batch_row)
        except (QwenImageError, ValueError):
            self._is_reserved = False
            raise
        return self._is_reserved

    def accept(self, image_task_id: str) -> None:
        """Record the API's id of the image task wherever that is possible, each time in up to three attempts.

        Raises:
            Exception: That of the storage, if it could be recorded nowhere.
        """
        current = self._current
        if current is None:
            return
        self._current = current = replace(current, image_task_id=image_task_id)
        self._book(Change(status=BookStatus.SUBMITTED))
        submission_id = current.intent.submission_id
        places = self._places()
        failures = _write_patiently(places, lambda records: records.write_id(submission_id, image_task_id))
        if not failures or len(failures) < len(places):
            return
        raise failures[0]

    def withdraw(self) -> None:
        """Record that the API surely did not accept the submission."""
        current, failures = self._current, []
        if self._is_reserved:
            self._book(Change(status=BookStatus.WITHDRAWN))
        if current is not None:
            for records in self._places():
                try:
                    records.withdraw(current.intent.submission_id, self._end(EndKind.NOT_ACCEPTED))
                except Exception as error:  # noqa: BLE001  any storage's; the other place should know
                    failures.append(error)
        self._current = None
        if failures:
            raise failures[0]

    def answer_server_error(self) -> None:
        """Record that the API answered the submission with a plain code 500, so that it may be paid."""
        self._book(Change(status=BookStatus.UNKNOWN))
        self._write_end(self._end(EndKind.SERVER_ERROR))
        self._current = None

    def report(self) -> None:
        """Record that an error told the user of a submission that may have been accepted."""
        self._book(Change(status=BookStatus.UNKNOWN))
        self._note(Fact.REPORTED)

    def fail(self, error: QwenImageTaskFailedError) -> None:
        """Record that the image task FAILED, and what it cost."""
        task_id = error.snapshot.task_id if error.snapshot is not None else None
        self._book(Change(status=BookStatus.FAILED, image_task_id=task_id, credits_consumed=error.cost))
        kind = EndKind.REFUSED if isinstance(error, QwenImageContentPolicyError) else EndKind.FAILED
        end = self._end(kind, reason=str(error), consumed_credits=error.cost)
        places = self._places()
        for records in places:
            submission_id = self._current.intent.submission_id if self._current is not None else ""
            if records is self._shared and self._own in places:
                # This task's own records have the end, and others ask the API: the folder need not keep it.
                records.withdraw(submission_id, end)
            else:
                records.write_end(submission_id, end)

    def record_lost(self) -> bool:
        """Record that the image could not be fetched.

        Returns:
            Whether a cleared task could not fetch it either, so that the next Clear submits a new one.
        """
        places = self._places()
        if self._current is None or not places:
            return False
        lost = places[0].read_note(self._current.intent.submission_id, Fact.LOST)
        if lost is None:
            self._note(Fact.LOST)
            return False
        if not self._made_in.was_cleared_since(lost):
            return False
        self._note(Fact.MISSED)
        return True

    def was_lost_earlier(self) -> bool:
        """Whether an earlier try could not fetch the image; the metrics have counted it then."""
        current, places = self._current, self._places()
        if current is None or not places or current.intent.made_in == self._made_in:
            return False
        return places[0].read_note(current.intent.submission_id, Fact.LOST) is not None

    def succeed(self, paid: Change) -> None:
        """Have the books say that the image task is SUCCESS, before its image is stored.

        Args:
            paid: See `book_rows.done`.
        """
        self._book(paid)

    def finish(self, paid: Change | None = None) -> None:
        """Record that the Airflow task is done with its image task.

        Args:
            paid: What the books say about it; see `book_rows.done`. None if the image task has not ended.
        """
        current = self._current
        if current is None or (current.end is not None and current.end.kind is EndKind.DONE):
            if paid is not None:
                self._book(paid)
            return
        end = self._end(EndKind.DONE, image_task_id=current.image_task_id)
        places, submission_id = self._places(), current.intent.submission_id

        def settle() -> None:
            for records in places:
                records.settle(submission_id, end)

        if self._books is None or paid is None:
            settle()
        else:
            self._books.settle(self._identified(paid), settle)
        self._current = replace(current, end=end)

    def remove_leftovers(self, names: Iterable[str]) -> None:
        """Remove what a killed process has left in the folder when it removed the records of the image.

        Args:
            names: The names of the facts about the image that the folder has.
        """
        if self._shared is not None:
            self._shared.remove_leftovers(names)

    def _read_own(self, own: Records) -> None:
        """Read the records of this task; an id that was not recorded there may be in the folder."""
        own.read(self._made_in)
        last = own.history[-1] if own.history else None
        if last is None or last.end is not None or last.image_task_id is not None or self._open_shared is None:
            return
        if last.intent.is_readable:
            shared = self._open_shared(last.intent.identity.key)
            shared.read(self._made_in)
            other = shared.find(last.intent.submission_id)
            if other is not None:
                own.history[-1] = replace(last, image_task_id=other.image_task_id, end=other.end)

    def _decide(self, records: Records, asking: Asking, is_own: Callable[[Submission], bool]) -> Step:
        if self._books is not None:
            for one in records.history:
                change = recorded_change(one.image_task_id, one.end)
                # A record that cannot be read has no id.
                if change is not None and one.intent.submission_id:
                    self._books.note(replace(change, submission_id=one.intent.submission_id))
        step = next_step(records.history, asking, is_own)
        if isinstance(step, Resume):
            self._resume(step.submission)
        elif isinstance(step, Submit) and step.gives_up:
            self._given_up.append((records, records.history[-1]))
        elif isinstance(step, Stop) and step.asks_for_consent:
            self._current = records.history[-1]
            self.report()
        return step

    def _make_current(self, records: Records, image_task_id: str | None) -> None:
        found = [one for one in records.history if one.image_task_id is not None]
        matching = [one for one in found if image_task_id in (None, one.image_task_id)]
        if matching:
            self._resume(matching[-1])

    def _resume(self, submission: Submission) -> None:
        self._current = submission
        if self._open_shared is not None and submission.intent.is_readable:
            key = submission.intent.identity.key
            if self._shared is None or self._shared.find(submission.intent.submission_id) is None:
                self._shared = self._open_shared(key)
                self._shared.read(self._made_in)

    def _claim(self, shared: Records, intent: Intent) -> bool:
        """Record the intent where others see it, and return whether this task is the one to submit."""
        earlier = shared.history[-1] if shared.history else None
        # Another task may have finished, and removed its records, since they were read.
        return shared.add(intent) and shared.follows(earlier)

    def _places(self) -> list[Records]:
        """Return where the current submission is recorded."""
        current = self._current
        if current is None:
            return []
        places = (self._own, self._shared)
        return [one for one in places if one is not None and one.find(current.intent.submission_id) is not None]

    def _write_end(self, end: End) -> None:
        if self._current is not None:
            for records in self._places():
                records.write_end(self._current.intent.submission_id, end)

    def _book(self, change: Change) -> None:
        if self._books is not None and (self._current is not None or change.image_task_id is not None):
            self._books.note(self._identified(change))

    def _identified(self, change: Change) -> Change:
        current = self._current
        if current is None:
            return change
        # A record that cannot be read has no id.
        submission_id = current.intent.submission_id or None
        return replace(change, submission_id=submission_id, image_task_id=change.image_task_id or current.image_task_id)

    def _note(self, fact: Fact) -> None:
        if self._current is not None:
            for records in self._places():
                records.write_note(self._current.intent.submission_id, fact, self._made_in)

    def _end(
        self, kind: EndKind, *, reason: str = "", consumed_credits: float = 0.0, image_task_id: str | None = None
    ) -> End:
        known = self._current.image_task_id if self._current is not None else None
        return End(
            kind=kind,
            made_in=self._made_in,
            reason=reason,
            consumed_credits=consumed_credits,
            image_task_id=image_task_id or known,
        )


def _write_patiently(places: Sequence[Records], write: Callable[[Records], None]) -> list[Exception]:
    """Write to each place, up to three times, and return the errors of those where that failed.

    No place waits for another one: the process may be about to be killed.
    """
    failures: dict[Records, Exception] = {}
    for attempts_left in reversed(range(_WRITE_TRIES)):
        left, failures = list(failures) or places, {}
        for records in left:
            try:
                write(records)
            except Exception as error:  # noqa: BLE001  any storage's; what is paid is worth another attempt
                failures[records] = error
        if not failures:
            break
        if attempts_left:
            log.warning(
                "The id of the image task could not be recorded; trying again: %s", next(iter(failures.values()))
            )
            time.sleep(_WRITE_PAUSE_SECONDS)
    return list(failures.values())
