"""How an error ends an Airflow task: whether it is retried, what is recorded, and what the user reads."""

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
    QwenImageBudgetError,
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
    without_advice,
)
from airflow_provider_qwenimage.rules.snapshots import task_failure
from airflow_provider_qwenimage.rules.submissions import Resume, Step, Stop, Submit
from airflow_provider_qwenimage.tasks.failures import (
    raising_unknown_submission,
    recording_end,
    reporting_failures,
    without_retry,
)
from airflow_provider_qwenimage.tasks.ledger import Ledger
from airflow_provider_qwenimage.triggers import QwenImageStatusTrigger
from tests.ledgers import Facts, asking_of, ledger_of, step_of

# Each error, and whether the submitted image may be lost because of it.
PERMANENT: list[tuple[BaseException, bool]] = [
    (QwenImageAuthError("no key"), False),
    (QwenImageBadRequestError("no such size"), False),
    (QwenImageCreditsError("no credits"), False),
    (QwenImageNotFoundError("no such task"), True),
    (QwenImageImageError("too large", permanent=True), True),
    (ValueError("prompt is ''"), False),
]
TRANSIENT: list[tuple[BaseException, bool]] = [
    (QwenImageError("odd"), False),
    (QwenImageBudgetError("spent"), False),
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


def opened(store: Facts, try_number: int = 1, max_tries: int = 2) -> Ledger:
    """Return the ledger of a try that has looked at its records."""
    ledger = ledger_of(store, None, try_number, max_tries)
    step_of(ledger, asking_of(try_number=try_number, max_tries=max_tries))
    return ledger


def step(store: Facts, try_number: int = 1, max_tries: int = 2) -> Step:
    """Return what a try does."""
    ledger = ledger_of(store, None, try_number, max_tries)
    return step_of(ledger, asking_of(try_number=try_number, max_tries=max_tries))


def submitted(store: Facts) -> Ledger:
    """Return the ledger of a first try whose submission was accepted."""
    ledger = opened(store)
    assert ledger.intend(asking_of())
    ledger.accept("n43")
    return ledger


# Decoding errors of libraries are ValueErrors, but not about an argument.
LIBRARY_ERRORS: list[tuple[BaseException, bool]] = [
    (UnicodeDecodeError("utf-8", b"\xe9", 0, 1, "no UTF-8"), False),
    (json.JSONDecodeError("no JSON", "", 0), False),
]


def ended_by(context: Any, error: BaseException) -> BaseException:
    """Return the exception that leaves a context in which this error is raised."""
    with pytest.raises(BaseException) as caught, context:  # noqa: PT011  any error, including Airflow's timeout
        raise error
    return caught.value


def cases(errors: list[tuple[BaseException, bool]]) -> list[Any]:
    return [pytest.param(error, may_be_lost, id=type(error).__name__) for error, may_be_lost in errors]


def test_every_error_of_this_package_is_tested_here() -> None:
    tested = {type(error) for error, _ in PERMANENT + TRANSIENT} | {type(FAILED), type(REFUSED)}
    tree = [error for error in vars(exceptions).values() if isinstance(error, type) and issubclass(error, Exception)]
    # Not tested here: a submission whose answer is lost, the error at the end of a batch, and a base class.
    assert set(tree) - tested == {QwenImageSubmissionUnknownError, QwenImageBatchError, QwenImageRequestError}


@pytest.mark.parametrize(
    ("error", "may_be_lost"), cases([*PERMANENT, (QwenImageSubmissionUnknownError("lost"), False), (REFUSED, False)])
)
def test_a_permanent_error_fails_the_task_without_a_retry(error: BaseException, may_be_lost: bool) -> None:
    assert is_permanent(error)
    end = ended_by(reporting_failures(), error)
    assert type(end) is AirflowFailException
    assert end.__cause__ is error
    # A message about an argument names the argument, so it needs no class name.
    assert str(end) == (str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}")


@pytest.mark.parametrize(
    ("error", "may_be_lost"),
    cases(
        [
            *TRANSIENT,
            *LIBRARY_ERRORS,
            (FAILED, False),
            (AirflowFailException("reported already"), False),
            (AirflowSkipException(), False),
        ]
    ),
)
def test_any_other_error_is_raised_unchanged_so_airflow_may_retry(error: BaseException, may_be_lost: bool) -> None:
    assert not is_permanent(error)
    assert ended_by(reporting_failures(), error) is error


def test_a_submission_interrupted_by_execution_timeout_may_be_paid() -> None:
    end = ended_by(raising_unknown_submission(), AirflowTaskTimeout("60 s"))
    assert type(end) is QwenImageSubmissionUnknownError
    assert "execution_timeout passed first (60 s)" in str(end)
    for error in (QwenImageServerError("in trouble"), OSError("disk full")):
        assert ended_by(raising_unknown_submission(), error) is error


@pytest.mark.parametrize(("error", "may_be_lost"), cases(PERMANENT))
def test_a_permanent_error_after_a_submission_names_the_image_task_and_that_a_clear_is_free(
    error: BaseException, may_be_lost: bool
) -> None:
    store = Facts()
    end = ended_by(recording_end("n43", submitted(store)), error)
    assert type(end) is AirflowFailException
    assert end.__cause__ is error
    assert str(end).startswith(
        f"{type(error).__name__}: {without_advice(error)} Image task n43 is submitted and may be paid."
    )
    assert "Clear this task to resume it; that costs nothing." in str(end)
    assert isinstance(step(store, 2), Resume)
    assert isinstance(step(store, 2, 4), Resume)


@pytest.mark.parametrize(("error", "may_be_lost"), cases(TRANSIENT))
def test_a_transient_error_after_a_submission_is_retried_for_free(
    error: BaseException, may_be_lost: bool, caplog: pytest.LogCaptureFixture
) -> None:
    store = Facts()
    assert ended_by(recording_end("n43", submitted(store)), error) is error
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    for part in ("Image task n43 is submitted and may be paid.", "resumes it; that costs nothing."):
        assert part in record.getMessage()
    assert isinstance(step(store, 2), Resume)
    assert isinstance(step(store, 2, 4), Resume)


@pytest.mark.parametrize("first", [False, True], ids=["only after a clear", "before and after a clear"])
@pytest.mark.parametrize(("error", "may_be_lost"), cases(PERMANENT + TRANSIENT))
def test_a_second_clear_submits_another_image_only_if_the_first_may_be_lost(
    error: BaseException, may_be_lost: bool, first: bool, caplog: pytest.LogCaptureFixture
) -> None:
    store = Facts()
    ended_by(recording_end("n43", submitted(store)), error if first else OSError("disk full"))
    caplog.clear()
    end = ended_by(recording_end("n43", opened(store, 2, 4)), error)
    assert (type(end) is AirflowFailException) == is_permanent(error)
    message = str(end) if is_permanent(error) else caplog.text
    assert "n43" in message
    # The image has to be missed before and after a clear.
    is_lost = may_be_lost and first
    assert ("Clear the task again to submit (and pay for) a new image" in message) == is_lost
    # A retry by Airflow never pays again.
    assert isinstance(step(store, 3, 4), Resume)
    assert isinstance(step(store, 3, 6), Submit if is_lost else Resume)


@pytest.mark.parametrize("max_tries", [2, 4])
def test_a_failed_image_is_recorded_and_submitted_again_by_a_retry(
    max_tries: int, caplog: pytest.LogCaptureFixture
) -> None:
    store = Facts()
    submitted(store)
    assert ended_by(recording_end("n43", opened(store, 2, max_tries)), FAILED) is FAILED
    assert step(store, 3, max_tries) == Submit(spent=2.5, charged=2.5)
    assert caplog.records == []


def test_a_refused_image_is_recorded_and_not_submitted_again() -> None:
    store = Facts()
    assert ended_by(recording_end("n43", submitted(store)), REFUSED) is REFUSED
    stopped = step(store, 2)
    assert isinstance(stopped, Stop)
    assert isinstance(stopped.error, QwenImageContentPolicyError)


def with_store() -> Any:
    return recording_end("n43", submitted(Facts()))


def without_store() -> Any:
    return without_retry("n43")


@pytest.mark.parametrize("context", [reporting_failures, raising_unknown_submission, with_store, without_store])
def test_deferrals_interrupts_and_exits_are_raised_unchanged(context: Any, caplog: pytest.LogCaptureFixture) -> None:
    deferred = TaskDeferred(trigger=QwenImageStatusTrigger("n43"), method_name="execute_complete")
    for signal in (deferred, KeyboardInterrupt(), SystemExit(1)):
        assert ended_by(context(), signal) is signal
    with context():
        pass
    assert caplog.records == []


def test_a_deferral_is_not_recorded_as_a_failure() -> None:
    store = Facts()
    ledger = submitted(store)
    before = dict(store.written)
    ended_by(
        recording_end("n43", ledger),
        TaskDeferred(trigger=QwenImageStatusTrigger("n43"), method_name="execute_complete"),
    )
    assert store.written == before


@pytest.mark.parametrize(("error", "may_be_lost"), cases(PERMANENT + TRANSIENT))
def test_without_a_store_no_error_after_a_submission_is_retried(error: BaseException, may_be_lost: bool) -> None:
    end = ended_by(without_retry("n43"), error)
    assert type(end) is AirflowFailException
    assert end.__cause__ is error
    assert str(end).startswith(
        f"{type(error).__name__}: {without_advice(error)} Image task n43 is submitted and may be paid"
    )
    for part in ("a retry would submit, and pay, again", "QwenImageStatusSensor", "clear this task to pay for a new"):
        assert part in str(end)


@pytest.mark.parametrize("error", [FAILED, REFUSED])
def test_without_a_store_a_failed_image_may_be_retried(error: QwenImageTaskFailedError) -> None:
    assert ended_by(without_retry("n43"), error) is error


@pytest.mark.parametrize("error", [FAILED, REFUSED, QwenImageTimeoutError("late"), AirflowTaskTimeout("late")])
def test_a_failure_that_cannot_be_recorded_still_ends_the_try(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    store = Facts()
    ledger = submitted(store)
    store.fail(9)
    assert ended_by(recording_end("n43", ledger), error) is error
    assert "Could not record" in caplog.text
    assert isinstance(step(store, 2), Resume)
