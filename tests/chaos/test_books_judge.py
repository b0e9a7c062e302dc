"""The judge of the books: what they say must be what the API charged, image task by image task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from tests.chaos.books_judge import BooksEvidence, BooksRow

PERIODS = ("2026-11-27", "2026-11")
DONE = BooksRow("s1", "house", "done", 5, 5, "a", "hash", PERIODS)
FAILED = BooksRow("s2", "house", "failed", 5, 0, "b", None, PERIODS)
LOST = BooksRow("s3", "house", "unknown", 5, None, None, None, PERIODS)
RESERVED = replace(LOST, submission_id="s4", status="reserved")
WITHDRAWN = replace(LOST, submission_id="s5", status="withdrawn")
ROWS = (DONE, FAILED, LOST, RESERVED, WITHDRAWN)
CHARGED = {"a": 5, "b": 0, "lost": 5}


def judge(rows: Sequence[BooksRow] = ROWS, charged: Mapping[str, float] = CHARGED, used: float = 15) -> list[str]:
    budgets = {("house", period): used for period in PERIODS}
    return BooksEvidence(rows, budgets, {"house": charged}, {"a": "hash", "of nobody": "hash"}).complaints()


def with_row(number: int, **changes: Any) -> list[BooksRow]:
    return [replace(row, **changes) if index == number else row for index, row in enumerate(ROWS)]


def test_books_that_say_what_was_charged_give_no_complaint() -> None:
    assert judge() == []
    # Each row that is lost may have been accepted, or not.
    assert judge(charged={"a": 5, "b": 0}) == judge(charged=CHARGED | {"other": 5}) == []


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        (with_row(0, status="submitted"), "s1 is submitted, so it is not settled"),
        (with_row(0, credits_consumed=4), "s1 is done, and says 4 credits, but image task a cost 5"),
        (with_row(1, credits_consumed=5), "s2 is failed, and says 5 credits, but image task b cost 0"),
        (with_row(0, sha256=None), "the image of image task a is stored, but its row is"),
        (with_row(0, image_task_id=None), "s1 is done, but has no image task"),
        (with_row(2, image_task_id="c"), "s3 is unknown, but image task c was never accepted"),
        (with_row(4, image_task_id="lost"), "s5 is withdrawn, but image task lost was accepted"),
        ([*ROWS, replace(DONE, submission_id="s6")], "s6 and s1 are both about image task a"),
        (ROWS[:2], "no row is about image tasks lost, and only 0 rows are lost"),
        (ROWS[1:], "the image of image task a is stored, but its row is None"),
    ],
)
def test_a_row_that_is_wrong_or_missing_gives_a_complaint(rows: Sequence[BooksRow], complaint: str) -> None:
    assert complaint in "\n".join(judge(rows))


def test_the_charge_must_be_what_is_consumed_plus_at_most_what_is_at_risk() -> None:
    words = "the API charged 21 credits, but the rows have consumed 5, and 10 are at risk"
    assert words in judge(charged=CHARGED | {"lost": 16})[0]
    assert "the API charged 4 credits" in "\n".join(judge(charged={"a": 4, "b": 0}))


@pytest.mark.parametrize("used", [14.9, 15.1, 20])
def test_budgets_must_be_the_sums_of_their_rows(used: float) -> None:
    assert judge(used=used) == [
        f"budgets: house has used {used:g} in {period}, but its rows count 15" for period in sorted(PERIODS)
    ]


def test_rows_of_an_account_that_nobody_knows_give_complaints() -> None:
    assert "books of other: s1 is done, but image task a was never accepted" in judge([replace(DONE, account="other")])
