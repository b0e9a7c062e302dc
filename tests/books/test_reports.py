"""Reports count each submission once, in the day and group that it belongs to, whatever is stored in the tables."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest

from airflow_provider_qwenimage.books import accounting, reports
from airflow_provider_qwenimage.books.reports import Spending
from airflow_provider_qwenimage.rules.book_rows import BookStatus, Change
from airflow_provider_qwenimage.rules.budgets import Budgets, BudgetState, periods_of
from tests.books.writing import EVENING, NO_BUDGETS, WrittenBooks
from tests.databases.server import Database

MORNING = EVENING + timedelta(minutes=2)


@pytest.fixture
def books(database: Database) -> Iterator[WrittenBooks]:
    with WrittenBooks.at(database.url) as books:
        yield books


def test_each_status_counts_where_it_belongs(books: WrittenBooks) -> None:
    for status, consumed in {
        "reserved": None,
        "submitted": None,
        "unknown": None,
        "withdrawn": None,
        "done": 4.5,
        "failed": 2.0,
    }.items():
        books.submit(status, consumed=consumed)
    total = Spending((), submissions=5, images=1, credits=6.5, at_risk=15, failed=1, failed_credits=2)
    assert books.spending() == [total]


def test_what_the_api_did_not_report_counts_as_reserved_as_in_the_budgets(books: WrittenBooks) -> None:
    books.submit("done")
    books.submit("failed")
    (total,) = books.spending()
    assert (total.credits, total.failed_credits) == (10, 5)
    (state,) = books.do(reports.budget_states, "qwen", Budgets(per_day=100), EVENING)
    assert state.used == total.credits + total.at_risk


def test_a_day_ends_at_midnight_in_utc(books: WrittenBooks) -> None:
    books.submit(at=EVENING)
    books.submit(at=MORNING)
    books.submit(at=MORNING.astimezone(tz=None))
    assert [(one.key, one.submissions) for one in books.spending(["day"])] == [
        (("2026-11-26",), 1),
        (("2026-11-27",), 2),
    ]


def test_groups_are_sorted_and_a_task_is_known_by_its_dag(books: WrittenBooks) -> None:
    for dag_id, task_id in [("owls", "draw"), ("foxes", "draw"), ("foxes", "Draw"), ("foxes", "draw")]:
        books.submit(dag_id=dag_id, task_id=task_id)
    assert reports.key_columns(["account", "task"]) == ("account", "dag_id", "task_id")
    assert [(one.key, one.submissions) for one in books.spending(["account", "task"])] == [
        (("qwen", "foxes", "Draw"), 1),
        (("qwen", "foxes", "draw"), 2),
        (("qwen", "owls", "draw"), 1),
    ]


def test_earlier_submissions_other_accounts_and_other_dags_are_left_out(books: WrittenBooks) -> None:
    books.submit(at=EVENING)
    books.submit(at=MORNING)
    books.submit(at=MORNING, account="other")
    books.submit(at=MORNING, dag_id="owls")
    (total,) = books.spending(since=MORNING, accounts={"qwen"}, dag_ids={"foxes"})
    assert total.submissions == 1
    assert books.spending(dag_ids=()) == []
    assert books.spending(accounts=()) == []


def test_a_choice_of_thousands_of_dags_counts_each_submission_once(books: WrittenBooks) -> None:
    dag_ids = [f"dag_{number}" for number in range(2500)]
    for dag_id in ("dag_0", "dag_1200", "dag_2499", "another"):
        books.submit(dag_id=dag_id)
    assert [one.submissions for one in books.spending(dag_ids=[*dag_ids, "dag_0"])] == [3]
    assert [one.key for one in books.spending(["dag"], dag_ids=dag_ids, most=2)] == [("dag_0",), ("dag_1200",)]
    assert len(books.do(reports.at_risk_rows, dag_ids=dag_ids, most=10)) == 3


def test_of_too_many_groups_those_that_spent_most_are_reported(books: WrittenBooks) -> None:
    for dag_id, consumed in [("a", 1.0), ("b", 3.0), ("c", 2.0)]:
        books.submit("done", dag_id=dag_id, consumed=consumed)
    assert [one.key for one in books.spending(["dag"], most=2)] == [("b",), ("c",)]


def test_a_budget_has_left_what_is_neither_spent_nor_reserved(books: WrittenBooks) -> None:
    books.submit("done", consumed=4.0)
    books.submit("withdrawn")
    books.submit()
    day, month = periods_of(EVENING)
    assert books.do(reports.budget_states, "qwen", Budgets(20, 8), EVENING) == [
        BudgetState(day, 20, 9),
        BudgetState(month, 8, 9),
    ]
    assert BudgetState(day, 20, 9).left == 11
    assert BudgetState(month, 8, 9).left == 0
    assert books.do(reports.budget_states, "qwen", NO_BUDGETS, EVENING) == []
    assert [one.used for one in books.do(reports.budget_states, "nobody", Budgets(20), EVENING)] == [0]


def test_the_newest_submissions_at_risk_are_listed_first(books: WrittenBooks) -> None:
    books.submit("done", at=MORNING)
    first, second, third = (books.submit(at=EVENING + timedelta(hours=hour), batch_row=hour) for hour in (0, 2, 1))
    found = books.do(reports.at_risk_rows, most=2)
    assert [one.submission_id for one in found] == [second, third]
    assert (found[0].reserved_at, found[0].batch_row) == (EVENING + timedelta(hours=2), 2)
    assert first not in {one.submission_id for one in books.do(reports.at_risk_rows, since=MORNING, most=9)}


def test_failures_that_cost_nothing_are_not_listed(books: WrittenBooks) -> None:
    books.submit("failed", consumed=0.0)
    books.submit("done", consumed=4.0)
    costly = books.submit("failed", consumed=1.0)
    found = books.do(reports.costly_failures, most=9)
    assert [(one.submission_id, one.credits_consumed) for one in found] == [(costly, 1.0)]


def test_a_status_that_this_version_does_not_know_is_at_risk_and_is_never_changed(books: WrittenBooks) -> None:
    submission_id = books.submit()
    books.overwrite(submission_id, status="\x1b[31mrefunded")
    assert [one.at_risk for one in books.spending()] == [5]
    assert [one.status for one in books.do(reports.at_risk_rows, most=9)] == ["\x1b[31mrefunded"]
    change = Change(status=BookStatus.DONE, submission_id=submission_id, credits_consumed=4.0)
    assert books.do(accounting.settle, [change], "qwen", MORNING) == 0
    assert [one.used for one in books.do(reports.budget_states, "qwen", Budgets(100), EVENING)] == [5]


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_values_of_another_type_end_no_report(books: WrittenBooks) -> None:
    """SQLite stores them; the others do not."""
    values = {"reserved_at": "yesterday", "credits_reserved": "many", "map_index": "first", "batch_row": "x"}
    books.overwrite(books.submit(), **values)
    books.submit()
    (total,) = books.spending(["day", "dag"], dag_ids=["foxes"])[-1:]
    assert total.key == ("2026-11-26", "foxes")
    odd = next(one for one in books.do(reports.at_risk_rows, most=9) if one.reserved_at is None)
    assert (odd.credits_reserved, odd.map_index, odd.batch_row) == (0, -1, 0)
