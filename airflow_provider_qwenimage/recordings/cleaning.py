"""Removes from an HTTP answer what must not be recorded: the API key, the queries of URLs, cookies. No I/O."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from airflow_provider_qwenimage.text.masking import Mask
from airflow_provider_qwenimage.text.messages import printable, shorten
from airflow_provider_qwenimage.text.urls import public_url, without_access

JSON, TEXT, BYTES, LEFT_OUT = "json", "text", "base64", "left_out"

# All others are named only: a header such as Set-Cookie grants access.
SAFE_HEADERS = frozenset(
    {
        "accept-ranges",
        "age",
        "cache-control",
        "content-length",
        "content-type",
        "date",
        "expires",
        "last-modified",
        "location",
        "ratelimit-limit",
        "ratelimit-remaining",
        "ratelimit-reset",
        "retry-after",
        "server",
        "x-ratelimit-limit",
        "x-ratelimit-remaining",
        "x-ratelimit-reset",
    }
)
_HEADER_NAME = re.compile(r"[a-z0-9-]{1,50}")
_MOST_HEADER_CHARACTERS = 300
_MOST_OTHER_HEADERS = 50
# A query without the scheme and the host before it, and also in text that escapes it for JSON or for URLs.
_QUERY = re.compile(r"(?:\?|\\+u003f|%(?:25)*3f)[^\s\"'<>]*", re.IGNORECASE)
# Sixty times the longest answer that is documented.
MAX_BODY_BYTES = 64 * 1024
# Several times the largest image of the API.
MAX_IMAGE_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True)
class Body:
    """What is recorded of a body.

    Attributes:
        form: `JSON`, `TEXT`, `BYTES` or `LEFT_OUT`.
        content: A decoded JSON value, a text, bytes, or the reason why the body is left out.
    """

    form: str
    content: Any


def clean_headers(headers: Mapping[str, str], mask: Mask) -> dict[str, str]:
    """Return the headers that may be recorded, cleaned and shortened.

    Args:
        headers: With lower-case names.
        mask: Masks the API key.
    """
    return {name: _clean_value(name, value, mask) for name, value in headers.items() if name in SAFE_HEADERS}


def other_headers(headers: Mapping[str, str], mask: Mask) -> tuple[str, ...]:
    """Return the names of the other headers."""
    names = (name for name in headers if name not in SAFE_HEADERS)
    return tuple(sorted(name for name in names if _HEADER_NAME.fullmatch(name) and mask(name) == name))[
        :_MOST_OTHER_HEADERS
    ]


def clean_body(body: bytes, mask: Mask) -> Body:
    """Return the body of an answer of the API without the key, and without users and queries of URLs."""
    if len(body) > MAX_BODY_BYTES:
        return Body(LEFT_OUT, f"larger than {MAX_BODY_BYTES} bytes")
    text = body.decode(json.detect_encoding(body), "replace")
    try:
        return Body(JSON, _clean_json(mask.read_json(text), mask))
    except RecursionError:
        return Body(LEFT_OUT, "nested too deeply")
    except ValueError:
        return Body(TEXT, clean_text(text, mask))


def clean_image(content: bytes, mask: Mask) -> Body:
    """Return the bytes of an image, unless they contain the key."""
    if len(content) > MAX_IMAGE_BYTES:
        return Body(LEFT_OUT, f"larger than {MAX_IMAGE_BYTES} bytes")
    # An image may carry the request that it was drawn from.
    text = content.decode("latin-1")
    return Body(LEFT_OUT, "contains the API key") if mask(text) != text else Body(BYTES, content)


def clean_text(text: str, mask: Mask) -> str:
    """Return a text without the key, and without users and queries of URLs."""
    return mask(_QUERY.sub("", without_access(mask(text))))


def _clean_json(value: Any, mask: Mask) -> Any:
    if isinstance(value, str):
        return clean_text(value, mask)
    if isinstance(value, dict):
        return {clean_text(name, mask): _clean_json(entry, mask) for name, entry in value.items()}
    if isinstance(value, list):
        return [_clean_json(entry, mask) for entry in value]
    # NaN and Infinity, which Python reads, are not JSON.
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _clean_value(name: str, value: str, mask: Mask) -> str:
    value = clean_text(value, mask)
    text = printable(public_url(value) if name == "location" else value)
    return shorten(text.encode("ascii", "replace").decode(), _MOST_HEADER_CHARACTERS).replace("…", "...")
