"""Books that a test writes into, as tasks do, and as another program may."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Self

import sqlalchemy as sa

from airflow_provider_qwenimage.books import accounting, reports
from airflow_provider_qwenimage.books.database import BooksDatabase
from airflow_provider_qwenimage.books.reports import Spending
from airflow_provider_qwenimage.books.schema import SUBMISSIONS
from airflow_provider_qwenimage.rules.book_rows import BookRow, BookStatus, Change, Reservation
from airflow_provider_qwenimage.rules.budgets import Budgets

# One minute before the end of a day in UTC.
EVENING = datetime(2026, 11, 26, 23, 59, tzinfo=UTC)
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
NO_BUDGETS = Budgets()


class WrittenBooks:
    """Books that a test writes into."""

    def __init__(self, database: BooksDatabase) -> None:
        self.database = database
        database.prepare()

    @classmethod
    @contextmanager
    def at(cls, url: str) -> Iterator[Self]:
        """Open the database with a URL."""
        database = BooksDatabase("books", sa.create_engine(url, poolclass=sa.pool.QueuePool))
        yield cls(database)
        database.close()

    def submit(
        self, status: str = "reserved", *, at: datetime = EVENING, consumed: float | None = None, **fields: Any
    ) -> str:
        """Write the row of a submission of 5 credits, and return its id."""
        task_id = fields.pop("image_task_id", None)
        fields = {"account": "qwen", "dag_id": "foxes", "task_id": "draw", "submission_id": uuid.uuid4().hex} | fields
        row = Reservation(credits=5, fingerprint="f", run_id="r", **fields)
        submission_id = row.submission_id
        self.do(accounting.add_periods, row.account, at)
        self.do(accounting.reserve, [row], NO_BUDGETS, at)
        if status != "reserved":
            known = {"image_task_id": task_id, "credits_consumed": consumed}
            change = Change(status=BookStatus(status), submission_id=submission_id, **known)
            self.do(accounting.settle, [change], row.account, at)
        return submission_id

    def overwrite(self, submission_id: str, **values: str) -> None:
        """Write values that this package would not write."""
        texts = {name: sa.literal(value, sa.String) for name, value in values.items()}
        statement = sa.update(SUBMISSIONS).where(SUBMISSIONS.c.submission_id == submission_id).values(texts)
        self.do(lambda connection: connection.execute(statement))

    def row(self, submission_id: str) -> BookRow:
        """Return a row."""
        (row,) = self.do(accounting.rows_of, [submission_id])
        assert isinstance(row, BookRow)
        return row

    def do(self, function: Any, *arguments: Any, **options: Any) -> Any:
        """Call a function with a connection."""
        return self.database.transact(lambda connection: function(connection, *arguments, **options))

    def spending(self, by: Sequence[reports.By] = (), since: datetime = LONG_AGO, **options: Any) -> list[Spending]:
        """Report what was spent."""
        found: list[Spending] = self.do(reports.spending, by=by, since=since, **options)
        return found
