"""Decide what the API answers: keys, validation and the envelope, as documented. No I/O."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from airflow_provider_qwenimage.contract import CREDITS_PER_IMAGE, GENERATE_PATH, STATUS_PATH, GenerateRequest

PROMPT_REQUIRED = "Bad Request: 'prompt' is required."

_MOST_MESSAGE_CHARACTERS = 300
_FIELDS = ("prompt", "size", "seed", "output_format", "callback_url")


@dataclass(frozen=True)
class Answer:
    """The envelope of an answer: ``code``, ``message`` and ``data``.

    Args:
        retry_after: Seconds for a Retry-After header, or None for no header.
    """

    code: int
    message: str
    data: Any = None
    retry_after: float | None = None

    def status(self, wire_style: str) -> int:
        """Return the HTTP status: the code itself, or 200 in the ``envelope`` style."""
        return self.code if wire_style == "http" else 200

    def headers(self) -> dict[str, str]:
        """Return the extra HTTP headers."""
        return {} if self.retry_after is None else {"Retry-After": str(math.ceil(self.retry_after))}

    def body(self) -> bytes:
        """Return the envelope as JSON."""
        return json.dumps({"code": self.code, "message": self.message, "data": self.data}).encode("ascii")


def error_answer(behaviour: str, retry_after: float) -> Answer | None:
    """Return the API's error for a behaviour, or None if the behaviour is not an error of the API.

    Args:
        retry_after: Seconds that a 429 asks the client to wait.
    """
    if behaviour == "rate_limit":
        return Answer(429, "Too Many Requests: wait and send the request again.", retry_after=retry_after)
    return _ERRORS.get(behaviour)


_ERRORS: Mapping[str, Answer] = {
    "server_error": Answer(500, "Internal Server Error: try again, or contact support."),
    "unauthorized": Answer(401, "Unauthorized: the API key is missing or invalid. Send 'Authorization: Bearer sk-…'."),
    "payment": Answer(402, f"Payment Required: an image costs {CREDITS_PER_IMAGE} credits. Buy credits."),
    "forbidden": Answer(403, "Forbidden: this API key may not do this. Use another key."),
    "not_found": Answer(404, "Not Found: no such task id."),
}
UNAUTHORIZED = _ERRORS["unauthorized"]
PAYMENT_REQUIRED = _ERRORS["payment"]
NOT_FOUND = _ERRORS["not_found"]
FROM_A_PAGE = Answer(
    403, "Forbidden: a web page sent this request, and no page may hold an API key. Send it from a server."
)
TASK_ID_REQUIRED = Answer(400, "Bad Request: 'task_id' is required.")


def bad_request(message: str) -> Answer:
    """Return the answer to an invalid request."""
    return Answer(400, message[:_MOST_MESSAGE_CHARACTERS])


def unknown_path(method: str, path: str) -> Answer:
    """Return the answer to a request that the API does not have."""
    known = {GENERATE_PATH: "POST", STATUS_PATH: "GET"}
    if path in known:
        return Answer(405, f"Method Not Allowed: send {known[path]} {path}, not {method}.")
    return Answer(
        404, f"Not Found: the API is POST {GENERATE_PATH} and GET {STATUS_PATH}; the sandbox's own is /sandbox."
    )


def has_key(header: str | None, api_keys: tuple[str, ...]) -> bool:
    """Whether an Authorization header carries an accepted key."""
    scheme, _, key = (header or "").partition(" ")
    return scheme.lower() == "bearer" and key.strip() in api_keys


def read_generate(body: bytes) -> GenerateRequest:
    """Read the body of ``POST /api/generate``. Fields that are not documented are ignored.

    Raises:
        ValueError: If a field is not as documented; its message is the message of the answer.
    """
    try:
        asked = json.loads(body)
    # RecursionError: a body may consist of brackets only.
    except (ValueError, RecursionError):
        raise ValueError("Bad Request: the body is not JSON. Send a JSON object.") from None
    if not isinstance(asked, dict):
        raise ValueError("Bad Request: the body is not a JSON object. Send one with a 'prompt'.")
    prompt = asked.get("prompt")
    if prompt is None or (isinstance(prompt, str) and not prompt.strip()):
        raise ValueError(PROMPT_REQUIRED)
    given = {name: asked[name] for name in _FIELDS if name in asked}
    for name, value in given.items():
        if name != "seed" and not isinstance(value, str):
            raise ValueError(f"Bad Request: '{name}' must be a string.")
    seed = given.get("seed")
    # JSON does not tell integers from floats: 42.0 is the integer 42.
    if isinstance(seed, float) and seed.is_integer():
        given["seed"] = int(seed)
    try:
        return GenerateRequest(**given)
    except ValueError as error:
        raise ValueError(f"Bad Request: {error}") from None
