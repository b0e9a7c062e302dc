"""The wire contract of the Qwen-Image-2512 API: requests, task snapshots and their limits. No I/O."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from importlib import import_module
from typing import Any

import pendulum

from airflow_provider_qwenimage.text.messages import check_text, is_blank, safe_repr, shown
from airflow_provider_qwenimage.text.storable import storable
from airflow_provider_qwenimage.text.urls import is_http_url, public_url

DEFAULT_BASE_URL = "https://qwen-image-2512.org"
GENERATE_PATH = "/api/generate"
STATUS_PATH = "/api/status"

MAX_PROMPT_CHARACTERS = 2000
"""The longest prompt, in characters."""
CREDITS_PER_IMAGE = 5
"""The documented price of an image. What it was charged is in `TaskSnapshot.consumed_credits`."""
RANDOM_SEED = -1
"""The seed that stands for a random one."""
MAX_SEED = 2**63 - 1
"""The largest seed: Airflow and databases store integers of 64 bits."""
DEFAULT_SIZE = "1024*1024"
SIZES = ("1024*1024", "1024*1536", "1536*1024", "768*1024", "1024*768")
"""The sizes of images, width times height in pixels."""
DEFAULT_OUTPUT_FORMAT = "jpeg"
OUTPUT_FORMATS = ("jpeg", "png", "webp")
"""The formats of images."""
DEFAULT_MAX_IMAGE_BYTES = 50 * 1024 * 1024
"""The largest image file that is downloaded: several times the largest size as an uncompressed bitmap."""

# The API draws one image per request. Of a longer list of URLs, the first are read.
MAX_IMAGES = 10
MAX_URL_CHARACTERS = 4096

# Names that could be imported from here once, and the modules that define them now.
_MOVED = {
    name: module
    for module, names in {
        "exceptions": ("QwenImageContentPolicyError", "QwenImageContractError", "QwenImageTaskFailedError"),
        "rules.snapshots": ("OPTIONAL_FIELDS", "not_documented", "read_snapshot", "read_task_id", "task_failure"),
        "rules.task_ids": ("MAX_TASK_ID_CHARACTERS", "is_usable", "printable_id"),
        "text.messages": ("printable", "shorten"),
        "text.storable": ("NOT_STORABLE",),
        "text.urls": ("without_access",),
    }.items()
    for name in names
}


def __getattr__(name: str) -> Any:
    if name in _MOVED:
        return getattr(import_module(f"airflow_provider_qwenimage.{_MOVED[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


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
        ValueError: If the API does not document such a field; the message names the field, its value and what it
            must be.
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
            raise ValueError(f"seed is {shown(self.seed)}; it must be -1 (random) or an integer from 0 to {MAX_SEED}.")
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
            place: The number of the request among equal ones (a map index, a row of a batch). It counts only
                with a random seed, with which equal requests ask for different images.

        Returns:
            64 hexadecimal digits. They do not depend on the callback URL, which does not change the image.
        """
        identity: list[Any] = [self.prompt, self.size, self.seed, self.output_format]
        if self.seed == RANDOM_SEED:
            identity.append(place)
        canonical = json.dumps(identity, ensure_ascii=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode("ascii")).hexdigest()


def _check_prompt(prompt: object) -> None:
    if not isinstance(prompt, str) or is_blank(prompt):
        raise ValueError(f"prompt is {shown(prompt)}; it must be a non-empty string.")
    if len(prompt) > MAX_PROMPT_CHARACTERS:
        raise ValueError(
            f"prompt has {len(prompt)} characters ({prompt[:40]!r}…); "
            f"it must have at most {MAX_PROMPT_CHARACTERS}, the API's limit."
        )
    check_text("prompt", prompt)


def _check_callback_url(url: object) -> None:
    if not is_http_url(url) or len(url) > MAX_URL_CHARACTERS:
        public = public_url(url) if isinstance(url, str) else url
        raise ValueError(
            f"callback_url is {shown(public)}; it must be an absolute http:// or https:// URL of at most "
            f"{MAX_URL_CHARACTERS} characters, or None."
        )
    check_text("callback_url", url)


def _check_choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name} is {shown(value)}; it must be one of {', '.join(allowed)}.")


@dataclass(frozen=True, kw_only=True)
class TaskSnapshot:
    """The state of an image task as the API reported it at one moment.

    Attributes:
        task_id: The API's id of the task, in the form that is logged and stored (see `task_ids.printable_id`).
        status: A `TaskStatus`, or the raw text of a status that is not documented.
        consumed_credits: Credits charged so far: 0 to a billion, or None if the API reported no such number.
        error_message: The API's reason for a failure.
        created_at: When the task was created, or None if the API reported no time that can be read.
        request: The request as the API echoes it.
        image_urls: The URLs of the images, at most 10; empty before ``SUCCESS``.
        extra: Every field that is not documented or does not have the documented type, unchanged.
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
        """Whether the status is one of the four documented ones."""
        return isinstance(self.status, TaskStatus)

    @classmethod
    def from_data(cls, data: object) -> TaskSnapshot:
        """Read the ``data`` object of a status answer; see `rules.snapshots.read_snapshot`."""
        # This module defines only values; the modules that read them import it.
        read: TaskSnapshot = __getattr__("read_snapshot")(data)
        return read

    @property
    def reason(self) -> str:
        """The API's reason for a failure, or ""; in ASCII if it does not have the documented type."""
        undocumented = self.extra.get("error_message")
        return self.error_message or ("" if undocumented is None else safe_repr(undocumented))

    def described_request(self) -> dict[str, Any]:
        """Return the fields of `request` that describe the image, as `GenerateRequest.description` names them.

        Other fields are left out: a callback URL often carries a token. So are fields of another type than the
        documented one.
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
