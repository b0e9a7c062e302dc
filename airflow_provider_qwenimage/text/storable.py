"""Makes values from outside storable: the one rule for events, XComs and records. No I/O.

Airflow sends values between its processes as msgpack and stores them as JSON, of which PostgreSQL refuses some. A value
that either cannot encode stops the process that handles it, such as a triggerer with all of its waits.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

MAX_TEXT_CHARACTERS = 10_000
MAX_MESSAGE_CHARACTERS = 2_000
_MAX_ENTRIES = 1_000
_MAX_DEPTH = 10
_MAX_INTEGER = 2**63 - 1
# PostgreSQL turns a larger one into an integer, which is then too long to be sent.
_MAX_FLOAT = 2.0**53
_MAX_DIGITS = 40
# Lone surrogates have no UTF-8 form, and PostgreSQL stores no NUL.
NOT_STORABLE = re.compile("[\x00\ud800-\udfff]")


def storable(value: object) -> Any:
    """Return any value as plain JSON that Airflow and its database can store.

    A value that they can store is returned unchanged. In all others:

    - a lone surrogate or NUL in a text or a key becomes U+FFFD, and a text is cut after 10,000 characters;
    - NaN, the infinities, integers of more than 64 bits and floats beyond 2**53 become texts;
    - entries of a list or an object after the first 1,000 are left out, and a value below 10 levels becomes "…";
    - any other object becomes its text.
    """
    return _storable(value, 0)


def storable_text(text: str, limit: int = MAX_TEXT_CHARACTERS) -> str:
    """Return a text that Airflow and its database can store, cut after `limit` characters, with "…" for the rest."""
    if len(text) > limit:
        text = f"{text[:limit]}…"
    return NOT_STORABLE.sub("\N{REPLACEMENT CHARACTER}", text)


def _storable(value: object, depth: int) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return storable_text(str(value))
    if isinstance(value, Integral):
        return _storable_integer(int(value))
    if isinstance(value, Real):
        number = float(value)
        # False for NaN as well.
        return number if abs(number) <= _MAX_FLOAT else str(number)
    if isinstance(value, Mapping | Sequence) and not isinstance(value, bytes | bytearray):
        return _storable_entries(value, depth)
    return storable_text(_text_of(value))


def _storable_integer(number: int) -> int | str:
    if -_MAX_INTEGER - 1 <= number <= _MAX_INTEGER:
        return number
    # Python does not print an integer of thousands of digits.
    return str(number) if abs(number) < 10**_MAX_DIGITS else f"an integer of more than {_MAX_DIGITS} digits"


def _storable_entries(value: Mapping[Any, Any] | Sequence[Any], depth: int) -> Any:
    if depth == _MAX_DEPTH:
        return "…"
    if isinstance(value, Mapping):
        entries = list(value.items())[:_MAX_ENTRIES]
        return {storable_text(_text_of(key)): _storable(entry, depth + 1) for key, entry in entries}
    return [_storable(entry, depth + 1) for entry in value[:_MAX_ENTRIES]]


def _text_of(value: object) -> str:
    try:
        return str(value)
    # Any class may define its own str, and an integer may have more digits than Python prints.
    except Exception:  # noqa: BLE001  one value must not prevent the others from being stored
        return f"a {type(value).__name__}"
