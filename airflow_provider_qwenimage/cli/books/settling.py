"""Settles rows of the books whose end is not known: asks the API, which costs nothing, and reads folders of images."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, TypeAlias

from airflow_provider_qwenimage.books import accounting, reports
from airflow_provider_qwenimage.exceptions import QwenImageContractError, QwenImageError, QwenImageNotFoundError
from airflow_provider_qwenimage.rules.book_rows import BookStatus, Change, change_of, recorded_change
from airflow_provider_qwenimage.tasks.drawing import answer_seconds
from airflow_provider_qwenimage.tasks.folder_facts import FolderFacts, Recorded
from airflow_provider_qwenimage.text.messages import printable, shorten, shown_credits

if TYPE_CHECKING:
    from airflow_provider_qwenimage.books.database import BooksDatabase
    from airflow_provider_qwenimage.books.reports import Submission
    from airflow_provider_qwenimage.client.connection import ConnectionSettings
    from airflow_provider_qwenimage.contract import TaskSnapshot
    from airflow_provider_qwenimage.rules.submission_facts import End

ReadStatus: TypeAlias = Callable[[str], "TaskSnapshot"]

# The database sorts all open rows for a page. Blocks are written as soon as they are known.
_ROWS_OF_A_PAGE = 5000
_ROWS_OF_A_BLOCK = 200
# If the API itself is away, each further question takes seconds.
_MOST_FAILED_READS = 5
_PROGRESS_SECONDS = 10.0
_MOST_PROBLEMS = 20
# Much longer than tasks wait for the answer to a submission, unless the connection's own limits are higher.
_ANSWER_WINDOW = timedelta(hours=1)
_IN_FLIGHT = 1000


@dataclass(frozen=True)
class Outcome:
    """What became of an open row.

    Attributes:
        row: The row.
        change: What is known now, if it is more than before.
        problem: Why it could not be found out.
    """

    row: Submission
    change: Change | None = None
    problem: str = ""


def answer_window(settings: ConnectionSettings) -> timedelta:
    """Return after how long a submission without an answer gets none any more."""
    return max(_ANSWER_WINDOW, timedelta(seconds=2 * answer_seconds(settings, _IN_FLIGHT)))


@dataclass
class Settling:
    """Finds out how submissions ended.

    Args:
        read_status: Reads the status of an image task; raises `QwenImageError` or `ValueError`.
        folders: What folders of images have recorded.
        reserved_before: A submission that was reserved earlier gets no answer any more.
    """

    read_status: ReadStatus
    folders: Sequence[FolderFacts]
    reserved_before: datetime
    _failed_reads: int = field(default=0, init=False)

    def outcome(self, row: Submission) -> Outcome:
        """Return what becomes of a row."""
        try:
            recorded = self._recorded(row.submission_id)
        except OSError as error:
            return Outcome(row, problem=f"Its record in the folder cannot be read: {error}")
        if row.reserved_at is None:
            return Outcome(row, problem="Its reserved_at is not a time. Correct the row, or remove it.")
        image_task_id = row.image_task_id or recorded.image_task_id
        if image_task_id is None:
            return self._without_id(row, recorded.end)
        try:
            snapshot = self._read(image_task_id)
        except (QwenImageError, ValueError) as error:
            return self._without_status(row, image_task_id, recorded.end, error)
        change = change_of(snapshot) or Change(status=BookStatus.SUBMITTED)
        # As it was asked for: the answer's id may be written otherwise.
        return _changed(row, replace(change, image_task_id=image_task_id))

    def _recorded(self, submission_id: str) -> Recorded:
        found = [folder.find(submission_id) for folder in self.folders]
        return Recorded(
            next((one.image_task_id for one in found if one.image_task_id is not None), None),
            next((one.end for one in found if one.end is not None), None),
        )

    def _read(self, image_task_id: str) -> TaskSnapshot:
        if self._failed_reads >= _MOST_FAILED_READS:
            raise ValueError(f"The API was not asked, since {_MOST_FAILED_READS} reads before failed.")
        try:
            snapshot = self.read_status(image_task_id)
        except (QwenImageNotFoundError, QwenImageContractError):
            # It has answered.
            self._failed_reads = 0
            raise
        except QwenImageError:
            self._failed_reads += 1
            raise
        self._failed_reads = 0
        return snapshot

    def _without_id(self, row: Submission, end: End | None) -> Outcome:
        change = recorded_change(None, end)
        if change is not None:
            return _changed(row, change)
        if row.status == BookStatus.SUBMITTED:
            return Outcome(row, problem="It has no image task id. Correct the row, or remove it.")
        is_over = row.reserved_at is not None and row.reserved_at < self.reserved_before
        return _changed(row, Change(status=BookStatus.UNKNOWN)) if is_over else Outcome(row)

    @staticmethod
    def _without_status(row: Submission, image_task_id: str, end: End | None, error: Exception) -> Outcome:
        change = recorded_change(image_task_id, end)
        outcome = Outcome(row) if change is None else _changed(row, change)
        is_known = change is not None and change.status is BookStatus.FAILED
        return outcome if is_known else replace(outcome, problem=str(error))


def _changed(row: Submission, change: Change) -> Outcome:
    is_news = str(change.status) != row.status or (row.image_task_id is None and change.image_task_id is not None)
    return Outcome(row, replace(change, submission_id=row.submission_id) if is_news else None)


class Report:
    """Prints what is settled, and counts it.

    Args:
        print_line: Prints a line of the output.
        say: Reports progress and problems.
        is_written: Whether the changes are written.
    """

    def __init__(self, print_line: Callable[[str], None], say: Callable[[str], None], *, is_written: bool) -> None:
        self._print_line = print_line
        self._say = say
        self._is_written = is_written
        self._changed: Counter[str] = Counter()
        self._open = self._looked_at = self.problems = 0
        self._said_at = time.monotonic()

    def add(self, outcome: Outcome) -> None:
        """Report a row, once its change is written."""
        if outcome.change is not None:
            self._changed[str(outcome.change.status)] += 1
            self._print_line(_line(outcome.row, outcome.change))
        elif not outcome.problem:
            self._open += 1
        if outcome.problem:
            self.problems += 1
            if self.problems <= _MOST_PROBLEMS:
                self._say(f"Left open: {_name(outcome.row)}: {outcome.problem}")

    def count(self) -> None:
        """Count a row that was looked at, and say every few seconds how many there are."""
        self._looked_at += 1
        if time.monotonic() - self._said_at >= _PROGRESS_SECONDS:
            self._said_at = time.monotonic()
            self._say(f"{self._looked_at} rows looked at …")

    def end(self) -> None:
        """Print the summary."""
        if self.problems > _MOST_PROBLEMS:
            self._say(f"{self.problems - _MOST_PROBLEMS} more rows were left open.")
        kinds = ", ".join(f"{number} {status}" for status, number in sorted(self._changed.items()))
        total = sum(self._changed.values())
        settled = f"{total} of {self._looked_at} open rows changed{f': {kinds}' if kinds else ''}."
        left = [f"{self._open} still in progress or awaiting an answer." if self._open else ""]
        left += [f"{self.problems} could not be read." if self.problems else ""]
        left += ["" if self._is_written else "Nothing was written (--dry-run)."]
        self._print_line(" ".join(filter(None, [settled, *left])))


def settle(
    database: BooksDatabase, account: str, settling: Settling, report: Report, now: datetime, *, is_dry_run: bool
) -> None:
    """Settle the open rows of an account, block by block.

    Args:
        database: The database of the books.
        account: The account.
        settling: Finds out how they ended.
        report: Reports it.
        now: The time.
        is_dry_run: Whether nothing is written.
    """
    statuses = [BookStatus.RESERVED, BookStatus.SUBMITTED]
    # What was lost may be in a folder.
    statuses += [BookStatus.UNKNOWN] if settling.folders else []
    for block in _blocks(database, account, statuses):
        outcomes = []
        for row in block:
            outcomes.append(settling.outcome(row))
            report.count()
        changes = [outcome.change for outcome in outcomes if outcome.change is not None]
        if changes and not is_dry_run:
            _write(database, account, changes, now)
        for outcome in outcomes:
            report.add(outcome)
    report.end()


def _blocks(database: BooksDatabase, account: str, statuses: Sequence[BookStatus]) -> Iterator[list[Submission]]:
    after = ""
    while page := _page(database, account, statuses, after):
        for begin in range(0, len(page), _ROWS_OF_A_BLOCK):
            yield page[begin : begin + _ROWS_OF_A_BLOCK]
        after = page[-1].submission_id


def _page(database: BooksDatabase, account: str, statuses: Sequence[BookStatus], after: str) -> list[Submission]:
    return database.read(lambda one: reports.open_rows(one, account, statuses, after=after, most=_ROWS_OF_A_PAGE))


def _write(database: BooksDatabase, account: str, changes: Sequence[Change], now: datetime) -> None:
    database.transact(lambda connection: accounting.settle(connection, changes, account, now))


def _name(row: Submission) -> str:
    """Return how a row is named in a line."""
    parts = [f"{row.dag_id}.{row.task_id}" if row.dag_id else "outside DAGs"]
    if row.map_index >= 0:
        parts[0] += f"[{row.map_index}]"
    if row.batch_row is not None:
        parts.append(f"row {row.batch_row}")
    parts.append(f"image task {row.image_task_id}" if row.image_task_id else f"submission {row.submission_id}")
    return ", ".join(shorten(printable(part)) for part in parts)


def _line(row: Submission, change: Change) -> str:
    cost = ""
    if change.status in (BookStatus.DONE, BookStatus.FAILED):
        cost = (
            ": cost not reported"
            if change.credits_consumed is None
            else f": {shown_credits(change.credits_consumed)} credits"
        )
    return f"{change.status:<9} {_name(row)}{cost}"
