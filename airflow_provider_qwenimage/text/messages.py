"""Writes values from outside into error messages and log lines: short, printable, one line. No I/O."""

from __future__ import annotations

import re
import unicodedata

from airflow_provider_qwenimage.text.storable import NOT_STORABLE

# Categories of Unicode, and what it has as letters and marks.
_UNSEEN = frozenset({"Zs", "Zl", "Zp", "Cc", "Cf"})
_UNSEEN_LETTERS = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)

_EXCERPT_CHARACTERS = 200


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


def printable(text: str) -> str:
    """Return text from outside as one line that every log and database can hold."""
    text = " ".join(text.split())
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def is_blank(text: str) -> bool:
    """Whether a text shows nothing: it is empty, or white space, control characters and what is there for layout only.

    A zero width space and a byte order mark are no white space for Python.
    """
    return all(unicodedata.category(each) in _UNSEEN or _UNSEEN_LETTERS.match(each) for each in text)


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
