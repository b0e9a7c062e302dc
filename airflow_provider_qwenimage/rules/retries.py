"""Decides when one request to the API is sent again, and after how long. No I/O.

Reading a status costs nothing, so it is sent again after any fault that may pass. A submission costs
credits and the API has no idempotency key, so it is sent again only if the API surely did not accept
it: never reached, refused with 429, or answered with the documented envelope of code 500 ("try again"),
the last of these once for an image. Without any other clear answer, the result is a
`QwenImageSubmissionUnknownError`.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from airflow_provider_qwenimage.contract import CREDITS_PER_IMAGE
from airflow_provider_qwenimage.exceptions import (
    QwenImageConnectionError,
    QwenImageContractError,
    QwenImageError,
    QwenImageImageError,
    QwenImageRateLimitError,
    QwenImageRequestError,
    QwenImageServerError,
    QwenImageSubmissionUnknownError,
    without_advice,
)
from airflow_provider_qwenimage.rules.answers import ApiCall, HttpAnswer, Result, refuses_submission
from airflow_provider_qwenimage.rules.arguments import read_argument

MAX_DELAY_SECONDS = 30.0
# If a server asks for a longer wait, a retry of the Airflow task is better than a sleeping worker.
MAX_RETRY_AFTER_SECONDS = 60.0

# How often the submission of one image is sent again because the API answered with code 500.
MOST_AFTER_SERVER_ERRORS = 1

_TRY_AGAIN_CODE = 500


@dataclass(frozen=True)
class RequestRetries:
    """How often and how fast one request is sent again.

    Args:
        limit: How often it is sent again after the first time; 0 sends it once.
        delay_seconds: The longest first pause; it doubles each time up to 30 s. Each pause is drawn
            between 0 and that (full jitter), and is never shorter than the server's ``Retry-After``.

    Raises:
        ValueError: If a value is negative.
    """

    limit: int = 3
    delay_seconds: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "limit", read_argument("retry_limit", self.limit))
        object.__setattr__(self, "delay_seconds", read_argument("retry_delay", self.delay_seconds))

    def pause(
        self,
        error: QwenImageError,
        sent_again: int,
        *,
        server_errors: int = 0,
        draw: Callable[[], float] = random.random,
    ) -> float | None:
        """Return how many seconds to wait before the request is sent again, or None to give up.

        Args:
            error: The error of the last try (of a submission, as `read_answer` and `lost` return it).
            sent_again: How often it was sent again before.
            server_errors: How many earlier submissions of the same image ended in an `is_plain_server_error`; 0 for
                a request that is not a submission.
            draw: Returns a random number from 0 to 1.
        """
        if sent_again >= self.limit or not is_transient(error):
            return None
        if server_errors >= MOST_AFTER_SERVER_ERRORS and is_plain_server_error(error):
            return None
        retry_after = getattr(error, "retry_after", None) or 0.0
        if retry_after > MAX_RETRY_AFTER_SECONDS:
            return None
        longest = min(MAX_DELAY_SECONDS, self.delay_seconds * 2.0 ** min(sent_again, 32))
        return max(retry_after, draw() * longest)


def is_transient(error: QwenImageError) -> bool:
    """Whether the fault of a request may pass, so that the same request may succeed."""
    if isinstance(error, QwenImageImageError):
        return not error.permanent
    return isinstance(error, QwenImageConnectionError | QwenImageRateLimitError | QwenImageServerError)


def is_plain_server_error(error: QwenImageError) -> bool:
    """Whether the API itself answered with code 500, which its documentation says to try again."""
    return isinstance(error, QwenImageServerError) and error.code == _TRY_AGAIN_CODE and error.from_api


def last_error(error: QwenImageError, server_errors: int) -> QwenImageError:
    """Return the error that the submission of an image ends in, once it is not sent again.

    Args:
        error: The error of the last try.
        server_errors: As for `RequestRetries.pause`.

    Returns:
        The error itself; after another plain code 500 a permanent one, which says that the image may be paid.
    """
    if server_errors < MOST_AFTER_SERVER_ERRORS or not is_plain_server_error(error):
        return error
    last = copy.copy(error)
    last.permanent = True
    message = (
        f"The API answered {server_errors + 1} submissions of this image with an error, so it is not sent again "
        f"automatically. {without_advice(error)} Each may have been charged all the same ({CREDITS_PER_IMAGE} credits, "
        "as documented)."
    )
    last.args = (message, *error.args[1:])
    last.advice = "Compare the credits on your account, then clear the task to submit it again."
    return last


class SubmissionTries:
    """Decides after each submission of an image that failed whether and when the next one follows, and counts them.

    Args:
        pause: Returns how many seconds to wait, or None to give up, by the error, how often it was sent again, and how
            many earlier submissions ended in an `is_plain_server_error`.
        server_errors: How many did before these.

    Attributes:
        server_errors: How many did up to now.
    """

    def __init__(self, pause: Callable[[QwenImageError, int, int], float | None], server_errors: int = 0) -> None:
        self._pause = pause
        self._sent_again = 0
        self.server_errors = server_errors

    def after(self, error: QwenImageError) -> tuple[float | None, QwenImageError]:
        """Return the seconds to the next submission, or None and what to raise.

        Args:
            error: The error of the last submission.
        """
        pause = self._pause(error, self._sent_again, self.server_errors)
        failure = last_error(error, self.server_errors)
        self.server_errors += is_plain_server_error(error)
        self._sent_again += 1
        return pause, failure


def read_answer(call: ApiCall[Result], answer: HttpAnswer) -> Result:
    """Return the result of a call.

    Raises:
        QwenImageError: If the answer is not a success. If it leaves open whether a submission was accepted, this is
            a `QwenImageSubmissionUnknownError`.
    """
    try:
        return call.read(answer)
    except (QwenImageRequestError, QwenImageContractError) as error:
        if call.submission and not refuses_submission(answer):
            raise submission_unknown(without_advice(error)) from error
        raise


def lost(call: ApiCall[Any], detail: str, *, sent: bool, reason: str | None = None) -> QwenImageError:
    """Return the error for a call without a complete answer.

    Args:
        call: The call.
        detail: The error of the client library, as a sentence.
        sent: Whether any of the request may have reached the API.
        reason: Why, and what to do about it, as a part of a sentence.
    """
    if call.submission and sent:
        return submission_unknown(detail)
    if sent:
        error = QwenImageConnectionError(f"The response to {call.method} {call.path} was incomplete: {detail}")
    else:
        advice = reason or "check the connection's host, port and schema, and the network"
        error = QwenImageConnectionError(
            f"The API could not be reached for {call.method} {call.path}: {detail} {advice[:1].upper()}{advice[1:]}."
        )
    error.reason = reason
    return error


def submission_unknown(detail: str) -> QwenImageSubmissionUnknownError:
    """Return the error for a submission that may have been accepted; `detail` is a sentence about what happened."""
    return QwenImageSubmissionUnknownError(
        f"The submission was sent, but there was no clear response: {detail} It may have been accepted and paid "
        f"({CREDITS_PER_IMAGE} credits, as documented), and the API has no way to look it up, so it is not sent again "
        "automatically. Compare the credits on your account, then clear the task to submit it again."
    )
