"""The counts of a batch: what it may still submit, its progress, and how it ends."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_qwenimage.contract import CREDITS_PER_IMAGE, TaskSnapshot
from airflow_provider_qwenimage.exceptions import (
    QwenImageAuthError,
    QwenImageBadRequestError,
    QwenImageBatchError,
    QwenImageBudgetError,
    QwenImageConnectionError,
    QwenImageCreditsError,
    QwenImageError,
    QwenImageImageError,
    QwenImageNotFoundError,
    QwenImageServerError,
    QwenImageSubmissionUnknownError,
    QwenImageTimeoutError,
)
from airflow_provider_qwenimage.rules.batch_rows import RowStatus, manifest_row
from airflow_provider_qwenimage.rules.batch_totals import BatchTotals, Limits
from airflow_provider_qwenimage.rules.snapshots import task_failure


def failure(reason: str = "no luck", consumed_credits: float = 0) -> QwenImageError:
    return task_failure(
        TaskSnapshot(task_id="n43", status="FAILED", error_message=reason, consumed_credits=consumed_credits)
    )


REFUSAL = failure("Content policy violation detected")
LOST = QwenImageSubmissionUnknownError("the answer was lost")


def totals(requests: int = 10, **limits: Any) -> BatchTotals:
    return BatchTotals(requests, Limits(**limits), "my_qwen")


def problem_of(
    batch: BatchTotals, interruption: str | None = None, not_started: Iterable[int] = ()
) -> QwenImageBatchError:
    problem = batch.problem("file:///m/manifest.jsonl", interruption, not_started=not_started)
    assert problem is not None
    assert "file:///m/manifest.jsonl" in str(problem)
    return problem


@pytest.mark.parametrize("error", [OSError("x" * 5_000_000), QwenImageAuthError("\x1b[2J\ud83d\n" + "x" * 5_000_000)])
def test_the_error_of_a_batch_is_short_and_printable_however_long_its_cause_is(error: Exception) -> None:
    batch = totals(1, max_failures=5)
    batch.fail(1, error, paid=False)
    problem = str(problem_of(batch, f"{type(error).__name__}: {error}"))
    assert "First error: row 1: " in problem
    assert problem.isprintable()
    assert len(problem) < 2000
    assert len(batch.why_not_to_submit() or "") < 1000


def test_a_batch_without_limits_may_always_submit() -> None:
    batch = totals(2)
    batch.begin()
    assert batch.why_not_to_submit() is None


@given(
    limit=st.integers(0, 60), steps=st.lists(st.sampled_from(["submit", "store", "fail", "lose", "dear"]), max_size=60)
)
def test_credits_spent_at_risk_and_in_flight_never_exceed_max_credits(limit: int, steps: list[str]) -> None:
    batch = totals(100, max_credits=limit, max_failures=100)
    for step in steps:
        if step == "submit" and batch.why_not_to_submit() is None:
            batch.begin()
        elif step != "submit" and batch.in_flight:
            batch.in_flight -= 1
            if step == "store":
                batch.store(CREDITS_PER_IMAGE)
            elif step == "lose":
                batch.fail(1, QwenImageSubmissionUnknownError("lost"), paid=False)
            else:
                batch.fail(1, failure(consumed_credits=5 if step == "dear" else 0), paid=True)
        assert batch.spent + batch.at_risk + CREDITS_PER_IMAGE * batch.in_flight <= limit


@given(price=st.integers(0, 12), limit=st.integers(0, 100), in_flight=st.integers(1, 4))
def test_max_credits_holds_whatever_an_image_costs(price: int, limit: int, in_flight: int) -> None:
    batch = totals(1000, max_credits=limit)
    submitted = 0
    while True:
        while batch.in_flight < in_flight and batch.not_submitted and batch.why_not_to_submit() is None:
            batch.begin()
            submitted += 1
        if not batch.in_flight:
            break
        batch.end()
        batch.store(price)
    assert submitted * CREDITS_PER_IMAGE <= limit, "an API that reports no costs does not disable the limit"
    # Only images that were in flight before the first price was known may exceed it.
    assert batch.spent <= max(limit, min(in_flight, limit // CREDITS_PER_IMAGE) * price)
    assert batch.spent == price * submitted


def test_the_next_image_is_assumed_to_cost_what_was_last_charged() -> None:
    batch = totals(max_credits=25)
    for _ in range(3):
        batch.store(7)
    assert (
        batch.why_not_to_submit()
        == "max_credits is 25, 21 are spent, and an image costs 7 credits (as was last charged)"
    )
    batch = totals(max_credits=25)
    batch.store(7)
    batch.store(5)
    batch.store(7, reused=True)
    batch.begin()
    batch.begin()
    assert "12 are spent, and an image costs 5 credits (as documented)" in str(batch.why_not_to_submit())


def test_images_in_flight_count_at_the_assumed_price() -> None:
    batch = totals(max_credits=20)
    batch.store(7)
    batch.begin()
    assert "an image costs 7" in str(batch.why_not_to_submit())
    assert batch.why_not_to_submit_again(0) is None


def test_an_image_for_which_the_api_reports_nothing_counts_against_the_limit() -> None:
    batch = totals(max_credits=10, max_failures=1)
    batch.store(0)
    batch.fail(2, OSError("disk full"), paid=True, charged=0)
    assert batch.spent == 0
    why = str(batch.why_not_to_submit())
    assert why.startswith("max_credits is 10, 10 are spent (each image counts as the documented price at least)")


def test_max_credits_can_be_used_up_exactly() -> None:
    batch = totals(max_credits=10)
    batch.begin()
    assert batch.why_not_to_submit() is None
    batch.begin()
    assert "max_credits is 10" in str(batch.why_not_to_submit())


def test_an_image_in_flight_that_failed_may_be_submitted_again_within_the_limit() -> None:
    batch = totals(max_credits=5)
    batch.begin()
    assert batch.why_not_to_submit() is not None
    assert batch.why_not_to_submit_again(0) is None
    assert "max_credits is 5, 1 are spent" in str(batch.why_not_to_submit_again(1))


def test_one_failure_more_than_allowed_ends_the_submissions() -> None:
    batch = totals(max_failures=1)
    batch.fail(1, failure(), paid=True)
    assert batch.why_not_to_submit() is None
    batch.fail(2, failure(), paid=True)
    assert batch.why_not_to_submit() == "2 failed, and max_failures is 1"


def test_a_failure_of_an_earlier_try_does_not_stop_this_try_from_submitting() -> None:
    batch = totals()
    batch.fail(1, QwenImageSubmissionUnknownError("lost"), paid=True, earlier=True)
    assert batch.why_not_to_submit() is None
    assert batch.failures == 1


@pytest.mark.parametrize("error", [QwenImageAuthError("no"), QwenImageCreditsError("empty")])
def test_an_account_that_is_refused_ends_the_submissions_however_many_failures_are_allowed(
    error: QwenImageError,
) -> None:
    batch = totals(max_failures=100)
    batch.fail(1, error, paid=False)
    assert "refuses this account" in str(batch.why_not_to_submit())


@pytest.mark.parametrize(
    ("error", "paid", "status", "spent", "at_risk"),
    [
        (failure(consumed_credits=2), True, RowStatus.FAILED, 2, 0),
        (REFUSAL, True, RowStatus.FAILED, 0, 0),
        (QwenImageSubmissionUnknownError("lost"), False, RowStatus.UNKNOWN, 0, 5),
        (QwenImageTimeoutError("late"), True, RowStatus.UNFINISHED, 0, 5),
        (OSError("disk full"), True, RowStatus.UNFINISHED, 0, 5),
        (QwenImageImageError("other size", permanent=True), True, RowStatus.FAILED, 0, 5),
        (QwenImageServerError("busy"), False, RowStatus.FAILED, 0, 0),
        (QwenImageAuthError("a blip"), True, RowStatus.UNFINISHED, 0, 5),
        (QwenImageCreditsError("a blip"), True, RowStatus.UNFINISHED, 0, 5),
        (QwenImageNotFoundError("a blip"), True, RowStatus.UNFINISHED, 0, 5),
        (ValueError("no such bucket"), True, RowStatus.UNFINISHED, 0, 5),
        (QwenImageBadRequestError("no"), False, RowStatus.FAILED, 0, 0),
    ],
)
def test_the_status_of_a_row_depends_on_its_failure(
    error: Exception, paid: bool, status: RowStatus, spent: float, at_risk: float
) -> None:
    batch = totals()
    assert batch.fail(1, error, paid=paid) is status
    assert (batch.spent, batch.at_risk) == (spent, at_risk)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (OSError("disk full"), RowStatus.UNFINISHED),
        (QwenImageImageError("other size", permanent=True), RowStatus.FAILED),
    ],
)
def test_what_the_api_charged_for_an_image_is_spent_even_if_the_image_is_not_stored(
    error: Exception, status: RowStatus
) -> None:
    batch = totals()
    assert batch.fail(1, error, paid=True, charged=7) is status
    batch.leave(2, RowStatus.UNFINISHED, charged=6)
    batch.leave(3, RowStatus.UNFINISHED)
    assert (batch.spent, batch.at_risk, batch.price) == (13, 6, 6)


def test_a_read_that_is_refused_does_not_end_the_submissions() -> None:
    batch = totals(max_failures=1)
    batch.fail(1, QwenImageAuthError("no"), paid=True)
    assert batch.why_not_to_submit() is None


def test_progress_has_the_rate_of_this_try_and_the_time_left() -> None:
    batch = totals(10)
    batch.store(None, reused=True)
    batch.store(5, now=False)
    for _ in range(4):
        batch.store(5)
    batch.begin()
    assert batch.progress(8.0) == {
        "requests": 10,
        "done": 6,
        "reused": 1,
        "failed": 0,
        "in_flight": 1,
        "consumed_credits": 25,
        "at_risk": 0,
        "images_per_second": 0.5,
        "seconds_left": 8.0,
    }


def test_the_time_left_is_unknown_before_the_first_image() -> None:
    assert totals().progress(0.0)["seconds_left"] is None
    assert totals().progress(3.0)["seconds_left"] is None


def test_images_that_will_not_be_submitted_do_not_count_for_the_time_left() -> None:
    batch = totals(10, max_credits=5)
    batch.store(5)
    assert batch.progress(2.0)["seconds_left"] == 0.0


def test_an_image_without_a_reported_price_counts_with_the_documented_one() -> None:
    batch = totals()
    batch.store(None)
    assert batch.spent == CREDITS_PER_IMAGE


def test_a_batch_with_all_of_its_images_ends_well() -> None:
    batch = totals(2)
    batch.store(5)
    batch.store(None, reused=True)
    assert batch.problem("m") is None
    assert batch.problem("m", "the task was ended from outside") is None


def test_a_batch_with_as_many_failures_as_allowed_ends_well() -> None:
    batch = totals(2, max_failures=1)
    batch.store(5)
    batch.fail(2, REFUSAL, paid=True)
    assert batch.problem("m") is None


def test_a_batch_does_not_end_well_while_a_paid_image_can_be_fetched_however_many_failures_are_allowed() -> None:
    batch = totals(4, max_failures=3)
    for _ in range(3):
        batch.store(5)
    batch.fail(4, QwenImageImageError("the download failed"), paid=True, charged=5)
    problem = problem_of(batch)
    assert not problem.permanent
    assert str(problem).startswith(
        "1 of 4 images are missing: row 4 is paid and its image is not stored yet. First error"
    )
    assert (
        "The batch cost 20 credits. The next try, automatic or after a Clear, continues: row 4 is fetched (0 credits)."
        in (str(problem))
    )


def test_an_image_that_may_be_paid_and_cannot_be_fetched_is_a_failure_that_may_be_allowed() -> None:
    batch = totals(2, max_failures=1)
    batch.store(5)
    batch.fail(2, LOST, paid=False)
    assert batch.problem("m") is None
    assert batch.progress(1.0)["at_risk"] == 5


@pytest.mark.parametrize(
    ("errors", "permanent"),
    [
        ([REFUSAL], True),
        ([LOST], True),
        ([QwenImageAuthError("no")], True),
        ([QwenImageAuthError("no"), QwenImageConnectionError("away")], True),
        ([QwenImageAuthError("no"), QwenImageTimeoutError("late")], False),
        ([failure()], False),
        ([QwenImageTimeoutError("late")], False),
        ([OSError("disk full")], False),
        ([REFUSAL, QwenImageConnectionError("away")], False),
        ([LOST, QwenImageTimeoutError("late")], False),
    ],
)
def test_the_batch_error_allows_a_retry_if_one_can_get_further(errors: list[Exception], permanent: bool) -> None:
    batch = totals(len(errors), max_failures=5)
    for number, error in enumerate(errors, start=1):
        batch.fail(number, error, paid=not isinstance(error, QwenImageAuthError | QwenImageConnectionError))
    assert problem_of(replace(batch, limits=Limits())).permanent is permanent


def test_the_error_says_what_happened_what_it_cost_or_may_cost_and_the_one_thing_to_do() -> None:
    batch = totals(4)
    batch.store(5)
    batch.fail(2, LOST, paid=False)
    assert str(problem_of(batch, not_started=iter([3, 4]))) == (
        "3 of 4 images are missing: row 2 may be paid and its id is lost; rows 3 and 4 were not started, because "
        "1 failed, and max_failures is 0. The batch cost 5 credits, and up to 5 more may have been charged. "
        "Compare your credits, then clear: row 2 is submitted again (5 credits), rows 3 and 4 are submitted for the "
        "first time (10). Every row is listed in file:///m/manifest.jsonl."
    )


def advice_of(batch: BatchTotals, **arguments: Any) -> str:
    """Return the sentences between the cost and the manifest."""
    found = re.search(r" The batch cost .*?\. (.*) Every row is listed", str(problem_of(batch, **arguments)))
    assert found
    return found[1]


def test_a_rejected_key_is_to_be_corrected_and_no_request() -> None:
    batch = totals(3, max_failures=10)
    batch.fail(1, QwenImageAuthError("The API answered with code 401: no such key"), paid=False)
    problem = problem_of(batch, not_started=[2, 3])
    assert "because the API refuses this account (The API answered with code 401: no such key)" in str(problem)
    assert "orrect row" not in str(problem)
    assert advice_of(batch, not_started=[2, 3]) == (
        "Correct the key in connection my_qwen, then clear: row 1 is submitted again (5 credits), rows 2 and 3 are "
        "submitted for the first time (10)."
    )


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (QwenImageCreditsError("empty"), "Buy credits for the account of connection my_qwen, then clear: "),
        (QwenImageNotFoundError("no page"), "Correct the host of connection my_qwen, then clear: "),
        (QwenImageAuthError("no"), "Correct the key in connection my_qwen, then clear: "),
        (REFUSAL, "Correct row 1, then clear: "),
        (QwenImageBadRequestError("no"), "Correct row 1, then clear: "),
        (LOST, "Compare your credits, then clear: "),
        (QwenImageServerError("busy"), "The next try, automatic or after a Clear, continues: "),
    ],
    ids=lambda value: type(value).__name__,
)
def test_each_cause_has_its_own_advice(error: Exception, advice: str) -> None:
    batch = totals(1)
    batch.fail(1, error, paid=False)
    assert advice_of(batch) == f"{advice}row 1 is submitted again (5 credits)."


def test_a_refused_key_does_not_hide_that_a_clear_may_pay_twice() -> None:
    batch = totals(2)
    batch.fail(1, LOST, paid=False)
    batch.fail(2, QwenImageAuthError("no"), paid=False)
    assert advice_of(batch).startswith(
        "Correct the key in connection my_qwen and compare your credits, then clear: rows"
    )


def test_before_a_clear_that_may_pay_twice_credits_are_compared_even_if_a_retry_can_get_further() -> None:
    batch = totals(3, max_failures=2)
    batch.fail(1, LOST, paid=False)
    batch.fail(2, OSError("disk full"), paid=True)
    assert advice_of(batch, not_started=[3]) == (
        "A retry does not submit rows again that may be paid. Compare your credits, then clear: row 2 is fetched "
        "(0 credits), row 1 is submitted again (5), row 3 is submitted for the first time (5)."
    )


def test_an_image_that_is_not_what_was_requested_is_paid_and_its_row_is_to_be_corrected() -> None:
    batch = totals(1)
    batch.fail(1, QwenImageImageError("The image has 10 x 10 pixels.", permanent=True), paid=True, charged=7)
    problem = str(problem_of(batch))
    assert "row 1 is paid and its image is not what it asks for. First error: row 1: The image has 10 x 10" in problem
    assert advice_of(batch) == "Correct row 1, then clear: row 1 is submitted again (7 credits)."


def test_a_batch_that_reached_its_limit_may_spend_it_again_after_a_clear() -> None:
    batch = totals(3, max_credits=5)
    batch.store(5)
    problem = problem_of(batch, not_started=[2, 3])
    assert problem.permanent
    assert str(problem).startswith(
        "2 of 3 images are missing: rows 2 and 3 were not started, because max_credits is 5, 5 are spent"
    )
    assert advice_of(batch, not_started=[2, 3]) == (
        "Clear this task to spend up to max_credits once more: rows 2 and 3 are submitted for the first time "
        "(10 credits)."
    )


def test_a_limit_below_the_price_of_an_image_is_to_be_raised() -> None:
    batch = totals(2, max_credits=6)
    batch.store(7)
    assert advice_of(batch, not_started=[2]).startswith("Raise max_credits to 7 at least, then clear: row 2 is")


def test_a_limit_that_stops_the_batch_decides_the_advice_before_failures_that_are_allowed() -> None:
    batch = totals(3, max_credits=5, max_failures=1)
    batch.fail(1, REFUSAL, paid=True)
    batch.store(5)
    assert advice_of(batch, not_started=[3]).startswith("Clear this task to spend up to max_credits once more: row 1")


def spent_budget() -> QwenImageBudgetError:
    return QwenImageBudgetError(
        "Connection 'my_qwen' has 0 credits left.", advice="The budget resets at midnight.", retry_after=3600.0
    )


def test_a_spent_budget_ends_the_submissions_and_a_retry_waits_until_it_begins_anew() -> None:
    batch = totals(10, max_credits=1000)
    batch.store(5)
    assert batch.why_not_to_submit() is None
    batch.stop_for(spent_budget())
    assert "has 0 credits left" in str(batch.why_not_to_submit())

    problem = problem_of(batch, not_started=range(2, 11))
    assert (problem.permanent, problem.retry_after) == (False, 3600)
    for part in (
        "and 10 were not started, because a budget is spent (Connection 'my_qwen' has 0 credits left.)",
        "The budget resets at midnight. The next try, automatic or after a Clear, continues: ",
        "are submitted for the first time (45 credits)",
    ):
        assert part in str(problem)


def test_a_batch_with_paid_images_to_fetch_does_not_wait_for_a_budget() -> None:
    batch = totals(10)
    batch.leave(1, RowStatus.UNFINISHED)
    batch.stop_for(spent_budget())
    problem = problem_of(batch, not_started=range(2, 11))
    assert (problem.permanent, problem.retry_after) == (False, None)


def test_a_budget_that_was_spent_by_the_last_image_of_a_batch_ends_nothing() -> None:
    batch = totals(2)
    batch.store(5)
    batch.store(5)
    batch.stop_for(spent_budget())
    assert batch.problem("file:///m/manifest.jsonl") is None


def test_a_batch_that_was_ended_from_outside_can_be_retried() -> None:
    batch = totals(4)
    batch.store(5)
    batch.leave(2, RowStatus.UNFINISHED)
    batch.leave(3, RowStatus.UNKNOWN)
    assert (batch.progress(1.0)["failed"], batch.not_submitted) == (0, 1)
    assert batch.at_risk == 10
    problem = problem_of(batch, "the task was ended from outside", not_started=[4])
    assert not problem.permanent
    assert str(problem).startswith(
        "3 of 4 images are missing, because the batch was stopped (the task was ended from outside): row 3 may be paid "
        "and its id is lost; row 2 is paid and its image is not stored yet; row 4 was not started. The batch cost 5 "
        "credits, and up to 10 more may have been charged. "
    )


def test_the_error_names_some_rows_and_counts_the_others() -> None:
    batch = totals(1000, max_failures=1000)
    for number in range(1, 101):
        batch.fail(101 - number, REFUSAL, paid=True)
    problem = str(problem_of(batch, "stopped", not_started=(number for number in range(101, 1001))))
    assert "rows 81, 82, 83, " in problem
    assert "99, 100 and 80 more failed" in problem
    assert "rows 101, 102, 103, " in problem
    assert "119, 120 and 880 more were not started" in problem
    assert len(problem) < 2000


def test_ids_that_only_this_try_knows_are_in_the_error_and_no_retry_deletes_them() -> None:
    batch = totals(4, max_failures=4)
    for row in (1, 2, 3, 4):
        batch.note_unrecorded(row, f"n{row}")
    batch.store(5, row=1)
    batch.fail(2, REFUSAL, paid=True)
    batch.fail(3, OSError("disk full"), paid=True)
    batch.leave(4, RowStatus.UNFINISHED)
    assert batch.unrecorded == [(3, "n3"), (4, "n4")]
    problem = problem_of(batch, "stopped")
    assert problem.permanent
    assert "the ids of accepted image tasks could not be recorded: n3 (row 3), n4 (row 4);" in str(problem)
    assert advice_of(batch).startswith("Get those images with a QwenImageStatusSensor for these ids before you clear")


def test_many_ids_that_only_this_try_knows_are_counted() -> None:
    batch = totals(100)
    for row in range(1, 101):
        batch.note_unrecorded(row, f"n{row}")
        batch.leave(row, RowStatus.UNFINISHED)
    assert "n20 (row 20) and 80 more, listed in the XCom unrecorded;" in str(problem_of(batch, "stopped"))


def test_storage_that_cannot_be_written_is_mentioned_and_hides_nothing() -> None:
    batch = totals(1)
    batch.note_unrecorded(1, "n1")
    batch.fail(1, OSError("disk full"), paid=True)
    problem = str(batch.problem(None, not_written="Not all of it could be stored (OSError: No space left)."))
    assert "n1 (row 1)" in problem
    assert problem.endswith(" Not all of it could be stored (OSError: No space left).")


def test_a_row_without_an_outcome_was_not_submitted() -> None:
    assert manifest_row(3, {"prompt": "a"}, None, "us") == {
        "row": 3,
        "status": "NOT_SUBMITTED",
        "prompt": "a",
        "writer": "us",
    }
    assert manifest_row(3, {"prompt": "a"}, {"status": "SUCCESS"}, "us")["status"] == "SUCCESS"
