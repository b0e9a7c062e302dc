"""Decides how an error ends an Airflow task: without a retry, or with one if that may help."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException, AirflowTaskTimeout

from airflow_provider_qwenimage.exceptions import (
    QwenImageContractError,
    QwenImageError,
    QwenImageImageError,
    QwenImageNotFoundError,
    QwenImageTaskFailedError,
    QwenImageTimeoutError,
    is_bad_argument,
    is_permanent,
    without_advice,
)
from airflow_provider_qwenimage.rules.retries import submission_unknown
from airflow_provider_qwenimage.rules.task_ids import printable_id
from airflow_provider_qwenimage.tasks.metrics import count_failure
from airflow_provider_qwenimage.text.storable import MAX_MESSAGE_CHARACTERS, storable_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from airflow_provider_qwenimage.tasks.ledger import Ledger

log = logging.getLogger(__name__)

# After these the image may be lost: if a cleared task meets one, the next Clear may pay for another image.
_MAY_BE_LOST = (
    QwenImageNotFoundError,
    QwenImageImageError,
    QwenImageTimeoutError,
    QwenImageContractError,
    AirflowTaskTimeout,
)


@contextmanager
def reporting_failures(ti: Any = None) -> Iterator[None]:
    """Count and show what the block raises, and end the task without a retry if a retry would only fail again.

    Args:
        ti: The task instance whose XCom `error` shows the failure in the gallery, or None.

    Raises:
        AirflowFailException: For a bad argument or a permanent `QwenImageError`. Other errors pass
            as they are, and Airflow retries the task as its ``retries`` say.
    """
    try:
        yield
    # Airflow's `execution_timeout` is no Exception, so that tasks don't swallow it by accident.
    except (Exception, AirflowTaskTimeout) as error:
        # An exception of Airflow's that has a cause only passes it on.
        passed_on = error.__cause__ if isinstance(error, AirflowException) else None
        cause = error if passed_on is None else passed_on
        count_failure(cause)
        if ti is not None:
            with logging_errors("the XCom error"):
                ti.xcom_push(key="error", value=_shown(cause, str(error)))
        if is_permanent(error):
            raise _without_retry(error) from error
        raise


@contextmanager
def raising_unknown_submission() -> Iterator[None]:
    """Raise a submission that Airflow's `execution_timeout` cuts off as one whose outcome is unknown.

    Raises:
        QwenImageSubmissionUnknownError: Because the submission may have been accepted.
    """
    try:
        yield
    except AirflowTaskTimeout as error:
        raise submission_unknown(f"the task's execution_timeout passed first ({error}).") from error


@contextmanager
def recording_end(image_task_id: str, ledger: Ledger) -> Iterator[None]:
    """Record what the block raises about a submitted image task, and say what becomes of the image.

    Args:
        image_task_id: The API's id of the image task.
        ledger: Where the next try finds the record.

    Raises:
        AirflowFailException: For an error that a retry would only meet again. Others pass as they are,
            because a retry resumes the image task.
    """
    try:
        yield
    except QwenImageTaskFailedError as error:
        record_end(error, ledger)
        raise
    except (Exception, AirflowTaskTimeout) as error:
        state = f"Image task {printable_id(image_task_id)} is submitted and may be paid."
        if record_end(error, ledger):
            advice = (
                "The cleared task tried to resume it and failed. Clear the task again to submit (and pay for) a new "
                "image; or wait for this one with a QwenImageStatusSensor for that id."
            )
        elif is_permanent(error):
            advice = "Clear this task to resume it; that costs nothing."
        else:
            advice = "The next try of this task, automatic or after a Clear, resumes it; that costs nothing."
        if is_permanent(error):
            raise _without_retry(error, f" {state} {advice}") from error
        if isinstance(error, QwenImageError):
            # One piece of advice: that of the wait is for those who do not know who submitted the image task.
            error.advice = advice
        log.warning("%s %s", state, advice)
        raise


def record_end(error: BaseException, ledger: Ledger) -> bool:
    """Record how a submitted image task, or the wait for it, ended, as far as the next try has to know.

    Returns:
        Whether a cleared task failed to resume its image task, so that the next Clear submits a new one.
    """
    if isinstance(error, QwenImageTaskFailedError):
        with logging_errors("the failure"):
            ledger.fail(error)
        return False
    resume_failed = False
    if isinstance(error, _MAY_BE_LOST):
        with logging_errors("that the image could not be fetched"):
            resume_failed = ledger.record_lost()
    return resume_failed


@contextmanager
def logging_errors(what: str) -> Iterator[None]:
    """Log an error of the block instead of raising it, so that it does not hide the one that ends the task.

    Args:
        what: What the block records, for the log.
    """
    try:
        yield
    except Exception:  # Airflow's and every storage's; the task fails in any case
        log.warning("Could not record %s.", what, exc_info=True)


@contextmanager
def without_retry(image_task_id: str) -> Iterator[None]:
    """End the task without a retry on any error after a submission that is not recorded: a retry would submit again.

    Args:
        image_task_id: The API's id of the image task that was submitted.

    Raises:
        AirflowFailException: For every error but a FAILED image task, whose retry asks for another image.
    """
    try:
        yield
    except QwenImageTaskFailedError:
        raise
    except (Exception, AirflowTaskTimeout) as error:
        raise _without_retry(
            error,
            f" Image task {printable_id(image_task_id)} is submitted and may be paid, so this task is not retried "
            "automatically: a retry would submit, and pay, again. Get the image with a QwenImageStatusSensor for that "
            "id, or clear this task to pay for a new one.",
        ) from error


def _shown(error: BaseException, message: str) -> dict[str, str]:
    name = type(error).__name__
    return {"error": name, "message": storable_text(message.removeprefix(f"{name}: "), MAX_MESSAGE_CHARACTERS)}


def _without_retry(error: BaseException, more: str = "") -> AirflowFailException:
    name = "" if is_bad_argument(error) and not more else f"{type(error).__name__}: "
    what = without_advice(error) if more and isinstance(error, QwenImageError) else str(error)
    return AirflowFailException(f"{name}{storable_text(what)}{more}")
