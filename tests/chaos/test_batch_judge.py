"""The judge of a batch in the crash test: which images count as paid twice or lost, and which files as left over."""

from dataclasses import replace

import pytest

from tests.chaos.batch_dag import BatchDag
from tests.chaos.batch_judge import BatchEvidence, Row, unknown

PIER, MILL = ("A pier", -1), ("A windmill", 7)
ROWS = [
    Row(1, PIER, "SUCCESS", "a", is_whole=True),
    Row(2, MILL, "SUCCESS", "b", is_whole=True),
    Row(3, PIER, "SUCCESS", "c", is_whole=True),
    Row(4, MILL, "SUCCESS", "b", is_whole=True, shares=True),
]
GOOD = BatchEvidence(wanted={PIER: 2, MILL: 1}, accepted={PIER: ["a", "c"], MILL: ["b"]}, rows=ROWS)


def with_row(number: int, **changes: object) -> BatchEvidence:
    return replace(GOOD, rows=[replace(row, **changes) if row.number == number else row for row in ROWS])


def test_a_batch_with_all_its_images_gives_no_complaint() -> None:
    assert (GOOD.complaints(), GOOD.paid_twice, GOOD.lost) == ([], 0, 0)


def test_an_extra_submission_is_paid_twice_unless_its_row_was_cleared() -> None:
    twice = replace(GOOD, accepted={PIER: ["a", "c", "d"], MILL: ["b"]})
    assert twice.paid_twice == 1
    assert "paid twice: ('A pier', -1) was accepted 3 times" in twice.complaints()[0]
    assert replace(twice, consented={PIER: 1}).complaints() == []
    assert replace(twice, consented={MILL: 1}).paid_twice == 1
    assert replace(GOOD, accepted={**GOOD.accepted, ("A boat", -1): ["e"]}).paid_twice == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"status": "UNKNOWN"}, "row 3 ('A pier', -1) is UNKNOWN"),
        ({"is_whole": False}, "missing or broken"),
        ({"image_task_id": "b"}, "not accepted for it"),
    ],
)
def test_an_image_that_is_missing_or_wrong_is_lost(changes: dict[str, object], words: str) -> None:
    evidence = with_row(3, **changes)
    assert evidence.lost == 1
    (complaint,) = evidence.complaints()
    assert words in complaint


def test_two_rows_with_one_image_give_a_complaint() -> None:
    assert with_row(3, image_task_id="a").complaints() == ["row 3 ('A pier', -1) has the image of row 1"]


def test_a_row_that_the_manifest_does_not_list_is_lost() -> None:
    evidence = replace(GOOD, rows=ROWS[:2])
    assert evidence.lost == 1
    assert evidence.complaints() == ["the manifest lists 2 images of 3, or different ones"]


def test_a_file_that_is_left_over_gives_a_complaint() -> None:
    assert replace(GOOD, leftovers=[".x.part"]).complaints() == [".x.part is left over"]


def test_images_that_may_be_paid_are_counted_once_if_rows_share_them() -> None:
    rows = [replace(row, status="UNKNOWN") for row in ROWS]
    assert unknown([*rows, Row(5, PIER, "NOT_SUBMITTED")]) == {PIER: 2, MILL: 1}


def test_a_batch_has_equal_prompts_and_a_pair_that_shares_an_image() -> None:
    dag = BatchDag("batch", images=40)
    assert len(dag.requests) == 41
    assert sum(dag.wanted.values()) == 40
    assert dag.wanted["A pier 0", -1] == 4
    assert dag.wanted["A windmill", 0] == 1
