"""Check the results of untrusted input: Airflow and PostgreSQL must be able to store them, without the key."""

from __future__ import annotations

import json
import math
import re
import traceback
from typing import Any

from tests.fuzz.junk import KEY, spellings

_INTEGER_BITS = 63
_MOST_CHARACTERS = 20_000
# Each spelling as it is, and as Python's repr shows it.
_SPELLINGS = {form for spelling in spellings(KEY) for form in (spelling, repr(spelling)[1:-1])}
_LEAKS = re.compile("|".join(re.escape(spelling) for spelling in sorted(_SPELLINGS, key=len, reverse=True)))


def check_text(text: str, most: int = _MOST_CHARACTERS) -> None:
    """Check that a text can be stored and logged, is not too long, and does not contain the key."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise AssertionError(f"a lone surrogate in {ascii(text)[:200]}") from error
    assert "\0" not in text, f"NUL in {text[:200]!r}"
    assert len(text) <= most, f"{len(text)} characters: {text[:100]!r}…"
    check_no_key(text)


def check_no_key(text: str) -> None:
    """Check that a text does not contain the key in any spelling."""
    found = _LEAKS.search(text)
    if found is not None:
        raise AssertionError(f"the key is in {text[max(0, found.start() - 40) : found.end() + 40]!r}")


def check_message(error: BaseException, most: int = _MOST_CHARACTERS) -> None:
    """Check an error's message with `check_text`, and that its traceback, causes and fields do not contain the key."""
    text = str(error)
    check_text(text, most)
    assert "\x1b" not in text
    check_no_key(repr(error))
    check_no_key("".join(traceback.format_exception(error)))
    link: BaseException | None = error
    while link is not None:
        check_no_key(f"{link!r} {link.args!r}")
        link = link.__cause__ or link.__context__


def check_storable(value: Any, most_bytes: int) -> None:
    """Check that a value can be stored as JSON in PostgreSQL, is not too large, and does not contain the key."""
    _walk(value, "value")
    try:
        stored = json.dumps(value, allow_nan=False, ensure_ascii=False).encode("utf-8")
    except (ValueError, TypeError, RecursionError) as error:
        raise AssertionError(f"not storable: {type(error).__name__}: {error}") from error
    assert len(stored) <= most_bytes, f"{len(stored)} bytes"


def _walk(value: Any, where: str) -> None:
    if isinstance(value, str):
        try:
            check_text(value, most=10**9)
        except AssertionError as error:
            raise AssertionError(f"{where}: {error}") from error
    elif isinstance(value, bool) or value is None:
        pass
    elif isinstance(value, int):
        assert value.bit_length() <= _INTEGER_BITS, f"{where}: an integer of {value.bit_length()} bits"
    elif isinstance(value, float):
        assert math.isfinite(value), f"{where}: {value}"
    elif isinstance(value, dict):
        for name, part in value.items():
            assert isinstance(name, str), f"{where}: a key of type {type(name).__name__}"
            _walk(name, f"a key of {where}")
            _walk(part, f"{where}[{name[:50]!r}]")
    elif isinstance(value, list | tuple):
        for index, part in enumerate(value):
            _walk(part, f"{where}[{index}]")
    else:
        raise AssertionError(f"{where}: {type(value).__name__} is not JSON")
