"""The statements that keep the books: reserve credits within the budgets, and settle what has become known.

Rows of submissions are always locked before rows of budgets, and each kind in the same order (a budget's days before
its months), so that no two transactions wait for each other.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import mysql, postgresql, sqlite

from airflow_provider_qwenimage.books.schema import BUDGETS, SUBMISSIONS
from airflow_provider_qwenimage.rules.book_rows import (
    BookRow,
    BookStatus,
    Change,
    Reservation,
    account_column,
    status_from,
    task_id_column,
)
from airflow_provider_qwenimage.rules.budgets import (
    TOLERANCE,
    Budgets,
    BudgetState,
    Period,
    Refusal,
    is_nearly_spent,
    periods_of,
)

# SQLite allows 999 parameters in its older versions.
MOST_IDS = 500
_LAST_PRICES = 3
_SPEND_TRIES = 5
_COLUMNS = (
    SUBMISSIONS.c.submission_id,
    SUBMISSIONS.c.account,
    SUBMISSIONS.c.status,
    SUBMISSIONS.c.credits_reserved,
    SUBMISSIONS.c.reserved_at,
    SUBMISSIONS.c.credits_consumed,
    SUBMISSIONS.c.image_task_id,
    SUBMISSIONS.c.path,
    SUBMISSIONS.c.sha256,
)


class RefusedError(Exception):
    """A budget has no room for all of the reservations; the transaction is to be rolled back."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal)
        self.refusal = refusal


class PeriodMissingError(Exception):
    """The budgets have no row for a period yet; the transaction is to be rolled back."""


def reserve(connection: Any, reservations: Sequence[Reservation], budgets: Budgets, now: datetime) -> list[BudgetState]:
    """Write the rows of submissions that are about to be sent, and count their credits, all or none of them.

    Args:
        connection: In a transaction.
        reservations: They are all of one account.
        budgets: The budgets of the account.
        now: The time.

    Returns:
        The budgets that are nearly spent now, and were not before.

    Raises:
        RefusedError: If a budget has no room for them.
        PeriodMissingError: If `add_periods` has to be called first.
    """
    account = account_column(reservations[0].account)
    moment = naive_utc(now)
    rows = [one.columns() | {"status": str(BookStatus.RESERVED), "reserved_at": moment} for one in reservations]
    connection.execute(SUBMISSIONS.insert(), rows)
    amount = sum(row["credits_reserved"] for row in rows)
    price = max(row["credits_reserved"] for row in rows)
    limits = {period: budgets.limit_of(period) for period in periods_of(now)}
    for period, limit in limits.items():
        used = _spend(connection, account, period.key, amount, limit)
        if used is not None and limit is not None:
            raise RefusedError(Refusal(period, limit, used, price))
    limited = {period: limit for period, limit in limits.items() if limit is not None}
    now_used = _used(connection, account, [period.key for period in limited]) if limited else {}
    return [
        BudgetState(period, limit, now_used[period.key])
        for period, limit in limited.items()
        if is_nearly_spent(limit, now_used[period.key] - amount, now_used[period.key])
    ]


def _spend(connection: Any, account: str, period: str, amount: float, limit: float | None) -> float | None:
    """Count credits against a budget; if there is no room for them, return what counts already."""
    used = None
    for _ in range(_SPEND_TRIES):
        if _count(connection, account, period, amount, limit):
            return None
        used = _used(connection, account, [period]).get(period)
        if used is None or limit is None:
            raise PeriodMissingError
        # Otherwise another process has begun the period, or given credits back, since the statement before.
        if used + amount > limit + TOLERANCE:
            break
    return used


def _count(connection: Any, account: str, period: str, amount: float, limit: float | None) -> bool:
    """Count credits against a budget in one statement; return False if there is no room for them, or no row."""
    statement = sa.update(BUDGETS).where(BUDGETS.c.account == account, BUDGETS.c.period == period)
    if limit is not None:
        statement = statement.where(BUDGETS.c.credits + amount <= limit + TOLERANCE)
    return bool(connection.execute(statement.values(credits=BUDGETS.c.credits + amount)).rowcount)


def _used(connection: Any, account: str, periods: Sequence[str]) -> dict[str, float]:
    found = connection.execute(
        sa.select(BUDGETS.c.period, BUDGETS.c.credits).where(
            BUDGETS.c.account == account, BUDGETS.c.period.in_(list(periods))
        )
    )
    return {period: float(used) for period, used in found}


def add_periods(connection: Any, account: str, now: datetime) -> None:
    """Have the budgets of an account begin in the periods of a time, unless they have begun."""
    insert: Any = {"postgresql": postgresql.insert, "sqlite": sqlite.insert}.get(connection.dialect.name, mysql.insert)
    for period in periods_of(now):
        if _used(connection, account_column(account), [period.key]):
            continue
        # Not 0, if somebody has removed the row. In a query of its own, which locks no rows of submissions.
        counted = connection.execute(sa.select(sa.func.sum(counted_credits())).where(*_in_period(account, period)))
        values = {"account": account_column(account), "period": period.key, "credits": counted.scalar() or 0}
        statement = insert(BUDGETS).values(values)
        if connection.dialect.name in {"postgresql", "sqlite"}:
            statement = statement.on_conflict_do_nothing()
        else:
            statement = statement.prefix_with("IGNORE")
        connection.execute(statement)


def settle(connection: Any, changes: Iterable[Change], account: str, now: datetime) -> int:
    """Write what has become known about submissions, and correct what counts against the budgets.

    Args:
        connection: In a transaction.
        changes: What is known; at most one change of each submission. Submissions without a row are left out.
        account: The account of the submissions that are only known by their image tasks.
        now: The time.

    Returns:
        How many rows have changed.
    """
    changes = list(changes)
    by_id = {change.submission_id: change for change in changes if change.submission_id is not None}
    by_task = {
        task_id_column(change.image_task_id): change
        for change in changes
        if change.submission_id is None and change.image_task_id is not None
    }
    rows = rows_of(connection, sorted(by_id), for_update=True)
    # Databases differ in which texts are equal: for some "a" and "a ".
    pairs = [(row, by_id[row.submission_id]) for row in rows if row.submission_id in by_id]
    rows = rows_of(connection, sorted(by_task), by=SUBMISSIONS.c.image_task_id, for_update=True)
    pairs += [
        (row, by_task[row.image_task_id])
        for row in rows
        if row.account == account_column(account) and row.submission_id not in by_id and row.image_task_id in by_task
    ]
    altered = [(row, new) for row, change in pairs if (new := row.changed(change)) != row]
    corrections: dict[tuple[str, str], float] = defaultdict(float)
    for row, new in altered:
        for period in periods_of(row.reserved_at):
            corrections[row.account, period.key] += new.counted - row.counted
    _write(connection, altered, naive_utc(now))
    _correct(connection, corrections)
    return len(altered)


def _write(connection: Any, altered: Sequence[tuple[BookRow, BookRow]], moment: datetime) -> None:
    if not altered:
        return
    columns = ("status", "credits_consumed", "image_task_id", "path", "sha256")
    values = [
        {f"new_{name}": getattr(new, name) for name in columns}
        | {
            "new_status": str(new.status),
            "id": new.submission_id,
            "submitted": moment if new.image_task_id is not None else None,
            "settled": moment if new.status not in {BookStatus.RESERVED, BookStatus.SUBMITTED} else None,
        }
        for _, new in sorted(altered, key=lambda pair: pair[1].submission_id)
    ]
    connection.execute(
        sa.update(SUBMISSIONS)
        .where(SUBMISSIONS.c.submission_id == sa.bindparam("id"))
        .values(
            {
                **{name: sa.bindparam(f"new_{name}") for name in columns},
                # The first of each.
                "submitted_at": sa.func.coalesce(
                    SUBMISSIONS.c.submitted_at, sa.bindparam("submitted", type_=SUBMISSIONS.c.submitted_at.type)
                ),
                "settled_at": sa.func.coalesce(
                    SUBMISSIONS.c.settled_at, sa.bindparam("settled", type_=SUBMISSIONS.c.settled_at.type)
                ),
            }
        ),
        values,
    )


def _correct(connection: Any, corrections: Mapping[tuple[str, str], float]) -> None:
    def order(correction: tuple[tuple[str, str], float]) -> tuple[str, bool, str]:
        (account, period), _ = correction
        return account, is_month(period), period

    for (account, period), amount in sorted(corrections.items(), key=order):
        if abs(amount) > TOLERANCE:
            connection.execute(
                sa.update(BUDGETS)
                .where(BUDGETS.c.account == account, BUDGETS.c.period == period)
                .values(credits=BUDGETS.c.credits + amount)
            )


def rows_of(
    connection: Any, values: Sequence[str], *, by: Any = SUBMISSIONS.c.submission_id, for_update: bool = False
) -> list[BookRow]:
    """Return the rows with some values in a column.

    Args:
        connection: In a transaction.
        values: The values.
        by: The column.
        for_update: Whether nobody else may change them before the end of the transaction.
    """
    found: list[BookRow] = []
    for begin in range(0, len(values), MOST_IDS):
        statement = sa.select(*_COLUMNS).where(by.in_(values[begin : begin + MOST_IDS]))
        if for_update:
            statement = statement.order_by(SUBMISSIONS.c.submission_id).with_for_update()
        found += [row_from(one) for one in connection.execute(statement)]
    return found


def row_from(one: Any) -> BookRow:
    """Return a row as it is stored, as what may be changed of it."""
    fields: Mapping[str, Any] = one._mapping  # noqa: SLF001  SQLAlchemy's public name for it
    return BookRow(
        **{name: fields[name] for name in ("submission_id", "account", "image_task_id", "path", "sha256")},
        status=status_from(fields["status"]),
        credits_reserved=float(fields["credits_reserved"]),
        credits_consumed=None if fields["credits_consumed"] is None else float(fields["credits_consumed"]),
        reserved_at=fields["reserved_at"],
    )


def spenders_of(connection: Any, account: str, period: Period, most: int) -> list[tuple[str, float]]:
    """Return the DAGs that spent or reserved most in a period, with their credits.

    Args:
        connection: A connection.
        account: The account.
        period: The period.
        most: How many DAGs.
    """
    amount = sa.func.sum(counted_credits()).label("amount")
    statement = (
        sa.select(SUBMISSIONS.c.dag_id, amount)
        .where(*_in_period(account, period))
        .group_by(SUBMISSIONS.c.dag_id)
        .order_by(amount.desc())
        .limit(most)
    )
    return [(str(dag_id), float(spent)) for dag_id, spent in connection.execute(statement) if spent]


def _in_period(account: str, period: Period) -> tuple[Any, ...]:
    reserved_at = SUBMISSIONS.c.reserved_at
    return (
        SUBMISSIONS.c.account == account_column(account),
        reserved_at >= period_begin(period),
        reserved_at < naive_utc(period.ends),
    )


def counted_credits() -> Any:
    """Return the SQL expression of what a row counts for; see `BookRow.counted`."""
    return sa.case(
        (SUBMISSIONS.c.status == str(BookStatus.WITHDRAWN), sa.literal(0)),
        (is_ended(), sa.func.coalesce(SUBMISSIONS.c.credits_consumed, SUBMISSIONS.c.credits_reserved)),
        else_=SUBMISSIONS.c.credits_reserved,
    )


def is_ended() -> Any:
    """Return the SQL expression of whether the end of a submission is known."""
    return SUBMISSIONS.c.status.in_([str(BookStatus.DONE), str(BookStatus.FAILED)])


def is_at_risk() -> Any:
    """Return the SQL expression of whether a submission may still cost what is reserved; an unknown status may."""
    return SUBMISSIONS.c.status.notin_([str(BookStatus.DONE), str(BookStatus.FAILED), str(BookStatus.WITHDRAWN)])


def last_price(connection: Any, account: str) -> float | None:
    """Return what an image of an account has lately cost; None if none is done.

    It is the lowest price of the last three: a single odd number of the API must not be assumed for everybody's next
    image, which no budget might have room for.
    """
    found = connection.execute(
        sa.select(SUBMISSIONS.c.credits_consumed)
        .where(
            SUBMISSIONS.c.account == account_column(account),
            SUBMISSIONS.c.status == str(BookStatus.DONE),
            SUBMISSIONS.c.credits_consumed.is_not(None),
        )
        .order_by(SUBMISSIONS.c.reserved_at.desc())
        .limit(_LAST_PRICES)
    ).scalars()
    return min(map(float, found), default=None)


def period_begin(period: Period) -> datetime:
    """Return the first moment of a period, as the books store it."""
    return datetime.fromisoformat(f"{period.key}-01" if is_month(period.key) else period.key)


def is_month(key: str) -> bool:
    """Whether a period of this name is a month."""
    return len(key) == len("2026-11")


def naive_utc(moment: datetime) -> datetime:
    """Return a time as the books store it."""
    return moment.astimezone(UTC).replace(tzinfo=None)
