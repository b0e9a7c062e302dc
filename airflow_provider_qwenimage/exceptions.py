"""The errors of this package.

    QwenImageError
    ├── QwenImageRequestError                 the API answered with an error (.code, .from_api)
    │   ├── QwenImageBadRequestError          400
    │   ├── QwenImageAuthError                401, 403
    │   ├── QwenImageCreditsError             402
    │   ├── QwenImageNotFoundError            404
    │   ├── QwenImageRateLimitError           429 (.retry_after)
    │   └── QwenImageServerError              5xx (.retry_after)
    ├── QwenImageConnectionError              no response from the API: safe to send again
    ├── QwenImageSubmissionUnknownError       a submission without a response: it may be paid
    ├── QwenImageContractError                a response without the documented shape
    ├── QwenImageTaskFailedError              the image task ended as FAILED (.snapshot)
    │   └── QwenImageContentPolicyError       FAILED because the prompt was refused
    ├── QwenImageTimeoutError                 the deadline of a wait passed
    ├── QwenImageBatchError                   some images of a batch failed
    ├── QwenImageBudgetError                  a budget of the connection is spent (.left, .retry_after)
    └── QwenImageImageError                   the bytes are not the requested image

A bad argument is a plain ``ValueError`` that names the argument, its value and what it must be.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from airflow_provider_qwenimage.contract import TaskSnapshot


_CONNECTION = "{connection}"


class QwenImageError(Exception):
    """Root of the errors of this package.

    Attributes:
        permanent: Whether a retry of the task is useless: the same submission would fail again, or the wait for an
            image task is over for good. A wait that gave up because its reads failed is not, whatever they ended in.
        advice: What to do about it, if the message does not say so itself. ``{connection}`` stands for the connection
            until `name_connection` names it.
    """

    permanent: bool = False
    advice: str = ""

    def __str__(self) -> str:
        message = without_advice(self)
        return f"{message} {self.advice.replace(_CONNECTION, 'the connection')}" if self.advice else message

    def name_connection(self, conn_id: str) -> None:
        """Have the advice name the connection whose key and host the request used.

        Args:
            conn_id: The id of the connection.
        """
        self.advice = self.advice.replace(_CONNECTION, f"connection {conn_id!r}")


class QwenImageRequestError(QwenImageError):
    """The API answered with an error.

    Args:
        message: What happened.
        advice: What to do about it, as for every `QwenImageError`.
        code: The error code of the API's envelope; without one, the HTTP status.
        from_api: Whether the response was the API's documented JSON envelope, and not, say, a proxy's HTML page.
        retry_after: How long the server asked to wait, in seconds, if it did.
    """

    def __init__(
        self,
        message: str,
        *,
        advice: str = "",
        code: int = 0,
        from_api: bool = False,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.advice = advice
        self.code = code
        self.from_api = from_api
        self.retry_after = retry_after


class QwenImageBadRequestError(QwenImageRequestError):
    """Code 400 (or another 4xx without a class of its own): the request itself is wrong."""

    permanent = True


class QwenImageAuthError(QwenImageRequestError):
    """Code 401 or 403: the API key is missing, wrong or not allowed to do this."""

    permanent = True


class QwenImageCreditsError(QwenImageRequestError):
    """Code 402: the account has no credits left."""

    permanent = True


class QwenImageNotFoundError(QwenImageRequestError):
    """Code 404: the API does not know the task id, or the base URL is not the API's."""

    permanent = True


class QwenImageRateLimitError(QwenImageRequestError):
    """Code 429: too many requests. `retry_after` is the wait that the API asked for, if it did."""


class QwenImageServerError(QwenImageRequestError):
    """Code 5xx: the API, or a proxy in front of it, has a fault."""


class QwenImageConnectionError(QwenImageError):
    """The API gave no response, and nothing was lost that could cost credits.

    Attributes:
        reason: Why, and what to do about it, as a part of a sentence; None if unknown.
    """

    reason: str | None = None


class QwenImageSubmissionUnknownError(QwenImageError):
    """A submission was sent and its response never arrived: it may have been accepted and paid.

    It is never sent again automatically, because the API offers no way to find such a task.
    """

    permanent = True


class QwenImageContractError(QwenImageError):
    """A response that does not have the documented shape.

    Args:
        message: What the API answered.
        advice: What to do about it, as for every `QwenImageError`.
        redirect: Where the response redirects to, without user and query, if it is a redirect.
    """

    def __init__(self, message: str, *, advice: str = "", redirect: str | None = None) -> None:
        super().__init__(message)
        self.advice = advice
        self.redirect = redirect


class QwenImageTaskFailedError(QwenImageError):
    """The image task ended with status FAILED.

    Args:
        message: What happened and what it cost.
        snapshot: The last status of the task, if known.
    """

    def __init__(self, message: str, *, snapshot: TaskSnapshot | None = None) -> None:
        super().__init__(message)
        self.snapshot = snapshot

    @property
    def cost(self) -> float:
        """Credits that the failed task cost; 0 if the API reported none."""
        return (self.snapshot.consumed_credits if self.snapshot else None) or 0.0


class QwenImageContentPolicyError(QwenImageTaskFailedError):
    """The image task FAILED because the prompt violates the content policy."""

    permanent = True


class QwenImageTimeoutError(QwenImageError):
    """The deadline of a wait passed before the image task ended."""


class QwenImageBatchError(QwenImageError):
    """Some images of a batch failed; the others are stored.

    Args:
        message: How many, why, and what to do about it.
        permanent: Whether another try would only meet the same errors.
        retry_after: In how many seconds another try can go on, if a budget stopped the batch.
    """

    def __init__(self, message: str, *, permanent: bool = False, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.permanent = permanent
        self.retry_after = retry_after


class QwenImageBudgetError(QwenImageError):
    """A budget of the connection, ``credits_per_day`` or ``credits_per_month``, has no room for the image.

    Nothing was submitted. A retry helps after the budget has reset.

    Args:
        message: What is left, and which DAGs spent the rest.
        advice: When it resets, and what to do to go on before.
        left: Credits that are left.
        retry_after: In how many seconds it resets.
    """

    def __init__(self, message: str, *, advice: str = "", left: float = 0.0, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.advice = advice
        self.left = left
        self.retry_after = retry_after


class QwenImageImageError(QwenImageError):
    """The downloaded bytes are not the requested image, or the download failed.

    Args:
        message: What is wrong with the bytes and what to do about it.
        permanent: Whether another download would return the same bytes.
        retry_after: How long the image host asked to wait, in seconds, if it did.
    """

    def __init__(self, message: str, *, permanent: bool = False, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.permanent = permanent
        self.retry_after = retry_after


def without_advice(error: QwenImageError) -> str:
    """Return what happened, for a message that has its own advice."""
    return Exception.__str__(error)


def is_bad_argument(error: BaseException) -> bool:
    """Whether an error is about an argument, and not a library's error about data that it could not decode."""
    return isinstance(error, ValueError) and not isinstance(error, UnicodeError | json.JSONDecodeError)


def is_permanent(error: BaseException) -> bool:
    """Whether a retry of the task would only meet the same error."""
    return is_bad_argument(error) or (isinstance(error, QwenImageError) and error.permanent)
