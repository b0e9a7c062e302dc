"""Draws texts of any script with the fonts of the machine: for each text, those that have its characters."""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Sequence
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import TypeAlias

from PIL import ImageDraw, ImageFont

from airflow_provider_qwenimage.lettering.font_files import font_files
from airflow_provider_qwenimage.text.glyphs import drawable, has_glyph
from airflow_provider_qwenimage.text.wrapping import keep_lines, wrap

log = logging.getLogger(__name__)

_Font: TypeAlias = ImageFont.FreeTypeFont | ImageFont.ImageFont
# A part of a text in one font.
_Run: TypeAlias = tuple[int, str]

# Pillow's own font has it as a box.
_PLACEHOLDER = "\N{REPLACEMENT CHARACTER}"
# For the question whether a font has a character.
_ANY_SIZE = 32.0
# No more characters of a text are looked at, which are more than two lines have.
_MOST_CHARACTERS = 300
# A hundred prompts of random characters must not take minutes.
_MOST_LOOKUPS = 50_000
_NAMED_CHARACTERS = 10
_LAYOUT_MARKS = ("Mn", "Me", "Cf")
_PACKAGES = {
    "fonts-noto-cjk": ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "BOPOMOFO", "IDEOGRAPHIC"),
    "fonts-symbola": ("So", "Sk", "Sm"),
}
_OTHER_PACKAGE = "fonts-noto-core"


class Lettering:
    """Fonts, and the texts drawn with them.

    With the library Raqm, with which Pillow's own packages come, scripts that join letters or run from right to left
    are laid out as they are written; without it, their characters are drawn one after the other.

    Args:
        named: A font file that is preferred to those of the system, or "".
        found: Font files, the preferred ones first; None for those of the system.
    """

    def __init__(self, named: str = "", found: Sequence[Path] | None = None) -> None:
        self._named = named
        self._found = found
        self._opened: dict[tuple[int, float], _Font | None] = {}
        self._plain: dict[int, _Font | None] = {}
        # Which font is the first one that has a character; None for a character that no font has.
        self._first: dict[str, int | None] = {}
        self._runs_of: dict[str, list[_Run]] = {}
        self._coverage: dict[tuple[int, str], bool] = {}
        self._used: set[int] = set()
        self._missing: set[str] = set()

    def lines(self, text: str, size: float, measure: float, most: int) -> list[str]:
        """Return a text as lines that fit into a width; the last one ends with an ellipsis if there is more."""

        def length(part: str) -> float:
            return self.length(part, size)

        return keep_lines(wrap(self._clean(text), length, measure), most, length, measure)

    def length(self, line: str, size: float) -> float:
        """Return the width of a line in pixels."""
        return sum(self._font(font, size).getlength(part) for font, part in self._runs(line))

    def draw(
        self, on: ImageDraw.ImageDraw, at: tuple[float, float], line: str, size: float, fill: tuple[int, int, int]
    ) -> None:
        """Draw a line that `lines` has returned; `at` is the left end of its baseline."""
        left, baseline = at
        runs = self._runs(line)
        for index, part in reversed(runs) if is_right_to_left(line) else runs:
            font = self._font(index, size)
            on.text((left, baseline), part, fill=fill, font=font, anchor="ls")
            left += font.getlength(part)
            self._used.add(index)

    def report(self) -> None:
        """Log which fonts were used, and which characters no font has."""
        if self._used:
            log.info("Fonts of the contact sheet: %s.", ", ".join(map(self._name_of, sorted(self._used))))
        if self._missing:
            log.warning("%s", _about_missing(self._missing))

    @cached_property
    def _files(self) -> list[Path]:
        """The font files; Pillow's own font comes after them."""
        found = list(font_files() if self._found is None else self._found)
        if not self._named:
            return found
        try:
            ImageFont.truetype(self._named, _ANY_SIZE)
        except (OSError, ValueError) as error:
            log.warning(
                "The option contact_sheet_font in section [qwenimage] of Airflow's configuration is not a font file "
                "that this worker can read (%s: %s); fonts of the system are used. Correct it.",
                type(error).__name__,
                error,
            )
            return found
        return [Path(self._named), *found]

    def _name_of(self, index: int) -> str:
        return self._files[index].name if index < len(self._files) else "Pillow's own"

    def _clean(self, text: str) -> str:
        """Return a text as one line of characters that can be drawn, with placeholders for the others."""
        line = " ".join(unicodedata.normalize("NFC", text[:_MOST_CHARACTERS]).split())
        return drawable(line, self._can_draw, _PLACEHOLDER) if line else ""

    def _can_draw(self, character: str) -> bool:
        can_draw = self._first_font(character) is not None
        if not can_draw and unicodedata.category(character) not in _LAYOUT_MARKS:
            self._missing.add(character)
        return can_draw

    def _runs(self, line: str) -> list[_Run]:
        """Return a line in as few fonts as possible: a font that has all of it shapes it best."""
        if line not in self._runs_of:
            if len(self._runs_of) > _MOST_LOOKUPS:
                self._runs_of.clear()
            self._runs_of[line] = self._in_runs(line)
        return self._runs_of[line]

    def _in_runs(self, line: str) -> list[_Run]:
        own = len(self._files)
        firsts = [self._first_font(character) for character in line]
        for index in sorted({first for first in firsts if first is not None}):
            if all(self._has(index, character) for character in line):
                return [(index, line)]
        chosen: list[int] = []
        for character, first in zip(line, firsts, strict=True):
            # Spaces and marks stay in the font of what is before them.
            is_joined = chosen and (character == " " or unicodedata.category(character) in _LAYOUT_MARKS)
            if is_joined and self._has(chosen[-1], character):
                chosen.append(chosen[-1])
            else:
                chosen.append(own if first is None else first)
        pairs = groupby(zip(chosen, line, strict=True), key=lambda pair: pair[0])
        return [(index, "".join(character for _, character in group)) for index, group in pairs]

    def _first_font(self, character: str) -> int | None:
        if character not in self._first:
            fonts = range(len(self._files) + 1)
            self._first[character] = next((index for index in fonts if self._has(index, character)), None)
        return self._first[character]

    def _has(self, index: int, character: str) -> bool:
        key = index, character
        if key not in self._coverage:
            # The last font is Pillow's own.
            if len(self._coverage) >= _MOST_LOOKUPS and index < len(self._files):
                return False
            font = self._plain_font(index)
            self._coverage[key] = font is not None and has_glyph(font, character)
        return self._coverage[key]

    def _plain_font(self, index: int) -> _Font | None:
        """Return a font that draws each character by itself; None if it cannot be opened.

        Raqm composes a character that a font lacks of parts, which it may lack as well.
        """
        if index not in self._plain:
            is_own = index == len(self._files)
            plain = ImageFont.Layout.BASIC
            self._plain[index] = _own_font(_ANY_SIZE) if is_own else _opened(self._files[index], _ANY_SIZE, plain)
        return self._plain[index]

    def _font(self, index: int, size: float) -> _Font:
        return self._open(index, size) or _own_font(size)

    def _open(self, index: int, size: float) -> _Font | None:
        """Return a font; None if it cannot be opened in this size, as fonts of coloured pictures cannot."""
        key = index, size
        if key not in self._opened:
            self._opened[key] = _opened(self._files[index], size) if index < len(self._files) else _own_font(size)
        return self._opened[key]


def is_right_to_left(line: str) -> bool:
    """Whether a line begins at the right: its first letter is Hebrew or Arabic, for example."""
    directions = (unicodedata.bidirectional(character) for character in line)
    return next((direction in ("R", "AL") for direction in directions if direction in ("L", "R", "AL")), False)


def _opened(file: Path, size: float, layout: ImageFont.Layout | None = None) -> _Font | None:
    try:
        return ImageFont.truetype(str(file), size, layout_engine=layout)
    except (OSError, ValueError):
        return None


def _own_font(size: float) -> _Font:
    return ImageFont.load_default(size)


def _about_missing(missing: set[str]) -> str:
    named = sorted(missing)[:_NAMED_CHARACTERS]
    codes = ", ".join(
        f"{character if character.isprintable() else ''} U+{ord(character):04X}".strip() for character in named
    )
    more = f" and {len(missing) - len(named)} more" if len(missing) > len(named) else ""
    packages = ", ".join(sorted({_package_of(character) for character in missing}))
    return (
        f"No font of this worker has these characters, which the contact sheet replaces: {codes}{more}. Install fonts "
        f"that have them, for example with the Debian packages {packages}, or name a font file in the option "
        "contact_sheet_font of section [qwenimage] of Airflow's configuration."
    )


def _package_of(character: str) -> str:
    facts = unicodedata.name(character, "").partition(" ")[0], unicodedata.category(character)
    kinds = {facts[0].partition("-")[0], facts[1]}
    return next((package for package, marks in _PACKAGES.items() if kinds & set(marks)), _OTHER_PACKAGE)
