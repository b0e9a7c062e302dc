"""Two runs at once in the crash test: which images count as paid twice or lost."""

from collections import Counter

import pytest

from tests.chaos.judge import Expectation, Verdict, complaints
from tests.chaos.sharing import SharingDag, gather_shared

PROMPTS = ["A pier", "A windmill"]
ACCEPTED = {"A pier": ["a"], "A windmill": ["b"]}
STORED = {"A pier": "a", "A windmill": "b"}
EXPECTED = Expectation(Verdict.STORED, frozenset({1, 2}))


def complaints_about(
    accepted: dict[str, list[str]], stored: dict[str, str], *, state: str = "success", **consented: int
) -> list[str]:
    found = gather_shared(PROMPTS, accepted, stored, Counter(consented), state=state)
    return complaints("two runs", EXPECTED, found)


def test_images_that_are_paid_once_and_stored_give_no_complaint() -> None:
    assert complaints_about(ACCEPTED, STORED) == []


@pytest.mark.parametrize(
    ("accepted", "stored", "words"),
    [
        (ACCEPTED | {"A pier": ["a", "c"]}, STORED, "paid twice: A pier"),
        (ACCEPTED, {"A pier": "a"}, "should have ended as stored: A windmill"),
        (ACCEPTED, STORED | {"A pier": "c"}, "should have ended as stored: A pier"),
        ({"A windmill": ["b"]}, STORED, "should have ended as stored: A pier"),
    ],
)
def test_an_image_that_is_paid_twice_or_not_stored_gives_a_complaint(
    accepted: dict[str, list[str]], stored: dict[str, str], words: str
) -> None:
    (complaint,) = complaints_about(accepted, stored)
    assert words in complaint


def test_a_second_payment_after_a_clear_gives_no_complaint() -> None:
    accepted = ACCEPTED | {"A pier": ["a", "c"]}
    assert complaints_about(accepted, STORED | {"A pier": "c"}, **{"A pier": 1}) == []
    assert complaints_about(accepted, STORED, **{"A windmill": 1})


def test_tasks_that_failed_give_complaints() -> None:
    assert len(complaints_about(ACCEPTED, STORED, state="failed")) == 2


def test_the_mapped_tasks_ask_for_an_image_of_the_batch_and_twice_for_another_one() -> None:
    dag = SharingDag("sharing", images=3)
    assert len(set(dag.prompts)) == 4
    assert Counter(prompt in dag.prompts[:-1] for prompt in dag.mapped) == {True: 1, False: 2}
