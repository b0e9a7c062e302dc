"""Reads the books: what was spent, by whom, what is left of the budgets, and which submissions need a look.

Anybody may have written into the tables, so a value that does not fit its column ends no report.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, TypeAlias

import sqlalchemy as sa

from airflow_provider_qwenimage.books.accounting import MOST_IDS, counted_credits, is_at_risk, is_ended, naive_utc
from airflow_provider_qwenimage.books.schema import BUDGETS, SUBMISSIONS
from airflow_provider_qwenimage.rules.book_rows import BookStatus, account_column, dag_id_column
from airflow_provider_qwenimage.rules.budgets import Budgets, BudgetState, periods_of

# What submissions are grouped by.
By: TypeAlias = Literal["day", "dag", "task", "account"]

# More are not read: a table that somebody has filled must not fill the memory of the reader.
MOST_GROUPS = 10_000

# DATE() is a function of each database: SQLite returns a text, the others a date.
_GROUPED: dict[str, dict[str, Any]] = {
    "day": {"day": sa.func.date(SUBMISSIONS.c.reserved_at)},
    "dag": {"dag_id": SUBMISSIONS.c.dag_id},
    "task": {"dag_id": SUBMISSIONS.c.dag_id, "task_id": SUBMISSIONS.c.task_id},
    "account": {"account": SUBMISSIONS.c.account},
}
_TEXTS = ("submission_id", "account", "dag_id", "run_id", "task_id", "status")
_NUMBERS = ("map_index", "try_number", "batch_row")
_AMOUNTS = ("credits_reserved", "credits_consumed")


@dataclass(frozen=True)
class Spending:
    """What a group of submissions has cost. Those that the API surely did not accept are left out.

    Attributes:
        key: The values that the group has in common, in the order of `key_columns`. A day is YYYY-MM-DD in UTC.
        submissions: How many there are.
        images: How many are done.
        credits: What was charged for those that are done or failed; as reserved, if the API did not report it.
        at_risk: The reserved credits of those whose end is not known.
        failed: How many have failed.
        failed_credits: The part of `credits` that was charged for them.
    """

    key: tuple[str, ...]
    submissions: int
    images: int
    credits: float
    at_risk: float
    failed: int
    failed_credits: float


@dataclass(frozen=True, kw_only=True)
class Submission:
    """A row, as it is shown.

    Attributes:
        submission_id: Its id.
        account: The id of the Airflow connection that pays.
        dag_id: Its DAG.
        run_id: Its run.
        task_id: Its task.
        map_index: Its map index; -1 if the task is not mapped.
        try_number: Its try.
        batch_row: The row of a batch; None outside batches.
        status: What is known about it; a text that is no `BookStatus` if another program, or a later version, wrote it.
        credits_reserved: What it was assumed to cost.
        credits_consumed: What was charged, or None.
        reserved_at: When it was reserved; None if it is not a time.
        image_task_id: The API's id of the image task, or None.
    """

    submission_id: str
    account: str
    dag_id: str
    run_id: str
    task_id: str
    map_index: int
    try_number: int
    batch_row: int | None
    status: str
    credits_reserved: float
    credits_consumed: float | None
    reserved_at: datetime | None
    image_task_id: str | None


def key_columns(by: Sequence[By]) -> tuple[str, ...]:
    """Return the names of the values of `Spending.key`; a task has two, its DAG and its own id."""
    return tuple(_key_expressions(by))


def spending(
    connection: Any,
    *,
    since: datetime,
    by: Sequence[By],
    accounts: Collection[str] | None = None,
    dag_ids: Collection[str] | None = None,
    most: int = MOST_GROUPS,
) -> list[Spending]:
    """Return what was spent, in groups, sorted by their keys.

    Args:
        connection: A connection; see `BooksDatabase.read`.
        since: Submissions that were reserved earlier are left out.
        by: What to group by; nothing for one total, which is left out if there are no submissions.
        accounts: Only of these connections; None for all.
        dag_ids: Only of these DAGs; None for all.
        most: How many groups; of more, those that spent most.
    """
    keys = _key_expressions(by)
    columns = {
        "submissions": sa.func.count(),
        "images": _sum(SUBMISSIONS.c.status == str(BookStatus.DONE), sa.literal(1)),
        "credits": _sum(is_ended(), counted_credits()),
        "at_risk": _sum(is_at_risk(), counted_credits()),
        "failed": _sum(SUBMISSIONS.c.status == str(BookStatus.FAILED), sa.literal(1)),
        "failed_credits": _sum(SUBMISSIONS.c.status == str(BookStatus.FAILED), counted_credits()),
    }
    statement = (
        sa.select(*keys.values(), *(each.label(name) for name, each in columns.items()))
        .where(*_after(since), SUBMISSIONS.c.status != str(BookStatus.WITHDRAWN))
        .group_by(*keys.values())
        .order_by(sa.func.sum(counted_credits()).desc())
        .limit(most)
    )
    totals: dict[tuple[str, ...], list[float]] = {}
    for condition in _chosen(accounts, dag_ids):
        for row in connection.execute(statement.where(*condition)):
            key = tuple("" if value is None else str(value) for value in row[: len(keys)])
            total = totals.setdefault(key, [0.0] * len(columns))
            totals[key] = [a + _amount(b) for a, b in zip(total, row[len(keys) :], strict=True)]
    found = [_spending(key, dict(zip(columns, total, strict=True))) for key, total in totals.items() if total[0]]
    found.sort(key=lambda one: -(one.credits + one.at_risk))
    return sorted(found[:most], key=lambda one: one.key)


def budget_states(connection: Any, account: str, budgets: Budgets, now: datetime) -> list[BudgetState]:
    """Return how much of the budgets of an account is spent.

    Args:
        connection: A connection.
        account: The account.
        budgets: Its budgets.
        now: The time.
    """
    states = []
    for period in periods_of(now):
        limit = budgets.limit_of(period)
        if limit is None:
            continue
        used = connection.execute(
            sa.select(_as_stored(BUDGETS.c.credits)).where(
                BUDGETS.c.account == account_column(account), BUDGETS.c.period == period.key
            )
        ).scalar()
        states.append(BudgetState(period, limit, _amount(used)))
    return states


def at_risk_rows(
    connection: Any,
    *,
    since: datetime | None = None,
    accounts: Collection[str] | None = None,
    dag_ids: Collection[str] | None = None,
    most: int,
) -> list[Submission]:
    """Return submissions whose end is not known, the newest first.

    Args:
        connection: A connection.
        since: Those that were reserved earlier are left out; None for all.
        accounts: Only of these connections; None for all.
        dag_ids: Only of these DAGs; None for all.
        most: How many.
    """
    return _newest(connection, [is_at_risk(), *_after(since)], _chosen(accounts, dag_ids), most)


def costly_failures(
    connection: Any,
    *,
    since: datetime | None = None,
    accounts: Collection[str] | None = None,
    dag_ids: Collection[str] | None = None,
    most: int,
) -> list[Submission]:
    """Return submissions that have failed and cost credits, the newest first; the arguments are `at_risk_rows`'."""
    is_costly = sa.and_(SUBMISSIONS.c.status == str(BookStatus.FAILED), counted_credits() > 0)
    return _newest(connection, [is_costly, *_after(since)], _chosen(accounts, dag_ids), most)


def open_rows(
    connection: Any, account: str, statuses: Collection[BookStatus], *, after: str = "", most: int
) -> list[Submission]:
    """Return submissions of an account with some statuses, in the order of their ids: a page of them.

    Args:
        connection: A connection.
        account: The account.
        statuses: The statuses.
        after: The id of the last submission of the page before.
        most: How many.
    """
    submission_id = SUBMISSIONS.c.submission_id
    statement = (
        _select_submissions()
        .where(
            SUBMISSIONS.c.account == account_column(account),
            SUBMISSIONS.c.status.in_([str(status) for status in statuses]),
            submission_id > after,
        )
        .order_by(submission_id)
        .limit(most)
    )
    # SQLite stores any value as an id. What is no text is in no order with the others, and comes last.
    return [_submission(row) for row in connection.execute(statement) if isinstance(row.submission_id, str)]


def _after(since: datetime | None) -> tuple[Any, ...]:
    return () if since is None else (SUBMISSIONS.c.reserved_at >= naive_utc(since),)


def _newest(
    connection: Any, conditions: Sequence[Any], chosen: Iterator[tuple[Any, ...]], most: int
) -> list[Submission]:
    statement = _select_submissions().where(*conditions).order_by(SUBMISSIONS.c.reserved_at.desc()).limit(most)
    found: list[Submission] = []
    for condition in chosen:
        found += [_submission(row) for row in connection.execute(statement.where(*condition))]
    found.sort(key=lambda one: (_moment(one), one.submission_id), reverse=True)
    return found[:most]


def _moment(one: Submission) -> datetime:
    return one.reserved_at or datetime.min.replace(tzinfo=UTC)


def _key_expressions(by: Sequence[By]) -> dict[str, Any]:
    expressions: dict[str, Any] = {}
    for each in by:
        expressions |= _GROUPED[each]
    return expressions


def _sum(condition: Any, amount: Any) -> Any:
    return sa.func.sum(sa.case((condition, amount), else_=sa.literal(0)))


def _spending(key: tuple[str, ...], totals: dict[str, float]) -> Spending:
    counts = {name: int(totals[name]) for name in ("submissions", "images", "failed")}
    return Spending(key, **(totals | counts))  # type: ignore[arg-type]


def _chosen(accounts: Collection[str] | None, dag_ids: Collection[str] | None) -> Iterator[tuple[Any, ...]]:
    """Return conditions that choose each submission once; a statement can only have so many parameters."""
    for some_accounts in _blocks(accounts, account_column):
        for some_dag_ids in _blocks(dag_ids, dag_id_column):
            condition: tuple[Any, ...] = ()
            if some_accounts is not None:
                condition += (SUBMISSIONS.c.account.in_(some_accounts),)
            if some_dag_ids is not None:
                condition += (SUBMISSIONS.c.dag_id.in_(some_dag_ids),)
            yield condition


def _blocks(values: Collection[str] | None, as_stored: Any) -> Iterator[list[str] | None]:
    if values is None:
        yield None
        return
    distinct = sorted({as_stored(value) for value in values})
    for begin in range(0, len(distinct), MOST_IDS // 2):
        yield distinct[begin : begin + MOST_IDS // 2]


def _select_submissions() -> Any:
    names = (*_TEXTS, *_NUMBERS, *_AMOUNTS, "reserved_at", "image_task_id")
    return sa.select(*(_as_stored(SUBMISSIONS.c[name]) for name in names))


def _as_stored(column: Any) -> Any:
    """Return a column whose values SQLAlchemy does not convert: SQLite stores any text as a time or a number."""
    return sa.type_coerce(column, sa.types.NullType()).label(column.name)


def _submission(row: Any) -> Submission:
    fields = dict(row._mapping)  # noqa: SLF001  SQLAlchemy's public name for it
    image_task_id, row_of_batch, consumed = (
        fields[name] for name in ("image_task_id", "batch_row", "credits_consumed")
    )
    texts = {name: str(fields[name]) for name in _TEXTS}
    return Submission(
        **texts,
        map_index=_whole(fields["map_index"], -1),
        try_number=_whole(fields["try_number"], 0),
        batch_row=None if row_of_batch is None else _whole(row_of_batch, 0),
        credits_reserved=_amount(fields["credits_reserved"]),
        credits_consumed=None if consumed is None else _amount(consumed),
        reserved_at=_time(fields["reserved_at"]),
        image_task_id=None if image_task_id is None else str(image_task_id),
    )


def _amount(value: object) -> float:
    try:
        amount = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return 0.0
    return amount if math.isfinite(amount) else 0.0


def _whole(value: object, otherwise: int) -> int:
    return value if isinstance(value, int) else otherwise


def _time(value: object) -> datetime | None:
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            return None
    if not isinstance(value, datetime):
        return None
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
