"""Breaks a text into lines of a width, and cuts off what is too long. No I/O."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable

_ELLIPSIS = "…"

# Returns how wide a text is.
Length = Callable[[str], float]


def wrap(text: str, length: Length, measure: float) -> list[str]:
    """Return the lines of a text.

    Args:
        text: Words with single spaces between them. A word that is too long for a line is split, and one of a script
            that has no spaces, such as Chinese, may begin on the line before.
        length: Returns how wide a text is.
        measure: How wide a line may be.
    """
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}".strip()
        if length(longer) <= measure:
            lines[-1] = longer
            continue
        rest = word
        if lines[-1]:
            if _is_without_spaces(word):
                begun = word[: _fitting(word, length, measure - length(f"{lines[-1]} "))]
                if length(f"{lines[-1]} {begun}") <= measure:
                    lines[-1] += f" {begun}"
                    rest = word.removeprefix(begun)
            lines.append("")
        *heads, lines[-1] = _pieces(rest, length, measure)
        lines[-1:-1] = heads
    return lines


def keep_lines(lines: list[str], most: int, length: Length, measure: float) -> list[str]:
    """Return at most so many lines, the last one with an ellipsis for what is left out."""
    if len(lines) <= most:
        return lines
    return [*lines[: most - 1], cut_off(lines[most - 1], length, measure)]


def cut_off(line: str, length: Length, measure: float) -> str:
    """Return as much of a line as fits, with an ellipsis at its end."""
    while line and length(line + _ELLIPSIS) > measure:
        line = line[:-1]
    return line.rstrip(" ,.;:") + _ELLIPSIS


def _pieces(word: str, length: Length, measure: float) -> list[str]:
    """Split a word into pieces that each fit on a line."""
    pieces = []
    while length(word) > measure and len(word) > 1:
        most = _fitting(word, length, measure)
        pieces.append(word[:most])
        word = word[most:]
    return [*pieces, word]


def _fitting(text: str, length: Length, measure: float) -> int:
    """Return how many characters of a text that is too long fit on a line; at least 1."""
    # Marks that are drawn over other characters have no width.
    most = max(1, int(len(text) * measure / max(1.0, length(text))))
    while most > 1 and length(text[:most]) > measure:
        most -= 1
    return most


def _is_without_spaces(word: str) -> bool:
    return all(unicodedata.east_asian_width(character) in ("W", "F") for character in word)
