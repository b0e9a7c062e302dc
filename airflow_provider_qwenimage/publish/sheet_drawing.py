"""Draws a page of a contact sheet: a head, and a grid of images with their labels."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from PIL import Image, ImageDraw

from airflow_provider_qwenimage.lettering.drawn_texts import Lettering, is_right_to_left
from airflow_provider_qwenimage.publish.sheet_cells import Cell

_Box = tuple[int, int, int, int]
_Color = tuple[int, int, int]

_PAGE: _Color = (242, 243, 246)
_CARD: _Color = (255, 255, 255)
_EDGE: _Color = (221, 223, 229)
_MAT: _Color = (232, 234, 239)
_TEXT: _Color = (24, 24, 27)
_QUIET: _Color = (105, 107, 118)
_FAILED: _Color = (185, 28, 28)
_CROSS: _Color = (226, 176, 178)

_MARGIN = 44
_MOST_COLUMNS = 10
# So few images are side by side.
_ONE_ROW = 3
_LEAST_CELL, _MOST_CELL = 236, 640
_MOST_WIDTH = 2500
_LABEL_LINES = 2
_LEADING = 1.34
# Landscape images of one size have cells of their shape; portrait ones are shown in square cells.
_LEAST_RATIO = 0.56
_QUALITY = 88
# Shapes are drawn so many times larger and then reduced, which makes their edges smooth.
_SMOOTH = 4


@dataclass(frozen=True)
class Layout:
    """The measures of the pages of a batch, in pixels.

    Attributes:
        columns: The cells side by side.
        cell: The width of a cell.
        picture: The height of the part of a cell that shows the image.
    """

    columns: int
    cell: int
    picture: int

    @classmethod
    def of(cls, cells: Sequence[Cell], most_cells: int) -> Layout:
        """Return that of a page.

        Args:
            cells: The cells of the page.
            most_cells: The cells of the first page, so that all pages have equally many columns.
        """
        columns = min(_MOST_COLUMNS, most_cells if most_cells <= _ONE_ROW else round(math.sqrt(most_cells * 1.5)))
        cell = min(_MOST_CELL, max(_LEAST_CELL, _MOST_WIDTH // columns - 20))
        ratio = max((cell.ratio for cell in cells), default=1.0)
        return cls(columns, cell, round(cell * min(1.0, max(_LEAST_RATIO, ratio))))

    @property
    def thumbnail(self) -> tuple[int, int]:
        """The greatest width and height of an image."""
        return self.cell, self.picture

    @property
    def gap(self) -> int:
        """The space between cells."""
        return max(16, self.cell // 22)

    @property
    def padding(self) -> int:
        """The space around the text of a cell."""
        return max(10, self.cell // 26)

    @property
    def label_size(self) -> float:
        """The size of the letters of a label."""
        return max(16.0, self.cell * 0.042)

    @property
    def details_size(self) -> float:
        """The size of the letters of the line below a label."""
        return self.label_size * 0.86

    @property
    def height(self) -> int:
        """The height of a cell."""
        text = (self.label_size * _LABEL_LINES + self.details_size * 1.1) * _LEADING
        return self.picture + round(text) + 2 * self.padding

    @property
    def width(self) -> int:
        """The width of a page."""
        return self.columns * (self.cell + self.gap) - self.gap + 2 * _MARGIN

    @property
    def head(self) -> int:
        """The height of the head of a page."""
        return round(_MARGIN + self.title_size * 2.5)

    @property
    def title_size(self) -> float:
        """The size of the letters of the title."""
        return max(30.0, self.width / 58)

    def page_height(self, cells: int) -> int:
        """Return the height of a page with so many cells."""
        rows = max(1, -(-cells // self.columns))
        return self.head + rows * (self.height + self.gap) - self.gap + _MARGIN

    def corner(self, position: int) -> tuple[int, int]:
        """Return the upper left corner of a cell, counted from 0."""
        row, column = divmod(position, self.columns)
        return _MARGIN + column * (self.cell + self.gap), self.head + row * (self.height + self.gap)


class Page:
    """A page of a contact sheet.

    Args:
        layout: Its measures.
        lettering: The fonts.
        number_of_cells: Its cells.
    """

    def __init__(self, layout: Layout, lettering: Lettering, number_of_cells: int) -> None:
        self._layout = layout
        self._lettering = lettering
        self._image = Image.new("RGB", (layout.width, layout.page_height(number_of_cells)), _PAGE)
        self._draw = ImageDraw.Draw(self._image)

    def add_head(self, title: str, subtitle: str, totals: str, position: str) -> None:
        """Draw the head: DAG above task and run at the left, totals above the number of the page at the right."""
        size = self._layout.title_size
        small = size * 0.56
        self._add_line((title, totals), (size, size * 0.72), _MARGIN + size * 0.78, _TEXT)
        self._add_line((subtitle, position), (small, small), _MARGIN + size * 1.72, _QUIET)

    def _add_line(self, ends: tuple[str, str], sizes: tuple[float, float], baseline: float, color: _Color) -> None:
        left, right = ends
        size, right_size = sizes
        measure = self._layout.width - 2 * _MARGIN
        lettering = self._lettering
        (end,) = lettering.lines(right, right_size, measure / 2, 1)
        width = lettering.length(end, right_size)
        (start,) = lettering.lines(left, size, measure - width - size, 1)
        lettering.draw(self._draw, (_MARGIN, baseline), start, size, color)
        lettering.draw(self._draw, (_MARGIN + measure - width, baseline), end, right_size, color)

    def add_cell(self, position: int, cell: Cell, picture: Image.Image | None, problem: str) -> None:
        """Draw a cell.

        Args:
            position: Counted from 0.
            cell: What it shows.
            picture: The image, reduced to `Layout.thumbnail`; None for a crossed cell.
            problem: What a crossed cell says.
        """
        layout = self._layout
        left, top = layout.corner(position)
        card = _card(layout)
        if picture is None:
            self._cross(card, problem)
        else:
            at = ((layout.cell - picture.width) // 2, (layout.picture - picture.height) // 2)
            card.paste(picture, at, picture if picture.mode == "RGBA" else None)
        self._image.paste(card, (left, top), _card_shape(layout))
        self._draw.rounded_rectangle(
            (left, top, left + layout.cell - 1, top + layout.height - 1), _radius(layout), outline=_EDGE
        )
        self._add_text(cell, left, top + layout.picture + layout.padding)

    def _cross(self, card: Image.Image, problem: str) -> None:
        layout = self._layout
        card.paste(_crossed(layout), (0, 0))
        draw = ImageDraw.Draw(card)
        size = layout.label_size * 1.05
        (line,) = self._lettering.lines(problem, size, layout.cell - 4 * layout.padding, 1)
        width = self._lettering.length(line, size)
        middle_x, middle_y = layout.cell / 2, layout.picture / 2
        box = (middle_x - width / 2 - size * 0.7, middle_y - size, middle_x + width / 2 + size * 0.7, middle_y + size)
        draw.rounded_rectangle(box, size, fill=_CARD, outline=_FAILED, width=2)
        self._lettering.draw(draw, (middle_x - width / 2, middle_y + size * 0.36), line, size, _FAILED)

    def _add_text(self, cell: Cell, left: int, top: float) -> None:
        layout, lettering = self._layout, self._lettering
        measure = layout.cell - 2 * layout.padding
        size = layout.label_size
        from_right = is_right_to_left(cell.label)
        for number, line in enumerate(lettering.lines(cell.label, size, measure, _LABEL_LINES)):
            indent = measure - lettering.length(line, size) if from_right else 0.0
            at = (left + layout.padding + indent, top + size * (0.86 + number * _LEADING))
            lettering.draw(self._draw, at, line, size, _TEXT)
        (details,) = lettering.lines(cell.details, layout.details_size, measure, 1)
        baseline = top + size * _LABEL_LINES * _LEADING + layout.details_size
        lettering.draw(self._draw, (left + layout.padding, baseline), details, layout.details_size, _QUIET)

    def to_jpeg(self, comment: bytes) -> bytes:
        """Return the page as a JPEG file with a comment."""
        made = io.BytesIO()
        self._image.save(made, "JPEG", quality=_QUALITY, optimize=True, comment=comment)
        return made.getvalue()


def _radius(layout: Layout) -> int:
    return max(8, layout.cell // 28)


def _card(layout: Layout) -> Image.Image:
    card = Image.new("RGB", (layout.cell, layout.height), _CARD)
    card.paste(_MAT, (0, 0, layout.cell, layout.picture))
    return card


@lru_cache(maxsize=4)
def _card_shape(layout: Layout) -> Image.Image:
    shape = Image.new("L", (layout.cell * _SMOOTH, layout.height * _SMOOTH))
    corners = (0, 0, shape.width - 1, shape.height - 1)
    ImageDraw.Draw(shape).rounded_rectangle(corners, _radius(layout) * _SMOOTH, fill=255)
    return shape.reduce(_SMOOTH)


@lru_cache(maxsize=4)
def _crossed(layout: Layout) -> Image.Image:
    cross = Image.new("RGB", (layout.cell * _SMOOTH, layout.picture * _SMOOTH), _MAT)
    draw = ImageDraw.Draw(cross)
    right, bottom = cross.width - 1, cross.height - 1
    width = max(2, layout.cell // 110) * _SMOOTH
    for ends in ((0, 0, right, bottom), (0, bottom, right, 0)):
        draw.line(ends, fill=_CROSS, width=width)
    return cross.reduce(_SMOOTH)
