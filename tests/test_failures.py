"""How an error ends an Airflow task: what is retried, what is written down, and what the user is told."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import (
    AirflowException,
    AirflowFailException,
    AirflowSkipException,
    AirflowTaskTimeout,
    TaskDeferred,
)

from airflow_provider_qwenimage import exceptions
from airflow_provider_qwenimage.contract import TaskSnapshot, TaskStatus
from airflow_provider_qwenimage.exceptions import (
    QwenImageAuthError,
    QwenImageBadRequestError,
    QwenImageBatchError,
    QwenImageConnectionError,
    QwenImageContentPolicyError,
    QwenImageContractError,
    QwenImageCreditsError,
    QwenImageError,
    QwenImageImageError,
    QwenImageNotFoundError,
    QwenImageRateLimitError,
    QwenImageRequestError,
    QwenImageServerError,
    QwenImageSubmissionUnknownError,
    QwenImageTaskFailedError,
    QwenImageTimeoutError,
    is_permanent,
)
from airflow_provider_qwenimage.rules.snapshots import task_failure
from airflow_provider_qwenimage.rules.submissions import Resume, Stop, Submit
from airflow_provider_qwenimage.tasks.failures import (
    raising_unknown_submission,
    recording_end,
    reporting_failures,
    without_retry,
)
from airflow_provider_qwenimage.tasks.ledger import Ledger
from airflow_provider_qwenimage.tasks.stores import NoStore
from airflow_provider_qwenimage.triggers import QwenImageStatusTrigger
from tests.ledgers import REQUEST, in_flight, opened

# An error, and whether it is one after which the image may never be had.
PERMANENT: list[tuple[BaseException, bool]] = [
    (QwenImageAuthError("no key"), False),
    (QwenImageBadRequestError("no such size"), False),
    (QwenImageCreditsError("no credits"), False),
    (QwenImageNotFoundError("no such task"), True),
    (QwenImageImageError("too large", permanent=True), True),
    (ValueError("prompt is ''"), False),
]
PASSING: list[tuple[BaseException, bool]] = [
    (QwenImageError("odd"), False),
    (QwenImageConnectionError("no answer"), False),
    (QwenImageRateLimitError("slow down"), False),
    (QwenImageServerError("in trouble"), False),
    (QwenImageContractError("not documented"), True),
    (QwenImageTimeoutError("late"), True),
    (QwenImageImageError("truncated"), True),
    (AirflowTaskTimeout("late as well"), True),
    (OSError("disk full"), False),
    (AirflowException("the trigger broke"), False),
]
FAILED = task_failure(
    TaskSnapshot(task_id="n43", status=TaskStatus.FAILED, consumed_credits=2.5, error_message="Out of paint")
)
REFUSED = task_failure(
    TaskSnapshot(task_id="n43", status=TaskStatus.FAILED, error_message="Content policy violation detected")
)


class Memory(NoStore):
    """Remembers in this process."""

    def __init__(self) -> None:
        self.content: dict[str, Any] | None = None

    def read(self) -> object:
        return self.content

    def write(self, value: dict[str, Any]) -> None:
        self.content = value


# A library that cannot decode what somebody sent refuses no argument, though its errors are ValueErrors.
OF_LIBRARIES: list[tuple[BaseException, bool]] = [
    (UnicodeDecodeError("utf-8", b"\xe9", 0, 1, "no UTF-8"), False),
    (json.JSONDecodeError("no JSON", "", 0), False),
]


def ended_by(context: Any, error: BaseException) -> BaseException:
    """Return what a task ends with, if this error is met in a context."""
    with pytest.raises(BaseException) as caught, context:  # noqa: PT011  any, also Airflow's timeout
        raise error
    return caught.value


def names(errors: list[tuple[BaseException, bool]]) -> list[Any]:
    return [pytest.param(error, missed, id=type(error).__name__) for error, missed in errors]


def test_every_error_of_this_package_is_looked_at() -> None:
    looked_at = {type(error) for error, _ in PERMANENT + PASSING} | {type(FAILED), type(REFUSED)}
    tree = [error for error in vars(exceptions).values() if isinstance(error, type) and issubclass(error, Exception)]
    # A lost submission is over before anything is known to be submitted, a batch when all of it is over; the third one
    # is only a base.
    assert set(tree) - looked_at == {QwenImageSubmissionUnknownError, QwenImageBatchError, QwenImageRequestError}


@pytest.mark.parametrize(
    ("error", "missed"), names([*PERMANENT, (QwenImageSubmissionUnknownError("lost"), False), (REFUSED, False)])
)
def test_what_a_retry_would_only_meet_again_ends_the_task_for_good(error: BaseException, missed: bool) -> None:
    assert is_permanent(error)
    end = ended_by(reporting_failures(), error)
    assert type(end) is AirflowFailException
    assert end.__cause__ is error
    # A message that names the argument needs no class before it.
    assert str(end) == (str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}")


@pytest.mark.parametrize(
    ("error", "missed"),
    names(
        [
            *PASSING,
            *OF_LIBRARIES,
            (FAILED, False),
            (AirflowFailException("told already"), False),
            (AirflowSkipException(), False),
        ]
    ),
)
def test_what_may_pass_is_left_to_airflow(error: BaseException, missed: bool) -> None:
    assert not is_permanent(error)
    assert ended_by(reporting_failures(), error) is error


def test_a_submission_that_airflows_timeout_cuts_off_may_be_paid() -> None:
    end = ended_by(raising_unknown_submission(), AirflowTaskTimeout("60 s"))
    assert type(end) is QwenImageSubmissionUnknownError
    assert "execution_timeout passed first (60 s)" in str(end)
    for error in (QwenImageServerError("in trouble"), OSError("disk full")):
        assert ended_by(raising_unknown_submission(), error) is error


@pytest.mark.parametrize(("error", "missed"), names(PERMANENT))
def test_after_a_submission_a_permanent_error_names_what_is_paid_and_that_a_clear_is_free(
    error: BaseException, missed: bool
) -> None:
    store = Memory()
    end = ended_by(recording_end("n43", in_flight(store)), error)
    assert type(end) is AirflowFailException
    assert end.__cause__ is error
    assert str(end).startswith(f"{type(error).__name__}: {error} Image task n43 is submitted and may be paid.")
    assert "Clear this task to resume it; that costs nothing." in str(end)
    assert isinstance(opened(store, 2).next_step(REQUEST), Resume)
    assert isinstance(opened(store, 2, 4).next_step(REQUEST), Resume)


@pytest.mark.parametrize(("error", "missed"), names(PASSING))
def test_after_a_submission_an_error_that_may_pass_is_retried_for_free(
    error: BaseException, missed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    store = Memory()
    assert ended_by(recording_end("n43", in_flight(store)), error) is error
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    for part in ("Image task n43 is submitted and may be paid.", "resumes it; that costs nothing."):
        assert part in record.getMessage()
    assert isinstance(opened(store, 2).next_step(REQUEST), Resume)
    assert isinstance(opened(store, 2, 4).next_step(REQUEST), Resume)


@pytest.mark.parametrize(("error", "missed"), names(PERMANENT + PASSING))
def test_a_cleared_task_that_cannot_resume_may_pay_for_another_when_it_is_cleared_again(
    error: BaseException, missed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    store = Memory()
    in_flight(store)
    end = ended_by(recording_end("n43", opened(store, 2, 4)), error)
    assert (type(end) is AirflowFailException) == is_permanent(error)
    told = str(end) if is_permanent(error) else caplog.text
    assert "n43" in told
    assert ("Clear the task again to submit (and pay for) a new image" in told) == missed
    # Airflow's own retry never pays.
    assert isinstance(opened(store, 3, 4).next_step(REQUEST), Resume)
    assert isinstance(opened(store, 3, 6).next_step(REQUEST), Submit if missed else Resume)


def test_a_cleared_task_that_counted_its_image_before_it_was_lost_may_pay_for_another_too() -> None:
    store = Memory()
    in_flight(store)
    cleared = opened(store, 2, 4)
    cleared.count()
    ended_by(recording_end("n43", cleared), QwenImageImageError("not found"))
    assert isinstance(opened(store, 3, 6).next_step(REQUEST), Submit)


@pytest.mark.parametrize("max_tries", [2, 4])
def test_a_failed_image_is_written_down_and_submitted_again_by_a_retry(
    max_tries: int, caplog: pytest.LogCaptureFixture
) -> None:
    store = Memory()
    in_flight(store)
    assert ended_by(recording_end("n43", opened(store, 2, max_tries)), FAILED) is FAILED
    assert opened(store, 3, max_tries).next_step(REQUEST) == Submit(2.5)
    assert caplog.records == []


def test_a_refused_image_is_written_down_and_not_submitted_again() -> None:
    store = Memory()
    assert ended_by(recording_end("n43", in_flight(store)), REFUSED) is REFUSED
    step = opened(store, 2).next_step(REQUEST)
    assert isinstance(step, Stop)
    assert isinstance(step.error, QwenImageContentPolicyError)


def remembering() -> Any:
    return recording_end("n43", in_flight(Memory()))


def keeping() -> Any:
    return without_retry("n43")


@pytest.mark.parametrize("context", [reporting_failures, raising_unknown_submission, remembering, keeping])
def test_what_is_no_error_passes(context: Any, caplog: pytest.LogCaptureFixture) -> None:
    deferred = TaskDeferred(trigger=QwenImageStatusTrigger("n43"), method_name="execute_complete")
    for signal in (deferred, KeyboardInterrupt(), SystemExit(1)):
        assert ended_by(context(), signal) is signal
    with context():
        pass
    assert caplog.records == []


def test_a_task_that_is_deferred_is_not_written_down_as_failed() -> None:
    store = Memory()
    ledger = in_flight(store)
    before = dict(store.content or {})
    ended_by(
        recording_end("n43", ledger),
        TaskDeferred(trigger=QwenImageStatusTrigger("n43"), method_name="execute_complete"),
    )
    assert store.content == before


@pytest.mark.parametrize(("error", "missed"), names(PERMANENT + PASSING))
def test_where_nothing_is_remembered_no_error_after_a_submission_is_retried(error: BaseException, missed: bool) -> None:
    end = ended_by(without_retry("n43"), error)
    assert type(end) is AirflowFailException
    assert end.__cause__ is error
    assert str(end).startswith(f"{type(error).__name__}: {error} Image task n43 is submitted and may be paid")
    for part in ("a retry would submit, and pay, again", "QwenImageStatusSensor", "clear this task to pay for a new"):
        assert part in str(end)


@pytest.mark.parametrize("error", [FAILED, REFUSED])
def test_where_nothing_is_remembered_a_failed_image_is_left_to_airflow(error: QwenImageTaskFailedError) -> None:
    assert ended_by(without_retry("n43"), error) is error


def test_a_failure_that_cannot_be_written_down_still_ends_the_try() -> None:
    class Full(Memory):
        def write(self, value: dict[str, Any]) -> None:
            if "Out of paint" in str(value):
                raise OSError("disk full")
            super().write(value)

    store = Full()
    ledger: Ledger = in_flight(store)
    end = ended_by(recording_end("n43", ledger), FAILED)
    assert end is FAILED
    assert isinstance(opened(store, 2).next_step(REQUEST), Resume)
