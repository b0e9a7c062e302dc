"""Writes what was spent, and what is left of the budgets, as a table, JSON or CSV. No I/O."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime

from airflow_provider_qwenimage.books.reports import Spending
from airflow_provider_qwenimage.rules.budgets import BudgetState
from airflow_provider_qwenimage.text.messages import printable, shown

# The values of a group, after its key, in this order.
VALUES = ("submissions", "images", "credits", "at_risk", "failed", "failed_credits")
_DECIMALS = 6
# A spreadsheet would run what begins with one of these.
_FORMULA = ("=", "+", "-", "@")


@dataclass(frozen=True, kw_only=True)
class SpendingReport:
    """What the command shows.

    Attributes:
        account: The connection, or None for all of them.
        since: Submissions that were reserved earlier are left out.
        columns: The names of the values in the groups' keys.
        groups: The groups.
        total: All of them, and those that were too many to show; None if there are none.
        is_complete: Whether all groups are shown.
        budgets_of: The connection that the budgets belong to.
        budgets: Its budgets.
    """

    account: str | None
    since: datetime
    columns: Sequence[str]
    groups: Sequence[Spending]
    total: Spending | None
    is_complete: bool
    budgets_of: str
    budgets: Sequence[BudgetState]

    def lines(self, output: str) -> Iterator[str]:
        """Return the lines of a format: "table", "json" or "csv"."""
        if output == "json":
            return iter([json.dumps(self._to_json())])
        return self._csv() if output == "csv" else self._table()

    def _to_json(self) -> dict[str, object]:
        total = self.total or Spending((), 0, 0, 0.0, 0.0, 0, 0.0)
        return {
            "account": self.account,
            "since": self.since.isoformat(timespec="seconds"),
            "groups": [dict(zip(self.columns, one.key, strict=True)) | _values(one) for one in self.groups],
            "is_complete": self.is_complete,
            "total": _values(total),
            "budgets": [
                {
                    "account": self.budgets_of,
                    "budget": state.period.option,
                    "period": state.period.key,
                    "limit": _rounded(state.limit),
                    "used": _rounded(state.used),
                    "left": _rounded(state.left),
                    "ends": state.period.ends.isoformat(),
                }
                for state in self.budgets
            ],
        }

    def _csv(self) -> Iterator[str]:
        yield _csv_line([*self.columns, *VALUES])
        for one in self.groups:
            yield _csv_line([*map(_not_a_formula, one.key), *map(_number, _values(one).values())])

    def _table(self) -> Iterator[str]:
        rows = [_cells(one, [printable(value) for value in one.key]) for one in self.groups]
        if self.total is not None:
            rows.append(_cells(self.total, ["total", *("" for _ in self.columns[1:])]))
        yield from _aligned([*self.columns, *(name.replace("_", " ") for name in VALUES)], rows, len(self.columns))
        yield ""
        whose = "all connections" if self.account is None else f"connection {shown(self.account)}"
        yield f"Submissions of {whose} since {self.since:%Y-%m-%d %H:%M} UTC."
        if not self.is_complete:
            yield f"Only the {len(self.groups)} that spent most are shown; the total has the others as well."
        for state in self.budgets:
            period = state.period
            yield (
                f"{period.option} of connection {shown(self.budgets_of)}: {_number(state.left)} of "
                f"{_number(state.limit)} credits left for {period.key}; the next budget begins at "
                f"{period.ends:%Y-%m-%d %H:%M} UTC."
            )


def _values(one: Spending) -> dict[str, float]:
    fields = asdict(one)
    return {name: _rounded(fields[name]) for name in VALUES}


def _rounded(amount: float) -> float:
    """Return a number as the database stores it: sums of fractions have more digits."""
    rounded = round(amount, _DECIMALS)
    return int(rounded) if rounded == int(rounded) else rounded


def _number(amount: float) -> str:
    return f"{amount:.{_DECIMALS}f}".rstrip("0").rstrip(".")


def _cells(one: Spending, key: list[str]) -> list[str]:
    return [*key, *map(_number, _values(one).values())]


def _aligned(heads: list[str], rows: list[list[str]], left: int) -> Iterator[str]:
    """Return the lines of a table whose first columns are texts, and the others numbers."""
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    for number, row in enumerate([heads, *rows]):
        cells = zip(row, widths, strict=True)
        parts = [text.ljust(width) if at < left else text.rjust(width) for at, (text, width) in enumerate(cells)]
        yield " | ".join(parts).rstrip()
        if number == 0:
            yield "=+=".join("=" * width for width in widths)


def _not_a_formula(text: str) -> str:
    """Return a text that a spreadsheet shows as it is: an apostrophe before it makes it a text there."""
    text = printable(text)
    return f"'{text}" if text.startswith(_FORMULA) else text


def _csv_line(values: Sequence[str]) -> str:
    written = io.StringIO()
    # RFC 4180 ends lines with CR and LF; the LF is added when the line is printed.
    csv.writer(written, lineterminator="\r").writerow(values)
    return written.getvalue()
