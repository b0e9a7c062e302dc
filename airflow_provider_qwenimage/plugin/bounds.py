"""Limits what others wrote to what a page can show: short texts in valid Unicode, finite numbers. No I/O.

XComs, sidecars and manifests may have been written by anybody who can write an XCom or a file. A value of another type
than expected counts as missing.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from airflow_provider_qwenimage.contract import MAX_PROMPT_CHARACTERS
from airflow_provider_qwenimage.rules.image_texts import MAX_LABEL_CHARACTERS
from airflow_provider_qwenimage.text.messages import is_blank

MOST_TEXT = MAX_PROMPT_CHARACTERS
MOST_NAME = 250
MOST_PATH = 2048
# Images of one image task; the API makes one.
MOST_IMAGES_OF_A_TASK = 100
MOST_IMAGES_OF_A_BATCH = 100_000
# Of a contact sheet.
MOST_PAGES = 1000
# Of a size such as 1024*1024, or a format.
_MOST_WORD = 40
_MOST_KEYS = 60
_MOST_DEPTH = 4
# The integers that JavaScript represents exactly.
_MOST_WHOLE = 2**53 - 1
_MOST_CREDITS = 10**12


def text(value: object, most: int = MOST_TEXT) -> str | None:
    """Return a text that can be encoded, cut to `most` characters; None for an empty text and for other types."""
    if not isinstance(value, str) or not value:
        return None
    cut = value[:most]
    if not cut.isascii():
        # A lone surrogate cannot be encoded.
        cut = cut.encode("utf-8", "replace").decode("utf-8") if _has_surrogates(cut) else cut
    return f"{cut[:-1]}…" if len(value) > most else cut


def path(value: object) -> str | None:
    """Return the path or URL of a file; None for other types and for longer ones, since a path is never cut."""
    if not isinstance(value, str) or not 0 < len(value) <= MOST_PATH or _has_surrogates(value):
        return None
    return value


def number(value: object) -> float | None:
    """Return a number of at least 0 that can be added up, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < _MOST_CREDITS:
        return None
    return value


def whole(value: object) -> int | None:
    """Return an integer that a browser represents exactly, or None."""
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) > _MOST_WHOLE:
        return None
    return value


def sequence(value: object, most: int = MOST_IMAGES_OF_A_TASK) -> Sequence[Any]:
    """Return the first items of a list; an empty sequence for other types."""
    return value[:most] if isinstance(value, list) else ()


def mapping(value: object) -> Mapping[str, Any]:
    """Return a JSON object; an empty one for other types."""
    return value if isinstance(value, Mapping) else {}


def request_fields(value: object) -> dict[str, Any]:
    """Return the fields of a request that have the right type; an empty dict without a prompt and a size."""
    fields = mapping(value)
    limited = {
        "prompt": text(fields.get("prompt")),
        "size": text(fields.get("size"), _MOST_WORD),
        "seed": whole(fields.get("seed")),
        "output_format": text(fields.get("output_format"), _MOST_WORD),
    }
    request = {name: field for name, field in limited.items() if field is not None}
    return request if "prompt" in request or "size" in request else {}


def label_of(value: object) -> str | None:
    """Return the label of an image, as far as it is a text with something to see."""
    label = text(mapping(value).get("label"), MAX_LABEL_CHARACTERS)
    return None if label is None or is_blank(label) else label


def error_fields(value: object) -> tuple[str | None, str | None]:
    """Return the class name of an error and its message, as far as they are texts."""
    fields = mapping(value)
    return text(fields.get("error"), MOST_NAME), text(fields.get("message"))


def json_value(value: object, depth: int = _MOST_DEPTH) -> Any:
    """Return a JSON value of any shape, limited in size and depth; None for what cannot be encoded."""
    limited: Any = None
    if isinstance(value, str):
        limited = text(value) or ""
    elif isinstance(value, bool):
        limited = value
    elif isinstance(value, int):
        limited = whole(value)
    elif isinstance(value, float):
        limited = value if math.isfinite(value) else None
    elif isinstance(value, Mapping) and depth:
        keys = itertools.islice(value, _MOST_KEYS)
        limited = {text(str(key), MOST_NAME) or "": json_value(value[key], depth - 1) for key in keys}
    elif isinstance(value, list) and depth:
        limited = [json_value(item, depth - 1) for item in value[:MOST_IMAGES_OF_A_TASK]]
    return limited


def _has_surrogates(value: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in value)
