"""Reads the fields of a status answer that are not needed to get the image, so an odd value loses none. No I/O."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any

import pendulum

_MAX_CREDITS = 10**9
_MAX_TIME_CHARACTERS = 64
_DOCUMENTED_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", re.ASCII)
_YEAR_FIRST = re.compile(r"\d{4}", re.ASCII)


def _read_credits(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    # False for NaN as well.
    return value if 0 <= value <= _MAX_CREDITS else None


def _read_text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _read_time(value: object) -> pendulum.DateTime | None:
    if not isinstance(value, str) or len(value) > _MAX_TIME_CHARACTERS:
        return None
    if _DOCUMENTED_TIME.fullmatch(value):
        # The general parser takes a third of what reading a whole status costs.
        with suppress(ValueError):
            return _documented_time(value)
    if not _YEAR_FIRST.match(value):
        # A time of day, or "now", would be one of today.
        return None
    try:
        parsed = pendulum.parse(value)
        # It takes offsets of a whole day, with which nothing can be told of the time later.
        return parsed if isinstance(parsed, pendulum.DateTime) and parsed.isoformat() else None
    except Exception:  # noqa: BLE001  pendulum documents no closed set, and no date is worth losing a paid image
        return None


# Many waits, and all polls of one, read the same few times.
@functools.lru_cache(maxsize=1024)
def _documented_time(value: str) -> pendulum.DateTime:
    at = datetime.fromisoformat(value)
    return pendulum.DateTime(at.year, at.month, at.day, at.hour, at.minute, at.second, tzinfo=pendulum.UTC)


def _read_request(value: object) -> dict[str, Any] | None:
    return dict(value) if isinstance(value, Mapping) else None


OPTIONAL_FIELDS: Mapping[str, Callable[[object], Any]] = {
    "consumed_credits": _read_credits,
    "error_message": _read_text,
    "created_at": _read_time,
    "request": _read_request,
}
"""How each is read: to its value, or None if it is missing or not of the documented type."""
