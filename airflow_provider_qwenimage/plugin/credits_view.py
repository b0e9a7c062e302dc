"""Decides what a user sees on the page Credits: nothing about DAGs that the user may not read. No I/O."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING

from airflow_provider_qwenimage.plugin.bounds import MOST_NAME, text
from airflow_provider_qwenimage.plugin.credits_chart import Chart, chart_of
from airflow_provider_qwenimage.rules.budgets import WARNING_SHARE
from airflow_provider_qwenimage.rules.gallery_urls import task_page

if TYPE_CHECKING:
    from airflow_provider_qwenimage.books.reports import Submission
    from airflow_provider_qwenimage.plugin.credit_accounts import Account
    from airflow_provider_qwenimage.plugin.credit_values import AccountBudget, Details, Overview

DAYS = 30
MOST_DAGS = 200
# An id of a DAG has no spaces.
NO_DAG = "not from a task"
# Sums of a database may differ by less.
_TOLERANCE = 0.001


@dataclass(frozen=True)
class Rights:
    """What a user may read.

    Attributes:
        dag_ids: The DAGs, of those that were asked about.
        all_dags: Whether the user may read any DAG, so also what no DAG has spent.
        conn_ids: The connections, of those that were asked about.
    """

    dag_ids: frozenset[str] = frozenset()
    all_dags: bool = False
    conn_ids: frozenset[str] = frozenset()


@dataclass(frozen=True)
class BudgetLine:
    """A budget. What is used is None if it says something about DAGs that the user may not read."""

    name: str
    limit: float
    resets: str
    used: float | None = None
    left: float | None = None
    is_nearly_spent: bool = False


@dataclass(frozen=True)
class AccountLine:
    """An account, with its budgets or the reason why they are not known."""

    conn_id: str
    budgets: tuple[BudgetLine, ...] = ()
    note: str = ""
    is_problem: bool = False
    is_without_books: bool = False


@dataclass(frozen=True)
class DagLine:
    """What a DAG has spent."""

    dag_id: str
    submissions: int = 0
    images: int = 0
    credits: float = 0
    at_risk: float = 0
    failed: int = 0
    failed_credits: float = 0


@dataclass(frozen=True)
class SubmissionLine:
    """A submission, with the path of its task's page in Airflow."""

    dag_id: str
    run_id: str
    task: str
    url: str
    account: str
    status: str
    since: str
    credits: float


@dataclass(frozen=True)
class SubmissionList:
    """Submissions, the newest first."""

    lines: tuple[SubmissionLine, ...] = ()
    has_more: bool = False


@dataclass(frozen=True)
class CreditsPage:
    """Everything that the page shows.

    Attributes:
        chart: Credits by day and DAG.
        total: The sum of `dags`.
        dags: What each DAG has spent, those that spent most first.
        notes: Sentences about what is missing.
        accounts: The accounts with their budgets.
        at_risk: Submissions whose end is not known.
        failures: Submissions that failed and cost credits.
        is_of_books: Whether the numbers are from books, and not from XComs.
    """

    chart: Chart
    total: DagLine
    dags: tuple[DagLine, ...]
    notes: tuple[str, ...] = ()
    accounts: tuple[AccountLine, ...] = ()
    at_risk: SubmissionList = field(default_factory=SubmissionList)
    failures: SubmissionList = field(default_factory=SubmissionList)
    is_of_books: bool = True

    @property
    def has_accounts_without_books(self) -> bool:
        """Whether there are credits that no books have."""
        return any(account.is_without_books for account in self.accounts)


def days_until(now: datetime) -> tuple[date, ...]:
    """Return the days that the page shows, in UTC; the last is today."""
    today = now.astimezone(UTC).date()
    return tuple(today - timedelta(days=DAYS - 1 - index) for index in range(DAYS))


def page_of_books(
    *,
    now: datetime,
    accounts: Sequence[Account],
    overviews: Mapping[str, Overview | str],
    details: Mapping[str, Details | str],
    rights: Rights,
    root: str,
    most_rows: int,
) -> CreditsPage:
    """Return the page of accounts with books.

    Args:
        now: The time.
        accounts: All accounts.
        overviews: By the connection to the books; instead of what cannot be read, why.
        details: The same, of the DAGs that the user may read.
        rights: What the user may read.
        root: The path of Airflow's base URL.
        most_rows: The most submissions of a list.
    """
    lines, notes = [], []
    for account in accounts:
        overview = overviews.get(account.options.conn_id or "")
        if _sees_account(account, overview, rights):
            lines.append(_account_line(account, overview, rights))
    read: Mapping[str, Overview | Details | str] = {**overviews, **details}
    for name, problem in read.items():
        if not isinstance(problem, str):
            continue
        shown = [one.conn_id for one in accounts if one.options.conn_id == name and _may_see_problem(one, rights)]
        if shown:
            notes.append(f"The books of {_listed(shown)} {problem}")
        else:
            notes.append("Some books cannot be read now, so credits may be missing here.")
    found = [one for one in details.values() if not isinstance(one, str)]
    if any(one.is_cut for one in found):
        notes.append("There are more DAGs than this page can add up; it leaves out those that spent least.")
    by_dag: dict[str, list[DagLine]] = defaultdict(list)
    amounts: dict[tuple[str, str], float] = defaultdict(float)
    for one in (row for each in found for row in each.spending):
        day, dag_id = one.key[0], _dag_name(one.key[1])
        amounts[day, dag_id] += one.credits + one.at_risk
        by_dag[dag_id].append(
            DagLine(dag_id, one.submissions, one.images, one.credits, one.at_risk, one.failed, one.failed_credits)
        )
    return CreditsPage(
        chart=chart_of(days_until(now), amounts),
        total=_sum("", [line for each in by_dag.values() for line in each]),
        dags=_ordered(_sum(dag_id, each) for dag_id, each in by_dag.items()),
        notes=tuple(dict.fromkeys(notes)),
        accounts=tuple(lines),
        at_risk=_list([row for one in found for row in one.at_risk], root, most_rows),
        failures=_list([row for one in found for row in one.failures], root, most_rows),
    )


def page_of_xcoms(
    now: datetime,
    amounts: Mapping[tuple[str, str], float],
    accounts: Sequence[Account],
    rights: Rights,
    *,
    is_cut: bool = False,
) -> CreditsPage:
    """Return the page without books.

    Args:
        now: The time.
        amounts: Credits by day and DAG, of DAGs that the user may read.
        accounts: All accounts.
        rights: What the user may read.
        is_cut: Whether the oldest XComs were left out.
    """
    by_dag: dict[str, list[DagLine]] = defaultdict(list)
    for (_, dag_id), amount in amounts.items():
        by_dag[dag_id].append(DagLine(_dag_name(dag_id), credits=amount))
    return CreditsPage(
        chart=chart_of(
            days_until(now), {(day, _dag_name(dag_id)): amount for (day, dag_id), amount in amounts.items()}
        ),
        total=_sum("", [line for each in by_dag.values() for line in each]),
        dags=_ordered(_sum(_dag_name(dag_id), each) for dag_id, each in by_dag.items()),
        notes=("There are more XComs than this page can add up; it leaves out the oldest.",) if is_cut else (),
        accounts=tuple(_account_line(one, None, rights) for one in accounts if _sees_account(one, None, rights)),
        is_of_books=False,
    )


def _sees_account(account: Account, overview: Overview | str | None, rights: Rights) -> bool:
    """Whether the user may know that there is an account: who may read it, or a DAG that spends from it."""
    if _may_see_problem(account, rights):
        return True
    if overview is None or isinstance(overview, str):
        return False
    return bool(overview.dag_ids.get(account.conn_id, frozenset()) & rights.dag_ids)


def _may_see_problem(account: Account, rights: Rights) -> bool:
    return rights.all_dags or account.conn_id in rights.conn_ids


def _account_line(account: Account, overview: Overview | str | None, rights: Rights) -> AccountLine:
    conn_id = _name(account.conn_id)
    if account.problem is not None:
        # It may quote what somebody wrote into the wrong field.
        of_extra = account.problem if account.conn_id in rights.conn_ids else "has an extra that cannot be used."
        return AccountLine(conn_id, note=f"This connection {of_extra}", is_problem=True)
    if account.options.conn_id is None:
        return AccountLine(conn_id, note="No books: books_conn_id is not set in its extra.", is_without_books=True)
    if isinstance(overview, str):
        return AccountLine(conn_id, note=f"Its books {overview}", is_problem=True)
    budgets = (
        ()
        if overview is None
        else tuple(_budget_line(one, rights) for one in overview.budgets if one.account == account.conn_id)
    )
    return AccountLine(conn_id, budgets, note="" if budgets else "No budget is set.")


def _budget_line(budget: AccountBudget, rights: Rights) -> BudgetLine:
    state = budget.state
    name = "day" if state.period.option.endswith("day") else "month"
    line = BudgetLine(name, state.limit, f"{state.period.ends:%Y-%m-%d %H:%M} UTC")
    if not _may_see_used(budget, rights):
        return line
    return BudgetLine(
        line.name, line.limit, line.resets, state.used, state.left, state.used >= WARNING_SHARE * state.limit
    )


def _may_see_used(budget: AccountBudget, rights: Rights) -> bool:
    """Whether all that is used was used by DAGs that the user may read."""
    if budget.is_cut or not all(may_read(dag_id, rights) for dag_id in budget.spenders):
        return False
    # Rows may be deleted: then somebody has used what no row says.
    return rights.all_dags or budget.state.used <= math.fsum(budget.spenders.values()) + _TOLERANCE


def may_read(dag_id: str, rights: Rights) -> bool:
    """Whether the user may read what the books say about a DAG; without an id, what was spent outside tasks."""
    return dag_id in rights.dag_ids if dag_id else rights.all_dags


def _list(rows: Collection[Submission], root: str, most: int) -> SubmissionList:
    newest = sorted(rows, key=lambda row: row.reserved_at or datetime.min.replace(tzinfo=UTC), reverse=True)
    return SubmissionList(tuple(_submission_line(row, root) for row in newest[:most]), len(newest) > most)


def _submission_line(row: Submission, root: str) -> SubmissionLine:
    dag_id, run_id, task_id = _name(row.dag_id), _name(row.run_id), _name(row.task_id)
    mapped = "" if row.map_index < 0 else f"[{row.map_index}]"
    of_batch = "" if row.batch_row is None else f", row {row.batch_row}"
    is_linked = bool(dag_id and run_id and task_id)
    return SubmissionLine(
        dag_id=dag_id or NO_DAG,
        run_id=run_id,
        task=f"{task_id}{mapped}{of_batch}",
        url=f"{root}{task_page(dag_id, run_id, task_id, row.map_index)}" if is_linked else "",
        account=_name(row.account),
        status=_name(row.status),
        since=f"{row.reserved_at:%Y-%m-%d %H:%M} UTC" if row.reserved_at else "",
        credits=row.credits_reserved if row.credits_consumed is None else row.credits_consumed,
    )


def _sum(dag_id: str, lines: Sequence[DagLine]) -> DagLine:
    return DagLine(
        dag_id,
        submissions=sum(line.submissions for line in lines),
        images=sum(line.images for line in lines),
        credits=math.fsum(line.credits for line in lines),
        at_risk=math.fsum(line.at_risk for line in lines),
        failed=sum(line.failed for line in lines),
        failed_credits=math.fsum(line.failed_credits for line in lines),
    )


def _ordered(lines: Iterable[DagLine]) -> tuple[DagLine, ...]:
    return tuple(sorted(lines, key=lambda line: (-line.credits - line.at_risk, line.dag_id))[:MOST_DAGS])


def _dag_name(dag_id: str) -> str:
    return _name(dag_id) or NO_DAG


def _name(value: str) -> str:
    return text(value, MOST_NAME) or ""


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"connection {_name(name)!r}" for name in names)
