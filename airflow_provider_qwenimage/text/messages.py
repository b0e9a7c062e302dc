"""Writes values from outside into error messages and log lines: short, printable, one line. No I/O."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from airflow_provider_qwenimage.text.storable import NOT_STORABLE

# Categories of Unicode, and characters that it counts as letters and marks.
_UNSEEN = frozenset({"Zs", "Zl", "Zp", "Cc", "Cf"})
_UNSEEN_LETTERS = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)

_EXCERPT_CHARACTERS = 200
# Of an amount of credits: its decimals, and all digits that a float has right.
_CREDIT_DECIMALS = 6
_CREDIT_DIGITS = 15


def shown(value: object) -> str:
    """Return a value as Python prints it, short enough for a message."""
    if isinstance(value, str | bytes) and len(value) > _EXCERPT_CHARACTERS:
        return f"{value[:_EXCERPT_CHARACTERS]!r}… ({len(value)} in all)"
    try:
        # Characters that show nothing are shown as codes.
        text = ascii(value) if isinstance(value, str) and is_blank(value) else repr(value)
    # Any class may define its own repr, and an integer may have more digits than Python prints.
    except Exception:  # noqa: BLE001  the message is needed in any case
        return f"a {type(value).__name__}"
    return shorten(text)


def safe_repr(value: object) -> str:
    """Return an ASCII representation of any JSON value, even of one that Python refuses to print."""
    try:
        return ascii(value)
    # ValueError: an integer of more digits than Python prints; RecursionError: deep nesting.
    except (ValueError, RecursionError):
        return f"a {type(value).__name__} too large to show"


def shorten(text: str, limit: int = _EXCERPT_CHARACTERS) -> str:
    """Return a text cut after `limit` characters, with "…" for the rest."""
    return text if len(text) <= limit else f"{text[:limit]}…"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a question whether the most similar of the known names was meant, or an empty text if none is similar."""
    # DAG files load this module, and hardly ever have a wrong name.
    import difflib

    near = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def printable(text: str) -> str:
    """Return a text as one line that every log and database can store."""
    text = " ".join(text.split())
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def is_blank(text: str) -> bool:
    """Whether a text shows nothing: it is empty, or has only white space, control and layout characters.

    Python does not count a zero width space or a byte order mark as white space.
    """
    return all(unicodedata.category(each) in _UNSEEN or _UNSEEN_LETTERS.match(each) for each in text)


def check_text(name: str, text: str) -> None:
    """Check that a text can be sent and stored: UTF-8 has no lone surrogates, and databases refuse NUL.

    Args:
        name: The argument, for the message.
        text: Its value.

    Raises:
        ValueError: If it contains such a character; the message shows it and its position.
    """
    bad = NOT_STORABLE.search(text)
    if bad:
        excerpt = text[max(0, bad.start() - 20) : bad.end() + 20]
        raise ValueError(
            f"{name} is a text whose character {bad.start() + 1} cannot be sent or stored ({excerpt!a}); it must not "
            "contain NUL or lone surrogates, which are halves of characters such as emoji."
        )


def shown_credits(amount: float) -> str:
    """Return an amount of credits for a message: 1000000 and not 1e+06, and 0.3 also if it is a sum of floats."""
    return f"{round(amount, _CREDIT_DECIMALS):.{_CREDIT_DIGITS}g}"
