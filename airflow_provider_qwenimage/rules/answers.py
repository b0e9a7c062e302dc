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
from airflow_provider_qwenimage.text.messages import printable, safe_repr, shorten
from airflow_provider_qwenimage.text.urls import without_access

# Far above any documented answer (a prompt of 2000 characters and a few URLs).
MAX_ANSWER_BYTES = 1024 * 1024

Result = TypeVar("Result")

_OK = 200
_LOWEST_ERROR = 400
_NOT_FOUND = 404
_TIMEOUT = 408
_SERVER_ERROR = 500
# Some APIs have codes of more digits than HTTP's.
_LOWEST_CODE, _HIGHEST_CODE = 100, 999_999
# The server itself says that it did not handle the request; 302 and 303 may follow a handled POST.
_NOT_HANDLED_STATUSES = (301, 307, 308, 429)
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
        notice: Returns a warning for the log about an answer that is a success, or None.
    """

    method: str
    path: str
    read: Callable[[HttpAnswer], Result]
    params: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    submission: bool = False
    notice: Callable[[HttpAnswer], str | None] | None = None


def submission_call(request: GenerateRequest) -> ApiCall[str]:
    """Return the call that submits `request`; its result is the API's id of the new image task."""
    body = json.dumps(request.payload()).encode("ascii")
    return ApiCall("POST", GENERATE_PATH, parse_submission, body=body, submission=True, notice=contradiction_of)


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

    An answer with a task id is an acceptance, whatever its HTTP status and its code: the image is paid.

    Returns:
        The API's id of the new image task.

    Raises:
        QwenImageRequestError: If the API answered with an error.
        QwenImageContractError: If the answer does not have the documented shape.
    """
    task_id = _task_id_in(_read_object(answer))
    if not is_usable(task_id):
        _parse_envelope(answer, submission=True)
    return read_task_id(task_id)


def contradiction_of(answer: HttpAnswer) -> str | None:
    """Return a sentence about the answer to an accepted submission whose HTTP status or code is no success, or None."""
    content = _read_object(answer)
    around = [] if _is_success(answer.status) else [f"HTTP {answer.status}"]
    code = content.get("code")
    if code != _OK or isinstance(code, bool):
        around.append("no code" if code is None else f"code {printable(shorten(without_access(safe_repr(code))))}")
    if not around:
        return None
    task_id = read_task_id(_task_id_in(content))
    return f"The API contradicts itself: {' and '.join(around)} around accepted task {task_id}. Waiting for {task_id}."


def refuses_submission(answer: HttpAnswer) -> bool:
    """Whether an answer to a submission surely means that it was not accepted.

    It does if the API's own code is an error and there is no ``data``. The exceptions are the codes from 501 on, and
    408: they may come from a server between the part that accepts and the client. Without the API's JSON, only a
    redirect or a 429 says that the server did not handle the request.
    """
    content = _read_object(answer)
    code = _code_of(content)
    if content.get("data") is not None:
        return False
    if code is None:
        return answer.status in _NOT_HANDLED_STATUSES
    if code < _LOWEST_ERROR or code == _TIMEOUT:
        return False
    if code == _SERVER_ERROR:
        return _is_from_api(answer, code)
    return not _is_server_error(code)


def parse_status(answer: HttpAnswer, image_task_id: str) -> TaskSnapshot:
    """Read the answer to ``GET /api/status``.

    Args:
        answer: The answer.
        image_task_id: The id in the request.

    Raises:
        QwenImageRequestError: If the API answered with an error.
        QwenImageContractError: If the answer does not have the documented shape, or about another task.
    """
    snapshot = read_snapshot(_parse_envelope(answer, submission=False))
    if snapshot.task_id != image_task_id:
        raise not_documented("data.task_id", snapshot.task_id, f"the requested id, {image_task_id!r}")
    return snapshot


def _parse_envelope(answer: HttpAnswer, *, submission: bool) -> object:
    """Return ``data`` of a success; raise the error of any other answer."""
    content = _read_object(answer)
    code = _code_of(content)
    if _is_success(answer.status) and (
        code == _OK or ((code is None or code < _LOWEST_ERROR) and is_usable(_task_id_in(content)))
    ):
        return content.get("data")
    # If the status and the code disagree, the one that is an error counts.
    counting = code if code is not None and code >= _LOWEST_ERROR else answer.status
    if counting >= _LOWEST_ERROR:
        detail = f"not the API's JSON but {_excerpt(answer)}"
        if code is not None:
            message = content.get("message")
            detail = "no message"
            if isinstance(message, str) and message:
                detail = printable(shorten(without_access(message), _MESSAGE_CHARACTERS))
        from_api = code is not None and _is_from_api(answer, counting)
        error_class, advice = _class_and_advice(counting, is_about_task=from_api and not submission)
        raise error_class(
            f"The API answered with code {counting}: {detail.rstrip('.')}.",
            advice=advice,
            code=counting,
            from_api=from_api,
            retry_after=read_retry_after(answer.headers),
        )
    if 300 <= answer.status < 400:  # noqa: PLR2004  the HTTP range of redirects
        target = shorten(displayed_url(answer.mask(answer.headers.get("location", "nowhere"))))
        raise QwenImageContractError(
            f"The API answered with a redirect (HTTP {answer.status}) to {target}, which is not followed "
            "because it could carry the key elsewhere.",
            advice="Set the host of {connection} to the final base URL.",
            redirect=target,
        )
    raise QwenImageContractError(
        f"The API answered HTTP {answer.status} with {_excerpt(answer)} instead of its documented JSON envelope.",
        advice="Check that the host of {connection} is the API's base URL.",
    )


def _class_and_advice(code: int, *, is_about_task: bool) -> tuple[type[QwenImageRequestError], str]:
    if code == _NOT_FOUND and not is_about_task:
        return QwenImageNotFoundError, "Correct the host of {connection}, then clear the task."
    if code in _ERRORS:
        return _ERRORS[code]
    if _is_server_error(code):
        return QwenImageServerError, "Try again later, or contact the service's support."
    return QwenImageBadRequestError, "Correct the request; sending it again changes nothing."


_ERRORS: Mapping[int, tuple[type[QwenImageRequestError], str]] = {
    401: (QwenImageAuthError, "The key in {connection} was rejected. Correct it, then clear the task."),
    402: (QwenImageCreditsError, "Buy credits for the account of this API key, then clear the task."),
    403: (QwenImageAuthError, "The key in {connection} is not allowed to do this. Correct it, then clear the task."),
    _NOT_FOUND: (QwenImageNotFoundError, "Check that the image task was submitted with the key in {connection}."),
    _TIMEOUT: (QwenImageServerError, "Try again."),
    429: (QwenImageRateLimitError, "Send fewer requests: set max_requests_per_second in the extra of {connection}."),
}


def _is_success(http_status: int) -> bool:
    return 200 <= http_status < 300  # noqa: PLR2004  the HTTP range of successes


def _is_server_error(code: int) -> bool:
    return 500 <= code <= 599  # noqa: PLR2004  the HTTP range of server errors


def _is_from_api(answer: HttpAnswer, code: int) -> bool:
    return _is_success(answer.status) or answer.status == code


def _task_id_in(content: Mapping[str, Any]) -> object:
    data = content.get("data")
    return data.get("task_id") if isinstance(data, Mapping) else None


def _code_of(content: Mapping[str, Any]) -> int | None:
    """Return the code of an envelope, or None if it has none that could be one."""
    code = content.get("code")
    if isinstance(code, bool) or not isinstance(code, int) or not _LOWEST_CODE <= code <= _HIGHEST_CODE:
        return None
    return code


def _read_object(answer: HttpAnswer) -> Mapping[str, Any]:
    """Return the JSON object of an answer; an empty one if it is anything else."""
    if len(answer.body) > MAX_ANSWER_BYTES:
        return {}
    try:
        # Masked after decoding: no escaping hides the key, wherever the answer quotes it.
        content = answer.mask.read_json(_text_of(answer.body))
    # RecursionError: deeply nested JSON is not an envelope.
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


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
