"""The counts of a batch: what it may still submit, its progress, and how it ends."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_qwenimage.contract import CREDITS_PER_IMAGE, TaskSnapshot
from airflow_provider_qwenimage.exceptions import (
    QwenImageAuthError,
    QwenImageBatchError,
    QwenImageConnectionError,
    QwenImageCreditsError,
    QwenImageError,
    QwenImageImageError,
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


def totals(requests: int = 10, **limits: Any) -> BatchTotals:
    return BatchTotals(requests, Limits(**limits))


def problem_of(batch: BatchTotals, interruption: str | None = None) -> QwenImageBatchError:
    problem = batch.problem("file:///m/manifest.jsonl", interruption)
    assert problem is not None
    assert "file:///m/manifest.jsonl" in str(problem)
    return problem


@pytest.mark.parametrize("error", [OSError("x" * 5_000_000), QwenImageAuthError("\x1b[2J\ud83d\n" + "x" * 5_000_000)])
def test_the_error_of_a_batch_is_short_and_printable_however_long_its_cause_is(error: Exception) -> None:
    batch = totals(3, max_failures=5)
    batch.fail("row 1", error, paid=False)
    problem = str(problem_of(batch, f"{type(error).__name__}: {error}"))
    assert "row 1: " in problem
    assert problem.isprintable()
    assert len(problem) < 2500
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
                batch.fail("row", QwenImageSubmissionUnknownError("lost"), paid=False)
            else:
                batch.fail("row", failure(consumed_credits=5 if step == "dear" else 0), paid=True)
        assert batch.spent + batch.at_risk + CREDITS_PER_IMAGE * batch.in_flight <= limit


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
    batch.fail("row 1", failure(), paid=True)
    assert batch.why_not_to_submit() is None
    batch.fail("row 2", failure(), paid=True)
    assert batch.why_not_to_submit() == "2 failed, and max_failures is 1"


def test_a_failure_of_an_earlier_try_does_not_stop_this_try_from_submitting() -> None:
    batch = totals()
    batch.fail("row 1", QwenImageSubmissionUnknownError("lost"), paid=True, earlier=True)
    assert batch.why_not_to_submit() is None
    assert batch.failures == 1


@pytest.mark.parametrize("error", [QwenImageAuthError("no"), QwenImageCreditsError("empty")])
def test_an_account_that_is_refused_ends_the_submissions_however_many_failures_are_allowed(
    error: QwenImageError,
) -> None:
    batch = totals(max_failures=100)
    batch.fail("row 1", error, paid=False)
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
    ],
)
def test_the_status_of_a_row_depends_on_its_failure(
    error: Exception, paid: bool, status: RowStatus, spent: float, at_risk: float
) -> None:
    batch = totals()
    assert batch.fail("row 1", error, paid=paid) is status
    assert (batch.spent, batch.at_risk) == (spent, at_risk)


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
    batch.fail("row 2", REFUSAL, paid=True)
    assert batch.problem("m") is None


@pytest.mark.parametrize(
    ("errors", "permanent"),
    [
        ([REFUSAL], True),
        ([QwenImageSubmissionUnknownError("lost")], True),
        ([QwenImageAuthError("no")], True),
        ([failure()], False),
        ([QwenImageTimeoutError("late")], False),
        ([OSError("disk full")], False),
        ([REFUSAL, QwenImageConnectionError("away")], False),
    ],
)
def test_the_batch_error_allows_a_retry_if_a_failure_is_transient(errors: list[Exception], permanent: bool) -> None:
    batch = totals(len(errors))
    for error in errors:
        batch.fail("row 7", error, paid=not isinstance(error, QwenImageAuthError | QwenImageConnectionError))
    problem = problem_of(batch)
    assert problem.permanent is permanent
    assert ("clear this task" in str(problem)) is permanent
    assert ("The next try" in str(problem)) is not permanent


def test_a_batch_that_ran_out_of_credits_fails_without_a_retry_and_counts_the_missing_images() -> None:
    batch = totals(3, max_credits=5)
    batch.store(5)
    problem = problem_of(batch)
    assert problem.permanent
    assert str(problem).startswith("2 of 3 images are missing: 2 were not submitted, because max_credits is 5, 5 are")


def test_a_batch_that_was_ended_from_outside_can_be_retried() -> None:
    batch = totals(4)
    batch.store(5)
    batch.leave(RowStatus.UNFINISHED)
    batch.leave(RowStatus.UNKNOWN)
    assert (batch.progress(1.0)["failed"], batch.not_submitted) == (0, 1)
    problem = problem_of(batch, "the task was ended from outside")
    assert not problem.permanent
    assert "1 may be paid" in str(problem)
    assert "1 are paid and will be fetched by the next try" in str(problem)
    assert "1 were not submitted, because the task was ended from outside" in str(problem)


def test_the_error_quotes_the_first_failure_and_counts_the_others() -> None:
    batch = totals(5)
    batch.store(5)
    batch.fail("row 2", REFUSAL, paid=True)
    batch.fail("row 3", QwenImageSubmissionUnknownError("the answer was lost"), paid=False)
    problem = str(problem_of(batch))
    assert problem.startswith("4 of 5 images are missing: 1 failed; 1 may be paid, because the answer")
    assert "The first error: row 2: Image task n43 failed" in problem
    assert "Clearing it also resubmits the images that may be paid" in problem


def test_a_row_without_an_outcome_was_not_submitted() -> None:
    assert manifest_row(3, {"prompt": "a"}, None, "us") == {
        "row": 3,
        "status": "NOT_SUBMITTED",
        "prompt": "a",
        "writer": "us",
    }
    assert manifest_row(3, {"prompt": "a"}, {"status": "SUCCESS"}, "us")["status"] == "SUCCESS"
