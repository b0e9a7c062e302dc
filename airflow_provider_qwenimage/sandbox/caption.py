"""Draw the prompt as a caption on a frosted panel at the bottom of a picture."""

from __future__ import annotations

from functools import lru_cache

from PIL import Image, ImageDraw, ImageFilter, ImageFont

from airflow_provider_qwenimage.text.glyphs import drawable, has_glyph
from airflow_provider_qwenimage.text.wrapping import keep_lines, wrap

_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_INK = (248, 248, 250)
_FAINT_INK = (168, 170, 180)
_LARGEST, _SMALLEST = 0.036, 0.017
_PLACEHOLDER = "·"


def add_caption(image: Image.Image, prompt: str, mark: str) -> None:
    """Draw the caption into the image, in place.

    Args:
        prompt: Any text. It is wrapped; a long text is set smaller, then cut off with an ellipsis.
        mark: A short remark in the lower right corner of the panel.
    """
    width, height = image.size
    unit = min(image.size)
    margin, padding = round(unit * 0.03), round(unit * 0.028)
    measure = width - 2 * (margin + padding)
    text = drawable(" ".join(prompt.split()), _has_glyph, _PLACEHOLDER)
    font, lines, leading = _fit(text, unit, measure, height * 0.24)
    small = ImageFont.load_default(max(9.0, unit * 0.0145))
    # The mark goes on the last line of the prompt if it fits there, else on its own line.
    mark_length = small.getlength(mark)
    shares = font.getlength(lines[-1]) + mark_length + padding <= measure
    panel_height = round(len(lines) * leading + padding * 1.5 + (0 if shares else unit * 0.024))
    left, top, bottom = margin, height - margin - panel_height, height - margin
    _frost(image, (left, top, width - margin, bottom), radius=round(unit * 0.018))

    draw = ImageDraw.Draw(image)
    for number, line in enumerate(lines):
        draw.text((left + padding, top + padding * 0.75 + number * leading), line, fill=_INK, font=font)
    mark_at = (width - left - padding - mark_length, bottom - padding * 0.6)
    draw.text(mark_at, mark, fill=_FAINT_INK, font=small, anchor="ls")


def _frost(image: Image.Image, box: tuple[int, int, int, int], radius: int) -> None:
    pane = image.crop(box)
    # Blurring a quarter of the size costs a sixteenth and looks the same.
    blurred = pane.reduce(4).filter(ImageFilter.GaussianBlur(image.width / 280)).resize(pane.size)
    shaded = Image.blend(blurred, Image.new("RGB", pane.size, (10, 12, 20)), 0.52)
    mask = Image.new("L", (pane.width * 2, pane.height * 2))
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, mask.width - 1, mask.height - 1), radius * 2, fill=255)
    image.paste(shaded, box[:2], mask.reduce(2))


def _fit(text: str, unit: int, measure: float, most_height: float) -> tuple[_Font, list[str], float]:
    """Return the largest font in which the text fits, the lines of text, and the line height in pixels."""
    share = _LARGEST
    while True:
        font = ImageFont.load_default(unit * share)
        leading = unit * share * 1.32
        lines = wrap(text, font.getlength, measure)
        most_lines = max(1, int(most_height / leading))
        if len(lines) <= most_lines:
            return font, lines, leading
        if share <= _SMALLEST:
            return font, keep_lines(lines, most_lines, font.getlength, measure), leading
        share = max(_SMALLEST, share * 0.86)


@lru_cache(maxsize=4096)
def _has_glyph(character: str) -> bool:
    return has_glyph(ImageFont.load_default(32), character)
