"""The judge of the crash test: which tasks count as stored, stopped as unknown, lost and paid twice."""

from dataclasses import replace

import pytest

from tests.chaos.judge import Evidence, Expectation, Tally, Verdict, complaints, tally, total
from tests.chaos.tables import table

STORED = Evidence(name="a", state="success", accepted=1, result_is_whole=True, kills=2)
UNKNOWN = Evidence(name="b", state="failed", accepted=1, result_is_whole=False, last_try_unknown=True, kills=1)
LOST = Evidence(name="c", state="failed", accepted=1, result_is_whole=False, kills=3)


@pytest.mark.parametrize(
    ("evidence", "verdict"),
    [
        (STORED, Verdict.STORED),
        (UNKNOWN, Verdict.UNKNOWN),
        (replace(UNKNOWN, accepted=0), Verdict.UNKNOWN),
        (LOST, Verdict.LOST),
        (replace(STORED, state="failed"), Verdict.LOST),
        (replace(STORED, state="running"), Verdict.LOST),
        (replace(STORED, state=None), Verdict.LOST),
        (replace(STORED, result_is_whole=False), Verdict.LOST),
        (replace(STORED, accepted=0), Verdict.LOST),
        (replace(UNKNOWN, state="success"), Verdict.LOST),
    ],
)
def test_a_task_is_stored_or_stopped_as_unknown_or_else_lost(evidence: Evidence, verdict: Verdict) -> None:
    assert evidence.verdict is verdict


@pytest.mark.parametrize(("accepted", "clears", "twice"), [(0, 0, False), (1, 0, False), (2, 0, True), (2, 1, False)])
def test_a_second_submission_is_paid_twice_unless_the_task_was_cleared(accepted: int, clears: int, twice: bool) -> None:
    assert replace(STORED, accepted=accepted, clears=clears).paid_twice is twice


def test_each_kill_is_counted_by_its_consequence() -> None:
    row = tally("stage", [STORED, UNKNOWN, LOST, replace(LOST, kills=0), replace(STORED, accepted=2)])
    assert row == Tally("stage", kills=8, resumed=6, unknown=1, paid_twice=1, lost=2)
    assert total([row, row]) == Tally("total", kills=16, resumed=12, unknown=2, paid_twice=2, lost=4)


def test_a_stage_whose_tasks_end_as_expected_gives_no_complaint() -> None:
    assert complaints("stage", Expectation(Verdict.STORED), [STORED], kills=2) == []
    assert complaints("stage", Expectation(Verdict.UNKNOWN), [UNKNOWN]) == []
    assert complaints("stage", Expectation(None, accepted=frozenset({0, 1})), [STORED, UNKNOWN]) == []


@pytest.mark.parametrize(
    ("expected", "evidence", "words"),
    [
        (Expectation(Verdict.STORED), LOST, "should have ended as stored"),
        (Expectation(Verdict.STORED), UNKNOWN, "should have ended as stored"),
        (Expectation(Verdict.UNKNOWN), STORED, "should have ended as stopped as unknown"),
        (Expectation(None), LOST, "should have ended as stored or unknown"),
        (Expectation(None), replace(STORED, accepted=2), "paid twice"),
        (Expectation(Verdict.UNKNOWN, accepted=frozenset({0})), UNKNOWN, "accepted 1 times"),
    ],
)
def test_a_stage_whose_task_ends_differently_gives_a_complaint(
    expected: Expectation, evidence: Evidence, words: str
) -> None:
    (complaint,) = complaints("stage", expected, [evidence])
    assert words in complaint


def test_missing_kills_give_a_complaint() -> None:
    assert complaints("stage", Expectation(None), [STORED], kills=3) == ["stage: only 2 of 3 kills were made"]


def test_a_table_aligns_text_left_and_numbers_right() -> None:
    assert table(("stage", "kills"), [("waiting", 12), ("storing", 7)], total=("total", 19)).splitlines() == [
        "stage    kills",
        "-------  -----",
        "waiting     12",
        "storing      7",
        "-------  -----",
        "total       19",
    ]
