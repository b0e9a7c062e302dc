"""Cuts what others wrote to what a page can show: short texts without half characters, finite numbers. No I/O.

XComs, sidecars and manifests may have been written by anybody who can write an XCom or a file, so nothing of them is
taken for granted: what is not of the expected type counts as missing.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from airflow_provider_qwenimage.contract import MAX_PROMPT_CHARACTERS

# The API makes at most 1,572,864 pixels; a browser and Pillow cope with this many.
MOST_PIXELS = 16 * 1024 * 1024

MOST_TEXT = MAX_PROMPT_CHARACTERS
MOST_NAME = 250
MOST_PATH = 2048
# Images of one image task; the API makes one.
MOST_IMAGES_OF_A_TASK = 100
MOST_IMAGES_OF_A_BATCH = 100_000
_MOST_KEYS = 60
_MOST_DEPTH = 4
# The integers that JavaScript holds exactly.
_MOST_WHOLE = 2**53 - 1
_MOST_CREDITS = 10**12


def text(value: object, most: int = MOST_TEXT) -> str | None:
    """Return a text that every encoder takes, cut to so many characters; None for anything else, and for ""."""
    if not isinstance(value, str) or not value:
        return None
    cut = value[:most]
    if not cut.isascii():
        # Half of a character beyond the first 65,536 is no character, and no encoder takes it.
        cut = cut.encode("utf-8", "replace").decode("utf-8") if _has_surrogates(cut) else cut
    return f"{cut[:-1]}…" if len(value) > most else cut


def path(value: object) -> str | None:
    """Return the path or URL of a file, or None if it is none or longer than any is. It is never cut."""
    if not isinstance(value, str) or not 0 < len(value) <= MOST_PATH or _has_surrogates(value):
        return None
    return value


def number(value: object) -> float | None:
    """Return a number of at least 0 that can be added up, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < _MOST_CREDITS:
        return None
    return value


def whole(value: object) -> int | None:
    """Return an integer that a browser can hold, or None."""
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) > _MOST_WHOLE:
        return None
    return value


def sequence(value: object, most: int = MOST_IMAGES_OF_A_TASK) -> Sequence[Any]:
    """Return the first items of a list; none of anything else."""
    return value[:most] if isinstance(value, list) else ()


def mapping(value: object) -> Mapping[str, Any]:
    """Return an object of JSON; an empty one for anything else."""
    return value if isinstance(value, Mapping) else {}


def json_value(value: object, depth: int = _MOST_DEPTH) -> Any:
    """Return a JSON value of any shape, cut to a size that can be sent: what cannot be encoded becomes None."""
    known: Any = None
    if isinstance(value, str):
        known = text(value) or ""
    elif isinstance(value, bool):
        known = value
    elif isinstance(value, int):
        known = whole(value)
    elif isinstance(value, float):
        known = value if math.isfinite(value) else None
    elif isinstance(value, Mapping) and depth:
        keys = itertools.islice(value, _MOST_KEYS)
        known = {text(str(key), MOST_NAME) or "": json_value(value[key], depth - 1) for key in keys}
    elif isinstance(value, list) and depth:
        known = [json_value(item, depth - 1) for item in value[:MOST_IMAGES_OF_A_TASK]]
    return known


def _has_surrogates(value: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in value)
