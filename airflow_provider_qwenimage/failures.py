"""Decides how an error ends an Airflow task: at once for good, or with a retry where one may help."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from airflow.providers.common.compat.sdk import AirflowFailException, AirflowTaskTimeout

from airflow_provider_qwenimage.exceptions import QwenImageError, QwenImageTaskFailedError
from airflow_provider_qwenimage.retries import submission_unknown

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def failing_for_good() -> Iterator[None]:
    """End the task without a retry on an error that a retry would only meet again.

    Raises:
        AirflowFailException: For a bad argument or a permanent `QwenImageError`. Other errors pass
            as they are, and Airflow retries the task as its ``retries`` say.
    """
    try:
        yield
    except ValueError as error:
        raise AirflowFailException(str(error)) from error
    except QwenImageError as error:
        if error.permanent:
            raise AirflowFailException(f"{type(error).__name__}: {error}") from error
        raise


@contextmanager
def submitting() -> Iterator[None]:
    """End the task without a retry where Airflow's `execution_timeout` cuts a submission off.

    Raises:
        AirflowFailException: Because the submission may have been accepted.
    """
    try:
        yield
    except AirflowTaskTimeout as error:
        unknown = submission_unknown(f"the task's execution_timeout passed first ({error}).")
        raise AirflowFailException(f"{type(unknown).__name__}: {unknown}") from error


@contextmanager
def keeping_what_is_paid(image_task_id: str) -> Iterator[None]:
    """End the task without a retry on any error after a submission, because a retry would submit again.

    Args:
        image_task_id: The API's id of the image task that was submitted.

    Raises:
        AirflowFailException: For every error but a FAILED image task, whose retry is a new try for an image.
    """
    try:
        yield
    except QwenImageTaskFailedError:
        raise
    # Airflow's `execution_timeout` is no Exception, so that tasks don't swallow it by accident.
    except (Exception, AirflowTaskTimeout) as error:
        raise AirflowFailException(
            f"{type(error).__name__}: {error} Image task {image_task_id} is submitted and may be paid, so this task is "
            "not retried by itself: a retry would submit, and pay, again. Get the image with a "
            "QwenImageStatusSensor for that id, or clear this task to pay for a new one."
        ) from error
