"""What Airflow and its database can store of a value from outside: the one rule for events, XComs and records. No I/O.

Airflow encodes what passes between its processes as msgpack and stores it as JSON; PostgreSQL refuses some of what is
JSON. One value that either cannot take stops the process that handles it: a triggerer with all of its waits.
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
# PostgreSQL makes an integer of a larger one, which is then too long to be sent.
_MAX_FLOAT = 2.0**53
_MAX_DIGITS = 40
# Lone surrogates are no UTF-8, and PostgreSQL has no NUL.
NOT_STORABLE = re.compile("[\x00\ud800-\udfff]")


def storable(value: object) -> Any:
    """Return a value as plain JSON that Airflow and its database store, whatever it was.

    What they can take is returned as it is. Of all else, as much as they can take:

    - a lone surrogate or NUL in a text or a key becomes U+FFFD, and a text is cut after 10,000 characters;
    - NaN, the infinities, integers of more than 64 bits and floats beyond 2**53 become texts;
    - more than 1,000 entries of a list or an object are left out, and what is nested deeper than 10 levels becomes "…";
    - any other object becomes its text.

    Args:
        value: Decoded JSON, or anything else.
    """
    return _storable(value, 0)


def storable_text(text: str, limit: int = MAX_TEXT_CHARACTERS) -> str:
    """Return a text that Airflow and its database store.

    Args:
        text: The text.
        limit: After how many characters it is cut, with "…" for the rest.
    """
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
    # Python prints no integer of thousands of digits.
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
    # Any class may have its own, and an integer may have more digits than Python prints.
    except Exception:  # noqa: BLE001  the value must not stop what is stored with it
        return f"a {type(value).__name__}"
