"""Decodes an image that was checked before, as small as it is needed. No I/O."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from airflow_provider_qwenimage.rules.png_file import PngFile

if TYPE_CHECKING:
    from PIL import Image

    from airflow_provider_qwenimage.rules.jpeg_file import JpegFile
    from airflow_provider_qwenimage.rules.webp_file import WebpFile

_FORMATS = ("JPEG", "PNG", "WEBP")


def reduced_image(content: bytes, file: JpegFile | PngFile | WebpFile, box: tuple[int, int]) -> Image.Image:
    """Return an image, reduced to fit into a box, as RGB or RGBA.

    Args:
        content: The bytes of its file.
        file: What `verification.open_image` returned for them; its size is checked already.
        box: The greatest width and height in pixels.

    Raises:
        Exception: If it cannot be decoded: broken files raise a dozen classes.
    """
    # Texts and profiles of a PNG may exceed the limits of the decoder: the second attempt leaves them out.
    attempts = [content, file.pixels] if isinstance(file, PngFile) else [content]
    for attempt in attempts:
        try:
            return _reduced(attempt, box)
        except Exception as error:  # noqa: BLE001  see above
            failure = error
    raise failure


def _reduced(content: bytes, box: tuple[int, int]) -> Image.Image:
    from PIL import Image

    with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
        image.draft("RGB", box)
        image.thumbnail(box)
        return image.copy() if image.mode in ("RGB", "RGBA") else image.convert("RGB")
