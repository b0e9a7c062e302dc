"""Draws what Airflow's page of required actions shows of a question: each candidate with its number, and a note.

Airflow shows a text with pictures. The text stays as it was first asked, so the pictures have all that may change.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from airflow_provider_qwenimage.configuration import text_option
from airflow_provider_qwenimage.lettering.drawn_texts import Lettering, is_right_to_left
from airflow_provider_qwenimage.lettering.font_files import font_files
from airflow_provider_qwenimage.plugin.image_records import ImageRecord
from airflow_provider_qwenimage.rules.image_texts import seed_name

MEDIA_TYPE = "image/webp"
# Changes with the look of the pictures, since browsers keep them.
STYLE = 1

_Color = tuple[int, int, int]
# The size of letters, and their color.
_Style = tuple[float, _Color]

_CARD: _Color = (255, 255, 255)
_EDGE: _Color = (221, 223, 229)
_MAT: _Color = (232, 234, 239)
_TEXT: _Color = (24, 24, 27)
_QUIET: _Color = (91, 91, 102)
_PROBLEM: _Color = (161, 74, 7)
_BADGE: _Color = (24, 24, 27)

# Airflow shows pictures of a text at most this wide.
_WIDTH = 300
_PICTURE = (300, 225)
_HEIGHT = 300
_PADDING = 10
_LEADING = 1.32
_PROMPT_SIZE = 13.0
_PROMPT_LINES = 2
_DETAILS_SIZE = 11.5
_NUMBER_SIZE = 18.0
_NOTE_SIZE = 14.0
_NOTE_LINES = 8
_QUALITY = 88
# Shapes are drawn so many times larger and then reduced, which makes their edges smooth.
_SMOOTH = 4
# Fonts remember what they were asked. Others choose the texts, so they are opened again after so many pictures.
_PICTURES_OF_FONTS = 500


class CandidatePictures:
    """Draws pictures. Threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lettering: Lettering | None = None
        self._drawn = 0

    def candidate(self, number: int, record: ImageRecord, thumbnail: bytes) -> bytes:
        """Return the picture of a candidate, as WebP.

        Args:
            number: Its number.
            record: Of which the label or the prompt, the seed and the size are drawn.
            thumbnail: The image as a picture of a moderate size; see `thumbnails.make_thumbnail`.
        """
        card, draw = _new_card(_HEIGHT)
        with Image.open(io.BytesIO(thumbnail), formats=("WEBP",)) as image:
            image.thumbnail(_PICTURE)
            shown = image.convert("RGBA")
        card.paste(shown, ((_WIDTH - shown.width) // 2, (_PICTURE[1] - shown.height) // 2), shown)
        with self._lock:
            lettering = self._fonts()
            _add_number(lettering, card, number)
            _add_request(lettering, draw, record)
        return _finished(card)

    def missing(self, number: int, reason: str, record: ImageRecord | None) -> bytes:
        """Return the picture of a candidate whose image is not shown, as WebP.

        Args:
            number: Its number.
            reason: Why, as a sentence.
            record: As for `candidate`; None if there is no such candidate.
        """
        card, draw = _new_card(_HEIGHT)
        with self._lock:
            lettering = self._fonts()
            lines = lettering.lines(reason, _PROMPT_SIZE, _WIDTH - 6 * _PADDING, 4)
            top = _PICTURE[1] / 2 - (len(lines) - 1) * _PROMPT_SIZE * _LEADING / 2
            for index, line in enumerate(lines):
                left = (_WIDTH - lettering.length(line, _PROMPT_SIZE)) / 2
                baseline = top + index * _PROMPT_SIZE * _LEADING + _PROMPT_SIZE * 0.36
                lettering.draw(draw, (left, baseline), line, _PROMPT_SIZE, _QUIET)
            _add_number(lettering, card, number)
            if record is not None:
                _add_request(lettering, draw, record)
        return _finished(card)

    def note(self, question: str, problem: str | None, details: str) -> bytes:
        """Return a picture that says what is asked, as WebP.

        Args:
            question: What is asked.
            problem: What was wrong with the last answer, or None.
            details: A line below.
        """
        measure = _WIDTH - 2 * _PADDING
        with self._lock:
            lettering = self._fonts()
            parts = [(question, _NOTE_SIZE, _TEXT, 3), (problem or "", _PROMPT_SIZE, _PROBLEM, _NOTE_LINES)]
            parts.append((details, _DETAILS_SIZE, _QUIET, 2))
            lines = [
                (line, size, color)
                for text, size, color, most in parts
                if text
                for line in lettering.lines(text, size, measure, most)
            ]
            height = round(sum(size * _LEADING for _, size, _ in lines)) + 2 * _PADDING
            card, draw = _new_card(height, mat=0)
            baseline = _PADDING - 2.0
            for line, size, color in lines:
                baseline += size * _LEADING
                _add_line(lettering, draw, line, baseline - size * 0.3, (size, color))
        return _finished(card)

    def _fonts(self) -> Lettering:
        """Return the fonts for a picture."""
        if self._lettering is None or self._drawn >= _PICTURES_OF_FONTS:
            self._drawn = 0
            self._lettering = Lettering(text_option("contact_sheet_font"), self._files)
        self._drawn += 1
        return self._lettering

    @cached_property
    def _files(self) -> list[Path]:
        return font_files()


def _add_number(lettering: Lettering, card: Image.Image, number: int) -> None:
    (line,) = lettering.lines(str(number), _NUMBER_SIZE, _WIDTH / 2, 1)
    length = lettering.length(line, _NUMBER_SIZE)
    height = round(_NUMBER_SIZE * 1.6)
    width = max(height, round(length + _NUMBER_SIZE))
    # With a light edge, which a dark image needs.
    for margin, color in ((2, _CARD), (0, _BADGE)):
        shape = Image.new("L", ((width + 2 * margin) * _SMOOTH, (height + 2 * margin) * _SMOOTH))
        ImageDraw.Draw(shape).rounded_rectangle((0, 0, shape.width - 1, shape.height - 1), shape.height / 2, fill=255)
        card.paste(color, (_PADDING - margin, _PADDING - margin), shape.reduce(_SMOOTH))
    at = (_PADDING + (width - length) / 2, _PADDING + height / 2 + _NUMBER_SIZE * 0.36)
    lettering.draw(ImageDraw.Draw(card), at, line, _NUMBER_SIZE, _CARD)


def _add_request(lettering: Lettering, draw: ImageDraw.ImageDraw, record: ImageRecord) -> None:
    measure = _WIDTH - 2 * _PADDING
    top = _PICTURE[1] + 6.0
    prompt = record.label or record.request.get("prompt") or ""
    for index, line in enumerate(lettering.lines(prompt, _PROMPT_SIZE, measure, _PROMPT_LINES)):
        _add_line(lettering, draw, line, top + _PROMPT_SIZE * (0.95 + index * _LEADING), (_PROMPT_SIZE, _TEXT))
    (details,) = lettering.lines(_details(record.request), _DETAILS_SIZE, measure, 1)
    _add_line(lettering, draw, details, _HEIGHT - _PADDING, (_DETAILS_SIZE, _QUIET))


def _add_line(lettering: Lettering, draw: ImageDraw.ImageDraw, line: str, baseline: float, style: _Style) -> None:
    size, color = style
    indent = _WIDTH - 2 * _PADDING - lettering.length(line, size) if is_right_to_left(line) else 0.0
    lettering.draw(draw, (_PADDING + indent, baseline), line, size, color)


def _details(request: Mapping[str, Any]) -> str:
    seed = request.get("seed")
    name = None if seed is None else seed_name(seed)
    size = str(request.get("size") or "").replace("*", " \N{MULTIPLICATION SIGN} ")
    return " \N{MIDDLE DOT} ".join(part for part in (name, size, request.get("output_format")) if part)


def _new_card(height: int, mat: int = _PICTURE[1]) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    card = Image.new("RGB", (_WIDTH, height), _CARD)
    card.paste(_MAT, (0, 0, _WIDTH, mat))
    return card, ImageDraw.Draw(card)


def _finished(card: Image.Image) -> bytes:
    ImageDraw.Draw(card).rectangle((0, 0, card.width - 1, card.height - 1), outline=_EDGE)
    made = io.BytesIO()
    card.save(made, "WEBP", quality=_QUALITY, method=2)
    return made.getvalue()


PICTURES = CandidatePictures()
