"""How an answer of a person is read, what fits, and what is recorded."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_qwenimage.rules.choices import (
    MOST_OPTIONS,
    MOST_VERDICTS,
    Candidate,
    Question,
    UnfitAnswerError,
    entry_of,
    new_verdict,
    options_of,
    read_answer,
    read_defaults,
    unreadable_form,
    user_of,
    with_entry,
)
from airflow_provider_qwenimage.rules.recorded_paths import check_recorded_path
from tests.answering import answer_to

TASK = {"dag_id": "d", "run_id": "r", "task_id": "choose", "map_index": -1}


@pytest.mark.parametrize(
    ("options", "form", "numbers"),
    [
        (["3"], {}, [3]),
        (["3", "1", "3"], None, [1, 3]),
        (["1"], {"numbers": None}, [1]),
        (["1"], {"numbers": " "}, [1]),
        (["1"], {"numbers": "70"}, [70]),
        (["1"], {"numbers": " 3, 70 ;5\n"}, [3, 5, 70]),
        # In full width: 3, 70, 5 10; 2
        (
            ["1"],
            {"numbers": "\u3000\uff13\uff0c\uff17\uff10\u3001\uff15\u3000\uff11\uff10\uff1b\uff12 "},
            [2, 3, 5, 10, 70],
        ),
        (["1"], {"numbers": [4, "5"]}, [4, 5]),
        (["1"], {"numbers": 7}, [7]),
        (["2"], {"another": "field"}, [2]),
    ],
)
def test_numbers_in_the_form_replace_the_options(options: Any, form: Any, numbers: list[int]) -> None:
    assert read_answer(options, form) == numbers


@pytest.mark.parametrize("written", ["x", "1,,x", "-1", "1.5", "²", "1" * 10_001, True, {"a": 1}, [None], "9" * 20])
def test_an_answer_without_numbers_is_refused(written: Any) -> None:
    with pytest.raises(UnfitAnswerError):
        read_answer(["1"], {"numbers": written})


def test_a_form_that_airflow_refused_is_named_in_one_short_line() -> None:
    refused = unreadable_form(
        f"Invalid input for param numbers: 3 is not of type 'string'\n\nOn instance:\0{'3' * 9999}"
    )
    assert str(refused) == (
        "The form could not be read (Invalid input for param numbers: 3 is not of type 'string' On instance:"
        "\N{REPLACEMENT CHARACTER}3333333333333333333333333333…); write numbers as a text, such as 3, 7."
    )


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text() | st.floats(), st.lists))
def test_any_answer_is_read_or_refused(answer: Any) -> None:
    answers: list[tuple[Any, Any]] = [(answer, {}), (["1"], {"numbers": answer}), (answer, answer)]
    for options, form in answers:
        try:
            numbers = read_answer(options, form)
        except UnfitAnswerError:
            continue
        assert numbers == sorted(set(numbers))


@given(st.sets(st.integers(1, 200), min_size=1), st.integers(1, 200), st.booleans())
def test_what_a_page_sends_is_read_as_what_was_chosen(numbers: set[int], count: int, multiple: bool) -> None:
    options = options_of(count)
    answer = answer_to(options, sorted(numbers), multiple=multiple)
    assert set(answer["chosen_options"]) <= set(options)
    assert multiple or len(answer["chosen_options"]) == 1
    assert read_answer(answer["chosen_options"], answer["params_input"]) == sorted(numbers)


def test_there_are_options_for_the_first_candidates() -> None:
    assert options_of(2) == ["1", "2"]
    assert options_of(1000) == [str(number) for number in range(1, MOST_OPTIONS + 1)]


@pytest.mark.parametrize(
    ("at_least", "at_most", "numbers", "problem"),
    [
        (1, 1, [], "0 candidates were chosen; choose 1."),
        (1, 1, [1, 2], "2 candidates were chosen; choose 1."),
        (2, 3, [4], "1 candidate was chosen; choose 2 to 3."),
        (2, None, [4], "1 candidate was chosen; choose at least 2."),
        (1, 1, [0], "There is no candidate 0; the candidates have the numbers 1 to 4."),
        (1, None, [1, 5, 6], "There is no candidate 5, 6; the candidates have the numbers 1 to 4."),
    ],
)
def test_an_answer_that_does_not_fit_says_what_to_do(
    at_least: int, at_most: int | None, numbers: list[int], problem: str
) -> None:
    with pytest.raises(UnfitAnswerError) as refused:
        Question(at_least=at_least, at_most=at_most).check(numbers, 4)
    assert str(refused.value) == problem


def test_as_many_as_asked_for_fit() -> None:
    Question(at_least=1, at_most=1).check([4], 4)
    Question(at_least=2, at_most=3).check([1, 2, 3], 4)
    Question(at_least=1, at_most=None).check([1, 2, 3, 4], 4)


@pytest.mark.parametrize(("value", "numbers"), [(None, None), (2, [2]), ("2", [2]), ([3, "1"], [1, 3])])
def test_defaults_are_numbers(value: Any, numbers: list[int] | None) -> None:
    assert read_defaults(value) == numbers


@pytest.mark.parametrize("value", [0, -1, "", [], "first", True, 1.5, 1001, [1, 0], {}])
def test_other_defaults_are_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"^defaults is .*; it must be"):
        read_defaults(value)


def test_a_task_instance_has_one_verdict_in_a_sidecar_and_the_newest_are_kept() -> None:
    verdict = new_verdict([2], by={"id": "1", "name": "Ada"}, at="2026-01-05T09:12:44+00:00", timed_out=False)
    entry = entry_of(verdict, 2, TASK)
    assert entry == {
        "chosen": True,
        "by": {"id": "1", "name": "Ada"},
        "at": "2026-01-05T09:12:44+00:00",
        "timed_out": False,
        "task": TASK,
    }
    assert with_entry(None, entry) == [entry]
    assert with_entry("forged", entry) == [entry]
    again = entry_of(verdict, 1, TASK)
    assert with_entry([entry, "forged"], again) == [again]
    others = [entry_of(verdict, 2, TASK | {"run_id": str(run)}) for run in range(MOST_VERDICTS + 5)]
    assert with_entry(others, entry) == [*others[6:], entry]
    assert with_entry(with_entry(others, entry), entry) == with_entry(others, entry)


def test_users_are_stored_as_short_texts() -> None:
    assert user_of(None) is None
    assert user_of({"id": 7, "name": "A\x00da" * 100}) == {"id": "7", "name": ("A\ufffdda" * 100)[:200] + "…"}


def test_a_candidate_survives_its_xcom() -> None:
    candidate = Candidate(task_id="n1", path="/images/fox.jpg", prompt="A fox", seed=7, reused=True)
    assert Candidate.from_json(candidate.to_json() | {"of a later version": 1}) == candidate
    others: list[Any] = [None, [], "x", {}, {"task_id": 1, "path": "/x"}]
    assert all(Candidate.from_json(other) is None for other in others)


@pytest.mark.parametrize(
    "path",
    [
        *(None, 7, "", "fox.jpg", "http://10.0.0.1/fox.jpg", "HTTPS://x/fox.jpg", "github://x/y", "/a/../etc/passwd"),
        *("zip::file:///a.zip", "/a\x00b", "/" + "x" * 5000, r"C:\..\x", "simplecache://x", "data://x"),
    ],
)
def test_paths_that_no_task_records_are_refused(path: Any) -> None:
    with pytest.raises(ValueError, match=r"^is "):
        check_recorded_path(path)


@pytest.mark.parametrize("path", ["/images/fox.jpg", "s3://aws_default@bucket/fox.jpg", "file:///images/a b.png"])
def test_paths_that_tasks_record_pass(path: str) -> None:
    assert check_recorded_path(path) == path
