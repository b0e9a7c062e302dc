"""Decides which characters of a text a font can draw, and what is drawn instead of the others. No I/O."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from typing import Any, Protocol

# Unicode promises that it is no character, so a font draws for it what it draws for each character that it lacks.
_NO_CHARACTER = "\U0010fffe"
# They change the character before them, or only the layout.
_DROPPED = ("Mn", "Me", "Cf")


class Font(Protocol):
    """The part of Pillow's fonts that is needed."""

    def getmask(self, text: str, /) -> Any:
        """Return the pixels of a text."""


def has_glyph(font: Font, character: str) -> bool:
    """Whether a font has a character, rather than the box that it draws for all others."""
    return character == " " or bytes(font.getmask(character)) != bytes(font.getmask(_NO_CHARACTER))


def drawable(text: str, can_draw: Callable[[str], bool], placeholder: str) -> str:
    """Replace each character that cannot be drawn by its base character or by a placeholder; drop combining marks."""
    shown = ""
    for character in text:
        for part in (character, *_base_character(character)):
            if can_draw(part):
                shown += part
                break
        else:
            shown += "" if unicodedata.category(character) in _DROPPED else placeholder
    return shown or placeholder


def _base_character(character: str) -> str:
    return unicodedata.normalize("NFKD", character)[:1]
