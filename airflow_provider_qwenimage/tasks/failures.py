"""Decides how an error ends an Airflow task: at once for good, or with a retry where one may help."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException, AirflowTaskTimeout

from airflow_provider_qwenimage.exceptions import (
    QwenImageContractError,
    QwenImageImageError,
    QwenImageNotFoundError,
    QwenImageTaskFailedError,
    QwenImageTimeoutError,
    is_bad_argument,
    is_permanent,
)
from airflow_provider_qwenimage.rules.retries import submission_unknown
from airflow_provider_qwenimage.rules.task_ids import printable_id
from airflow_provider_qwenimage.tasks.metrics import count_failure
from airflow_provider_qwenimage.text.storable import MAX_MESSAGE_CHARACTERS, storable_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from airflow_provider_qwenimage.tasks.ledger import Ledger

log = logging.getLogger(__name__)

# After these the image may never be had: a cleared task that meets one may pay for another when it is cleared again.
_MISSED = (
    QwenImageNotFoundError,
    QwenImageImageError,
    QwenImageTimeoutError,
    QwenImageContractError,
    AirflowTaskTimeout,
)


@contextmanager
def failing_for_good(ti: Any = None) -> Iterator[None]:
    """End the task without a retry on an error that a retry would only meet again; count and show every failure.

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
        told_again = isinstance(error, AirflowException) and error.__cause__ is not None
        cause = error.__cause__ if told_again and error.__cause__ else error
        count_failure(cause)
        if ti is not None:
            with still_raising("the XCom error"):
                ti.xcom_push(key="error", value=_shown(cause, str(error)))
        if is_permanent(error):
            raise _for_good(error) from error
        raise


@contextmanager
def submitting() -> Iterator[None]:
    """End the task without a retry where Airflow's `execution_timeout` cuts a submission off.

    Raises:
        QwenImageSubmissionUnknownError: Because the submission may have been accepted.
    """
    try:
        yield
    except AirflowTaskTimeout as error:
        raise submission_unknown(f"the task's execution_timeout passed first ({error}).") from error


@contextmanager
def remembering_what_is_paid(image_task_id: str, ledger: Ledger) -> Iterator[None]:
    """Tell what becomes of a submitted image task when its Airflow task fails, and write it down.

    Args:
        image_task_id: The API's id of the image task.
        ledger: Where the next try will find it.

    Raises:
        AirflowFailException: For an error that a retry would only meet again. Others pass as they are,
            because a retry goes back to the image task.
    """
    try:
        yield
    except QwenImageTaskFailedError as error:
        write_down(error, ledger)
        raise
    except (Exception, AirflowTaskTimeout) as error:
        story = f"Image task {printable_id(image_task_id)} is submitted and may be paid."
        if write_down(error, ledger):
            advice = (
                "This task was cleared and went back to it in vain. Clear it once more to submit, and pay for, another "
                "one; or wait for this one with a QwenImageStatusSensor for that id."
            )
        elif is_permanent(error):
            advice = "Clear this task to go back to it; that costs nothing."
        else:
            advice = "The next try of this task, automatic or after a Clear, goes back to it; that costs nothing."
        if is_permanent(error):
            raise _for_good(error, f" {story} {advice}") from error
        log.warning("%s %s", story, advice)
        raise


def write_down(error: BaseException, ledger: Ledger) -> bool:
    """Write down what a submitted image task ended with, as far as the next try has to know it.

    Args:
        error: What it, or the wait for it, ended with.
        ledger: Where the next try will find it.

    Returns:
        Whether a cleared task has gone back to its image task in vain, so that the next Clear submits.
    """
    if isinstance(error, QwenImageTaskFailedError):
        with still_raising("the failure"):
            ledger.fail(error)
        return False
    in_vain = ledger.is_cleared and isinstance(error, _MISSED)
    if in_vain:
        with still_raising("that it went back in vain"):
            ledger.miss()
    return in_vain


@contextmanager
def still_raising(what: str) -> Iterator[None]:
    """Keep a further error, while something is written down, from hiding the one that is about to be raised.

    Args:
        what: What is written down, for the log.
    """
    try:
        yield
    except Exception:  # Airflow's and every storage's; the task fails in any case
        log.warning("Could not write down %s.", what, exc_info=True)


@contextmanager
def keeping_what_is_paid(image_task_id: str) -> Iterator[None]:
    """End the task without a retry on any error after a submission, because a retry would submit again.

    This is for a task that nothing is remembered of.

    Args:
        image_task_id: The API's id of the image task that was submitted.

    Raises:
        AirflowFailException: For every error but a FAILED image task, whose retry is a new try for an image.
    """
    try:
        yield
    except QwenImageTaskFailedError:
        raise
    except (Exception, AirflowTaskTimeout) as error:
        raise _for_good(
            error,
            f" Image task {printable_id(image_task_id)} is submitted and may be paid, so this task is not retried by "
            "itself: a retry would submit, and pay, again. Get the image with a QwenImageStatusSensor for that id, or "
            "clear this task to pay for a new one.",
        ) from error


def _shown(error: BaseException, told: str) -> dict[str, str]:
    name = type(error).__name__
    return {"error": name, "message": storable_text(told.removeprefix(f"{name}: "), MAX_MESSAGE_CHARACTERS)}


def _for_good(error: BaseException, more: str = "") -> AirflowFailException:
    name = "" if is_bad_argument(error) and not more else f"{type(error).__name__}: "
    return AirflowFailException(f"{name}{storable_text(str(error))}{more}")
