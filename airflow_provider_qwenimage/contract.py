"""The wire contract of the Qwen-Image-2512 API: requests, task snapshots and their limits. No I/O."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, TypeGuard
from urllib.parse import urlsplit

import pendulum

from airflow_provider_qwenimage.answer_fields import OPTIONAL_FIELDS
from airflow_provider_qwenimage.exceptions import (
    QwenImageContentPolicyError,
    QwenImageContractError,
    QwenImageTaskFailedError,
)
from airflow_provider_qwenimage.storable import NOT_STORABLE, storable
from airflow_provider_qwenimage.task_ids import MAX_TASK_ID_CHARACTERS, is_usable, printable_id

DEFAULT_BASE_URL = "https://qwen-image-2512.org"
GENERATE_PATH = "/api/generate"
STATUS_PATH = "/api/status"

MAX_PROMPT_CHARACTERS = 2000
CREDITS_PER_IMAGE = 5
RANDOM_SEED = -1
# What Airflow and databases store of a seed are integers of 64 bits.
MAX_SEED = 2**63 - 1
DEFAULT_SIZE = "1024*1024"
SIZES = ("1024*1024", "1024*1536", "1536*1024", "768*1024", "1024*768")
DEFAULT_OUTPUT_FORMAT = "jpeg"
OUTPUT_FORMATS = ("jpeg", "png", "webp")
# Several times the largest documented size (1024*1536) as an uncompressed bitmap.
DEFAULT_MAX_IMAGE_BYTES = 50 * 1024 * 1024

# The API draws one image for a request. Of a longer list of URLs, the first are read.
MAX_IMAGES = 10

# Categories of Unicode, and what it has as letters and marks.
_UNSEEN = frozenset({"Zs", "Zl", "Zp", "Cc", "Cf"})
_UNSEEN_LETTERS = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)

_EXCERPT_CHARACTERS = 200
_MAX_URL_CHARACTERS = 4096
_REASON_CHARACTERS = 1000
# The scheme's slashes, as they are or escaped for JSON, and what follows them.
_URL_IN_TEXT = re.compile(r"(\\{0,16}/\\{0,16}/)([^\s\"'<>]*)")
_QUERY_OR_FRAGMENT = re.compile("[?#]")
_USER = re.compile(r"\A([^/?#@]*/+)?[^/?#]*@")
_REST_OF_QUOTED_URL = re.compile(r"[?#][^'\"]*")


class TaskStatus(StrEnum):
    """The four documented statuses of an image task."""

    PENDING = "PENDING"
    IN_PROGRESS = "IN_PROGRESS"
    SUCCESS = "SUCCESS"
    FAILED = "FAILED"


@dataclass(frozen=True, kw_only=True)
class GenerateRequest:
    """One request for an image, valid by construction.

    Args:
        prompt: What to draw: 1 to 2000 characters, not only white space.
        size: Width times height in pixels, one of `SIZES`.
        seed: An integer from 0 to `MAX_SEED` for a reproducible result, or -1 for a random one.
        output_format: One of `OUTPUT_FORMATS`.
        callback_url: An http(s) URL that the API calls when the task completes.

    Raises:
        ValueError: If a field is not what the API documents; the message names the field, its value
            and what is allowed.
    """

    prompt: str
    size: str = DEFAULT_SIZE
    seed: int = RANDOM_SEED
    output_format: str = DEFAULT_OUTPUT_FORMAT
    # It often carries a token.
    callback_url: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        _check_prompt(self.prompt)
        _check_choice("size", self.size, SIZES)
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not RANDOM_SEED <= self.seed <= MAX_SEED:
            raise ValueError(
                f"seed is {shown(self.seed)}; allowed are -1 (random) and the integers from 0 to {MAX_SEED}."
            )
        _check_choice("output_format", self.output_format, OUTPUT_FORMATS)
        if self.callback_url is not None:
            _check_callback_url(self.callback_url)

    @property
    def pixel_size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        width, height = self.size.split("*")
        return int(width), int(height)

    def payload(self) -> dict[str, Any]:
        """Return the JSON body for ``POST /api/generate``."""
        body: dict[str, Any] = {
            "prompt": self.prompt,
            "size": self.size,
            "seed": self.seed,
            "output_format": self.output_format,
        }
        if self.callback_url is not None:
            body["callback_url"] = self.callback_url
        return body

    def description(self) -> dict[str, Any]:
        """Return the fields that describe the image: without the callback URL, which often carries a token."""
        return {name: value for name, value in self.payload().items() if name != "callback_url"}

    def fingerprint(self, place: int = 0) -> str:
        """Return a stable name for the image that this request asks for.

        Args:
            place: The request's place among its like (a map index, a row of a batch). It counts only
                with a random seed, where equal requests ask for different images.

        Returns:
            64 hexadecimal digits. The callback URL does not count: it does not change the image.
        """
        identity: list[Any] = [self.prompt, self.size, self.seed, self.output_format]
        if self.seed == RANDOM_SEED:
            identity.append(place)
        canonical = json.dumps(identity, ensure_ascii=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode("ascii")).hexdigest()


def _check_prompt(prompt: object) -> None:
    if not isinstance(prompt, str) or is_blank(prompt):
        raise ValueError(f"prompt is {shown(prompt)}; allowed is a text that is not empty.")
    if len(prompt) > MAX_PROMPT_CHARACTERS:
        raise ValueError(
            f"prompt has {len(prompt)} characters ({prompt[:40]!r}…); "
            f"allowed are at most {MAX_PROMPT_CHARACTERS}, the API's limit."
        )
    check_text("prompt", prompt)


def _check_callback_url(url: object) -> None:
    if not is_http_url(url) or len(url) > _MAX_URL_CHARACTERS:
        told = shown(public_url(url) if isinstance(url, str) else url)
        raise ValueError(
            f"callback_url is {told}; allowed is an absolute http:// or https:// URL of at most "
            f"{_MAX_URL_CHARACTERS} characters, or None."
        )
    check_text("callback_url", url)


def _check_choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name} is {shown(value)}; allowed are {', '.join(allowed)}.")


def check_text(name: str, text: str) -> None:
    """Check that a text can be sent and stored: UTF-8 has no lone surrogates, and databases refuse NUL.

    Args:
        name: The argument, for the message.
        text: Its value.

    Raises:
        ValueError: If it holds such a character; the message says which, and where.
    """
    bad = NOT_STORABLE.search(text)
    if bad:
        excerpt = text[max(0, bad.start() - 20) : bad.end() + 20]
        raise ValueError(
            f"{name} is a text whose character {bad.start() + 1} cannot be sent or stored ({excerpt!a}); allowed is "
            "text without NUL and without lone surrogates, which are halves of characters such as emoji."
        )


def is_blank(text: str) -> bool:
    """Whether a text shows nothing: it is empty, or white space, control characters and what is there for layout only.

    A zero width space and a byte order mark are no white space for Python.
    """
    return all(unicodedata.category(each) in _UNSEEN or _UNSEEN_LETTERS.match(each) for each in text)


def shown(value: object) -> str:
    """Return a value as Python prints it, short enough for a message."""
    if isinstance(value, str | bytes) and len(value) > _EXCERPT_CHARACTERS:
        return f"{value[:_EXCERPT_CHARACTERS]!r}… ({len(value)} in all)"
    try:
        # What shows nothing is shown by its codes.
        text = ascii(value) if isinstance(value, str) and is_blank(value) else repr(value)
    # Any class may have its own, and an integer may have more digits than Python prints.
    except Exception:  # noqa: BLE001  the message must come out in any case
        return f"a {type(value).__name__}"
    return shorten(text)


def is_http_url(value: object) -> TypeGuard[str]:
    """Whether `value` is the text of an absolute http(s) URL with a host, printable and without white space."""
    if not isinstance(value, str) or not value.isprintable() or any(character.isspace() for character in value):
        return False
    try:
        parts = urlsplit(value)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        return False


@dataclass(frozen=True, kw_only=True)
class TaskSnapshot:
    """What the API said about an image task at one moment.

    Attributes:
        task_id: The API's id of the task, in the form that is logged and stored (see `task_ids.printable_id`).
        status: A `TaskStatus`, or the raw text of a status that is not documented.
        consumed_credits: Credits charged so far: 0 to a billion, or None if the API reported no such number.
        error_message: The API's reason for a failure.
        created_at: When the task was created, or None where the API did not say or not in ISO 8601.
        request: The request as the API echoes it.
        image_urls: Where the images are, at most 10; empty before ``SUCCESS``.
        extra: Every field that is not documented, or not of the documented type, as it came.
    """

    task_id: str
    status: str
    consumed_credits: float | None = None
    error_message: str | None = None
    created_at: pendulum.DateTime | None = None
    request: Mapping[str, Any] = field(default_factory=dict)
    image_urls: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_documented(self) -> bool:
        """Whether the status is one of the documented four."""
        return isinstance(self.status, TaskStatus)

    @classmethod
    def from_data(cls, data: object) -> TaskSnapshot:
        """Read the ``data`` object of a status answer.

        Args:
            data: The decoded JSON value.

        Raises:
            QwenImageContractError: If it is not of the documented shape.
        """
        if not isinstance(data, Mapping):
            raise not_documented("data", data, "an object")
        status = data.get("status")
        if not isinstance(status, str) or not status:
            raise not_documented("data.status", status, "a non-empty string")
        status = _STATUSES.get(status, status)
        read: dict[str, Any] = {name: reader(data.get(name)) for name, reader in OPTIONAL_FIELDS.items()}
        # What nobody needs for the image must not lose it.
        odd = {name for name, value in read.items() if value is None and data.get(name) is not None}
        image_urls: tuple[str, ...] = ()
        try:
            image_urls = _read_image_urls(data.get("response"), status)
        except QwenImageContractError:
            if status == TaskStatus.SUCCESS:
                raise
            odd.add("response")
        return cls(
            task_id=read_task_id(data.get("task_id")),
            status=status,
            consumed_credits=read["consumed_credits"],
            error_message=read["error_message"],
            created_at=read["created_at"],
            request=read["request"] or {},
            image_urls=image_urls,
            extra={name: data[name] for name in data if name in odd or name not in _SNAPSHOT_FIELDS},
        )

    @property
    def reason(self) -> str:
        """The API's reason for a failure as it came, or empty; in ASCII where it is not the documented text."""
        odd = self.extra.get("error_message")
        return self.error_message or ("" if odd is None else safe_repr(odd))

    def described_request(self) -> dict[str, Any]:
        """Return the fields of `request` that describe the image, as `GenerateRequest.description` names them.

        The rest of what the API echoes is left out: a callback URL often carries a token. Fields of another type than
        the documented one are left out as well.
        """
        kinds = {"prompt": str, "size": str, "seed": int, "output_format": str}
        fields = {name: storable(self.request.get(name)) for name in kinds}
        return {name: value for name, value in fields.items() if type(value) is kinds[name]}

    def to_data(self) -> dict[str, Any]:
        """Return the ``data`` object that `from_data` reads back as an equal snapshot."""
        data: dict[str, Any] = {
            "task_id": self.task_id,
            "status": str(self.status),
            "consumed_credits": self.consumed_credits,
            "error_message": self.error_message,
            "created_at": self.created_at.isoformat() if self.created_at else None,
            "request": dict(self.request),
            "response": list(self.image_urls) or None,
        }
        return data | dict(self.extra)


_STATUSES: Mapping[str, str] = dict(TaskStatus.__members__)
_SNAPSHOT_FIELDS = frozenset({"task_id", "status", "response", *OPTIONAL_FIELDS})


def task_failure(snapshot: TaskSnapshot) -> QwenImageTaskFailedError:
    """Return the error that a FAILED snapshot stands for, with the API's reason and what it cost."""
    told = snapshot.reason
    reason = printable(shorten(without_access(told), _REASON_CHARACTERS)) or "the API gave no reason"
    cost = "an unknown number of" if snapshot.consumed_credits is None else f"{snapshot.consumed_credits:g}"
    story = f"Image task {snapshot.task_id} failed: {reason}. It cost {cost} credits."
    # The documented text is "Content policy violation detected".
    if "policy" in told.lower():
        return QwenImageContentPolicyError(
            f"{story} Change the prompt: the same one will be refused again.", snapshot=snapshot
        )
    return QwenImageTaskFailedError(f"{story} Submit the prompt again for a new image.", snapshot=snapshot)


def printable(text: str) -> str:
    """Return text from outside as one line that every log and database can hold."""
    text = " ".join(text.split())
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def public_url(url: str) -> str:
    """Return what should be a URL without its user, password, query and fragment, which may grant access."""
    return _USER.sub(r"\1", _QUERY_OR_FRAGMENT.split(url, maxsplit=1)[0], count=1)


def without_access(text: str) -> str:
    """Return a text without what `public_url` leaves out of each URL in it."""
    return _URL_IN_TEXT.sub(lambda url: url[1] + public_url(f"//{url[2]}")[2:], text)


def read_task_id(value: object) -> str:
    """Return the task id of an answer in the form that is logged and stored; see `task_ids.printable_id`.

    Args:
        value: The decoded JSON value.

    Raises:
        QwenImageContractError: If it cannot be asked after.
    """
    if not is_usable(value):
        raise not_documented(
            "data.task_id", value, f"a non-empty string of at most {MAX_TASK_ID_CHARACTERS} characters in UTF-8"
        )
    return printable_id(value)


def _read_image_urls(value: object, status: str) -> tuple[str, ...]:
    if value is None:
        urls: Sequence[object] = ()
    elif isinstance(value, list):
        urls = value
    else:
        raise _no_urls(value, "a list of URLs or null")
    if status == TaskStatus.SUCCESS and not urls:
        raise _no_urls(value, "a list of at least one URL, because the status is SUCCESS")
    first = urls[:MAX_IMAGES]
    # A paid image is not lost for what comes with it.
    found = tuple(url for url in first if is_http_url(url) and len(url) <= _MAX_URL_CHARACTERS)
    if first and not found:
        raise _no_urls(first[0], f"http(s) URLs of at most {_MAX_URL_CHARACTERS} characters")
    return found


def _no_urls(value: object, allowed: str) -> QwenImageContractError:
    # Whatever it is, it is about URLs, and what ends one grants access.
    return _undocumented("data.response", _REST_OF_QUOTED_URL.sub("", safe_repr(value)), allowed)


def not_documented(name: str, value: object, allowed: str) -> QwenImageContractError:
    """Return the error for a field of an answer that is not what the API documents.

    Args:
        name: The field.
        value: What it is.
        allowed: What it should be.
    """
    return _undocumented(name, safe_repr(value), allowed)


def _undocumented(name: str, told: str, allowed: str) -> QwenImageContractError:
    return QwenImageContractError(
        f"The API's answer is not of the documented shape: {name} is {shorten(without_access(told))}, not {allowed}. "
        "If this persists, the API has changed: report it to the maintainers of this package."
    )


def safe_repr(value: object) -> str:
    """Return an ASCII representation of any JSON value, also of one that Python refuses to print."""
    try:
        return ascii(value)
    # ValueError: an integer of more digits than Python prints; RecursionError: deep nesting.
    except (ValueError, RecursionError):
        return f"a {type(value).__name__} too large to show"


def shorten(text: str, limit: int = _EXCERPT_CHARACTERS) -> str:
    """Return text from outside short enough for a message.

    Args:
        text: The text.
        limit: After how many characters it is cut.
    """
    return text if len(text) <= limit else f"{text[:limit]}…"
