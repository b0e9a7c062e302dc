"""Defines the calls of the API, and the meaning of every possible HTTP answer to them. No I/O."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_tz
from typing import Any, Generic, TypeVar

import pendulum

from airflow_provider_qwenimage.contract import GENERATE_PATH, STATUS_PATH, GenerateRequest, TaskSnapshot
from airflow_provider_qwenimage.exceptions import (
    QwenImageAuthError,
    QwenImageBadRequestError,
    QwenImageContractError,
    QwenImageCreditsError,
    QwenImageNotFoundError,
    QwenImageRateLimitError,
    QwenImageRequestError,
    QwenImageServerError,
)
from airflow_provider_qwenimage.rules.origins import displayed_url
from airflow_provider_qwenimage.rules.snapshots import not_documented, read_snapshot, read_task_id
from airflow_provider_qwenimage.rules.task_ids import is_usable, printable_id, wire_id
from airflow_provider_qwenimage.text.masking import Mask
from airflow_provider_qwenimage.text.messages import printable, shorten
from airflow_provider_qwenimage.text.urls import without_access

# Far above any documented answer (a prompt of 2000 characters and a few URLs).
MAX_ANSWER_BYTES = 1024 * 1024

Result = TypeVar("Result")

_HTTP_OK = 200
_QUOTED_CHARACTERS = 1000
_MESSAGE_CHARACTERS = 1000


@dataclass(frozen=True)
class HttpAnswer:
    """An HTTP answer, from either client.

    Args:
        status: The HTTP status.
        headers: The headers, with lower-case names.
        body: The body, cut shortly after `MAX_ANSWER_BYTES`. A cut one cannot be read.
        mask: Masks the API key in texts of the answer.
    """

    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    mask: Mask = field(default=Mask(""), repr=False)


@dataclass(frozen=True)
class ApiCall(Generic[Result]):
    """One call of the API, for either client to send.

    Args:
        method: ``GET`` or ``POST``.
        path: The path below the base URL.
        read: Returns the result of an answer; raises a `QwenImageError` if it is not a success.
        params: The query.
        body: The encoded JSON body.
        submission: Whether the call costs credits, so that it must not be sent again if its answer is lost.
    """

    method: str
    path: str
    read: Callable[[HttpAnswer], Result]
    params: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    submission: bool = False


def submission_call(request: GenerateRequest) -> ApiCall[str]:
    """Return the call that submits `request`; its result is the API's id of the new image task."""
    body = json.dumps(request.payload()).encode("ascii")
    return ApiCall("POST", GENERATE_PATH, parse_submission, body=body, submission=True)


def status_call(image_task_id: str) -> ApiCall[TaskSnapshot]:
    """Return the call that reads the status of an image task.

    Raises:
        ValueError: If the id is empty or cannot be sent.
    """
    task_id = image_task_id.strip() if isinstance(image_task_id, str) else ""
    if not is_usable(task_id):
        raise ValueError(
            f"image_task_id is {shorten(repr(image_task_id))}; it must be the task id that a submission returned. "
            "Check that the upstream task ran and pushed it."
        )
    expected = printable_id(task_id)
    return ApiCall(
        "GET", STATUS_PATH, lambda answer: parse_status(answer, expected), params={"task_id": wire_id(expected)}
    )


def parse_submission(answer: HttpAnswer) -> str:
    """Read the answer to ``POST /api/generate``.

    Returns:
        The API's id of the new image task.

    Raises:
        QwenImageRequestError: If the API answered with an error.
        QwenImageContractError: If the answer does not have the documented shape.
    """
    data = (_read_envelope(answer) or {}).get("data")
    task_id = data.get("task_id") if isinstance(data, Mapping) else None
    if not is_usable(task_id):
        _parse_envelope(answer)
    # With an id it is an acceptance, whatever its status and code: sent again, the image would be paid twice.
    return read_task_id(task_id)


def parse_status(answer: HttpAnswer, image_task_id: str) -> TaskSnapshot:
    """Read the answer to ``GET /api/status``.

    Args:
        answer: The answer.
        image_task_id: The id in the request.

    Raises:
        QwenImageRequestError: If the API answered with an error.
        QwenImageContractError: If the answer does not have the documented shape, or about another task.
    """
    snapshot = read_snapshot(_parse_envelope(answer))
    if snapshot.task_id != image_task_id:
        raise not_documented("data.task_id", snapshot.task_id, f"the requested id, {image_task_id!r}")
    return snapshot


def _parse_envelope(answer: HttpAnswer) -> object:
    """Return ``data`` of a success; raise the error of any other answer."""
    envelope = _read_envelope(answer)
    code = envelope["code"] if envelope is not None else answer.status
    # If the status and the code disagree, the one that is an error counts.
    if code == _HTTP_OK and answer.status != _HTTP_OK:
        code = answer.status
    if code == _HTTP_OK and envelope is not None:
        return envelope.get("data")
    retry_after = read_retry_after(answer.headers)
    if envelope is not None and code >= 400:  # noqa: PLR2004  the HTTP boundary of errors
        message = envelope.get("message")
        detail = "no message"
        if isinstance(message, str) and message:
            detail = printable(shorten(without_access(message), _MESSAGE_CHARACTERS))
        raise _error_for_code(code, detail, from_api=answer.status in (_HTTP_OK, code), retry_after=retry_after)
    if answer.status >= 400:  # noqa: PLR2004  the HTTP boundary of errors
        detail = f"not the API's JSON but {_excerpt(answer)}"
        raise _error_for_code(answer.status, detail, from_api=False, retry_after=retry_after)
    if 300 <= answer.status < 400:  # noqa: PLR2004  the HTTP range of redirects
        target = shorten(displayed_url(answer.mask(answer.headers.get("location", "nowhere"))))
        raise QwenImageContractError(
            f"The API answered with a redirect (HTTP {answer.status}) to {target}, which is not followed "
            "because it could carry the key elsewhere. Set the connection's host to the final base URL.",
            redirect=target,
        )
    raise QwenImageContractError(
        f"The API answered HTTP {answer.status} with {_excerpt(answer)} instead of its documented JSON "
        "envelope. Check that the connection's host is the API's base URL."
    )


def _error_for_code(code: int, detail: str, *, from_api: bool, retry_after: float | None) -> QwenImageRequestError:
    if code in _ERRORS:
        error_class, advice = _ERRORS[code]
    elif code >= 500:  # noqa: PLR2004  the HTTP boundary of server errors
        error_class, advice = QwenImageServerError, "Try again later, or contact the service's support."
    else:
        error_class, advice = QwenImageBadRequestError, "Correct the request; sending it again changes nothing."
    return error_class(
        f"The API answered with code {code}: {detail.rstrip('.')}. {advice}",
        code=code,
        from_api=from_api,
        retry_after=retry_after,
    )


_ERRORS: Mapping[int, tuple[type[QwenImageRequestError], str]] = {
    400: (QwenImageBadRequestError, "Correct the request; sending it again changes nothing."),
    401: (QwenImageAuthError, "Check the API key in the connection's password."),
    402: (QwenImageCreditsError, "Buy credits for the account of this API key."),
    403: (QwenImageAuthError, "Check that the API key in the connection's password may do this."),
    404: (
        QwenImageNotFoundError,
        "Check the task id, whether the API key belongs to the account that submitted it, and the connection's host.",
    ),
    408: (QwenImageServerError, "Try again."),
    429: (QwenImageRateLimitError, "Send fewer requests: set max_requests_per_second in the connection's extra."),
}


def _read_envelope(answer: HttpAnswer) -> dict[str, Any] | None:
    if len(answer.body) > MAX_ANSWER_BYTES:
        return None
    try:
        # Masked after decoding: no escaping hides the key, wherever the answer quotes it.
        envelope = answer.mask.read_json(_text_of(answer.body))
    # RecursionError: deeply nested JSON is not an envelope.
    except (ValueError, RecursionError):
        return None
    if not isinstance(envelope, dict):
        return None
    code = envelope.get("code")
    if isinstance(code, bool) or not isinstance(code, int) or not 100 <= code <= 599:  # noqa: PLR2004  HTTP's codes
        return None
    return envelope


def _text_of(body: bytes) -> str:
    encoding = json.detect_encoding(body)
    try:
        return body.decode(encoding, "surrogatepass")
    except UnicodeDecodeError:
        # The text may be cut between the bytes of a character: the rest of the answer counts.
        return body.decode(encoding, "replace")


def read_retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that ``Retry-After`` asks for: 0 to a day, or None if it is missing or unreadable.

    Args:
        headers: With lower-case names. The value may be a number of seconds or a date in any of HTTP's forms; a date
            is UTC, whatever zone it names or leaves out.
    """
    value = headers.get("retry-after", "").strip()
    if value.isascii() and value.isdigit():
        # A day of seconds needs five digits, and int() refuses very long numbers.
        return float(min(int(value.lstrip("0")[:9] or "0"), _MAX_RETRY_AFTER_SECONDS))
    seconds = _seconds_until(value[:_LONGEST_DATE])
    return None if seconds is None else min(max(0.0, seconds), float(_MAX_RETRY_AFTER_SECONDS))


def _seconds_until(date: str) -> float | None:
    # The zone of an HTTP date is GMT, whatever name it has or if it has none; only a numeric offset counts.
    # Python reads RFC 850's form only with a zone, and that of asctime only without one.
    fields = parsedate_tz(date) or parsedate_tz(f"{date} GMT")
    if fields is None:
        return None
    offset = (fields[9] or 0) if re.search(r"[+-]\d{4}$", date) else 0
    try:
        moment = datetime(*fields[:6], tzinfo=UTC).timestamp() - offset
    except (ValueError, OverflowError):
        return None
    return moment - pendulum.now("UTC").timestamp()


_MAX_RETRY_AFTER_SECONDS = 86_400
_LONGEST_DATE = 100


def _excerpt(answer: HttpAnswer) -> str:
    # Masked before it is shortened: half a key is no longer found.
    text = without_access(answer.mask(_text_of(answer.body)))
    text = " ".join(text[:_QUOTED_CHARACTERS].split())
    return repr(shorten(printable(text))) if text else "an empty body"
