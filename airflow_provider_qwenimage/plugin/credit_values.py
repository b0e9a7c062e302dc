"""What was read from the books of an account, for the page Credits. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from airflow_provider_qwenimage.books.reports import Spending, Submission
    from airflow_provider_qwenimage.rules.budgets import BudgetState


@dataclass(frozen=True)
class AccountBudget:
    """A budget of an account.

    Attributes:
        account: The id of its connection.
        state: The budget, and what is used of it.
        spenders: The credits that each DAG has spent or reserved of it.
        is_cut: Whether there are more DAGs.
    """

    account: str
    state: BudgetState
    spenders: Mapping[str, float]
    is_cut: bool


@dataclass(frozen=True)
class Overview:
    """What books say about all DAGs; a user must not see it as it is.

    Attributes:
        dag_ids: The DAGs that spent or reserved credits, by account. Submissions outside DAGs have the id "".
        budgets: The budgets of the accounts.
        is_cut: Whether there are more DAGs.
    """

    dag_ids: Mapping[str, frozenset[str]]
    budgets: tuple[AccountBudget, ...]
    is_cut: bool

    @property
    def weight(self) -> int:
        """About the number of values."""
        return sum(map(len, self.dag_ids.values())) + sum(1 + len(one.spenders) for one in self.budgets)


@dataclass(frozen=True)
class Details:
    """What some DAGs have spent.

    Attributes:
        spending: By day and DAG.
        at_risk: The newest submissions whose end is not known.
        failures: The newest submissions that failed and cost credits.
        is_cut: Whether `spending` leaves out those that spent least.
    """

    spending: tuple[Spending, ...] = ()
    at_risk: tuple[Submission, ...] = ()
    failures: tuple[Submission, ...] = ()
    is_cut: bool = False

    @property
    def weight(self) -> int:
        """The number of rows."""
        return len(self.spending) + len(self.at_risk) + len(self.failures)
