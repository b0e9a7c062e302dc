"""Who sees what is used of a budget, decided with plain values."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from airflow_provider_qwenimage.plugin.credit_accounts import Account
from airflow_provider_qwenimage.plugin.credit_values import AccountBudget, Details, Overview
from airflow_provider_qwenimage.plugin.credits_view import BudgetLine, CreditsPage, Rights, days_until, page_of_books
from airflow_provider_qwenimage.rules.budgets import BooksOptions, Budgets, BudgetState, periods_of

NOW = datetime(2026, 11, 27, 12, 0, tzinfo=UTC)
ACCOUNT = Account("images", BooksOptions("books", Budgets(per_day=100)))


def page(
    rights: Rights, *, used: float = 10, spenders: dict[str, float] | None = None, is_cut: bool = False, **fields: Any
) -> CreditsPage:
    spent = {"foxes": 10.0} if spenders is None else spenders
    state = BudgetState(periods_of(NOW)[0], 100, used)
    overview = Overview({"images": frozenset(spent)}, (AccountBudget("images", state, spent, is_cut),), is_cut)
    return page_of_books(
        now=NOW,
        accounts=fields.get("accounts", [ACCOUNT]),
        overviews={"books": overview},
        details={"books": Details()},
        rights=rights,
        root="",
        most_rows=5,
    )


def budget(rights: Rights, **fields: Any) -> BudgetLine:
    ((line,),) = [account.budgets for account in page(rights, **fields).accounts]
    return line


FOXES = Rights(frozenset({"foxes"}))


def test_the_days_end_today_in_utc() -> None:
    days = days_until(datetime.fromisoformat("2026-11-27T23:30:00-05:00"))
    assert (len(days), str(days[0]), str(days[-1])) == (30, "2026-10-30", "2026-11-28")


def test_a_budget_is_shown_to_who_may_read_all_who_spend_from_it() -> None:
    line = budget(FOXES)
    assert (line.used, line.left, line.is_nearly_spent) == (10, 90, False)
    assert line.resets == "2026-11-28 00:00 UTC"
    assert budget(FOXES, used=80, spenders={"foxes": 80}).is_nearly_spent


@pytest.mark.parametrize(
    "fields",
    [
        {"spenders": {"foxes": 5, "hares": 5}},
        # A submission that costs nothing yet is one.
        {"spenders": {"foxes": 10, "hares": 0}},
        {"spenders": {"foxes": 5, "": 5}},
        # Rows of others were deleted.
        {"used": 25},
        {"is_cut": True},
    ],
)
def test_a_budget_is_not_shown_if_others_may_have_spent_from_it(fields: dict[str, Any]) -> None:
    line = budget(FOXES, **fields)
    assert (line.used, line.left, line.is_nearly_spent) == (None, None, False)
    assert line.limit == 100


def test_who_may_read_every_dag_sees_what_deleted_rows_have_spent() -> None:
    every = Rights(frozenset({"foxes"}), all_dags=True)
    assert budget(every, used=25, spenders={"foxes": 5, "": 5}).used == 25
    # Some auth managers take a single DAG away from somebody who may read every other one.
    assert budget(every, spenders={"foxes": 5, "hares": 5}).used is None


def test_an_account_is_shown_to_who_may_read_it_or_a_dag_that_spends_from_it() -> None:
    assert page(Rights(frozenset({"hares"}))).accounts == ()
    assert page(Rights(conn_ids=frozenset({"images"}))).accounts[0].budgets[0].used is None
    assert page(Rights(all_dags=True)).accounts[0].conn_id == "images"


def test_only_who_may_read_a_connection_sees_what_is_wrong_with_its_extra() -> None:
    bad = Account("bad", problem="has credits_per_day = 'a-secret' in its extra; it must be a number above 0.")
    for rights, is_shown in ((Rights(conn_ids=frozenset({"bad"})), True), (Rights(all_dags=True), False)):
        (line,) = page(rights, accounts=[bad]).accounts
        assert ("a-secret" in line.note) is is_shown
        assert line.is_problem
    assert page(FOXES, accounts=[bad]).accounts == ()
