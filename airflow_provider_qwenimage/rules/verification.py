"""Checks that bytes are the requested image, by decoding all of its pixels. No I/O.

Data around the pixels (texts, profiles, Exif, previews, further frames, bytes after the end) are ignored: they are no
reason to refuse a paid image. The size is read before anything is decoded, so the header of a decompression bomb is
enough to refuse it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from airflow_provider_qwenimage.contract import GenerateRequest
from airflow_provider_qwenimage.exceptions import QwenImageImageError
from airflow_provider_qwenimage.rules.jpeg_file import JpegFile
from airflow_provider_qwenimage.rules.png_file import PngFile
from airflow_provider_qwenimage.rules.webp_file import WebpFile
from airflow_provider_qwenimage.text.messages import printable

# An image that is not known is decoded up to this size, ten times the largest that can be requested.
MOST_PIXELS = 16 * 1024**2


@dataclass(frozen=True)
class ImageFacts:
    """The facts verified about an image file.

    Attributes:
        width: In pixels.
        height: In pixels.
        output_format: ``jpeg``, ``png`` or ``webp``, as decoded.
        size_bytes: The length of the file.
        sha256: The file's digest in hexadecimal.
    """

    width: int
    height: int
    output_format: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class OtherImage:
    """A whole image of another format or size than was requested.

    Attributes:
        facts: The facts about it.
        difference: What differs, as a sentence.
    """

    facts: ImageFacts
    difference: str


def verify_image(content: bytes, request: GenerateRequest) -> ImageFacts:
    """Check that the bytes of a file are the requested image, by decoding all of them.

    Raises:
        QwenImageImageError: If it is not an image, not whole, or of another format or size.
    """
    found = examine_image(content, request)
    if isinstance(found, OtherImage):
        raise QwenImageImageError(found.difference, permanent=True)
    return found


def examine_image(content: bytes, request: GenerateRequest) -> ImageFacts | OtherImage:
    """Decode all bytes of a file, and return whether they are the requested image or another one.

    Raises:
        QwenImageImageError: If it is not an image, or not whole; or another one with too many pixels to be decoded.
    """
    try:
        found_format, file = open_image(content)
        difference = _difference(found_format, file.size, request)
        if difference:
            _check_pixels(difference, file.size)
        file.decode()
    except QwenImageImageError:
        raise
    except Exception as error:  # Pillow's decoders raise a dozen classes on broken files
        raise QwenImageImageError(
            f"The downloaded bytes do not decode as a whole image ({printable(str(error))}); they begin with "
            f"{content[:16]!r}. Try again; if this persists, the service delivers broken images."
        ) from error
    facts = ImageFacts(
        width=file.size[0],
        height=file.size[1],
        output_format=found_format,
        size_bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
    )
    return OtherImage(facts, difference) if difference else facts


def open_image(content: bytes) -> tuple[str, JpegFile | PngFile | WebpFile]:
    """Return the format of an image, ``jpeg``, ``png`` or ``webp``, and its file; no pixel is decoded.

    Raises:
        ValueError: If the bytes are not an image of these formats, or not a complete one.
    """
    if content.startswith(b"\xff\xd8\xff"):
        return "jpeg", JpegFile(content)
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png", PngFile(content)
    if content.startswith(b"RIFF") and content[8:12] == b"WEBP":
        return "webp", WebpFile(content)
    raise ValueError("neither JPEG, PNG nor WebP")


def _check_pixels(difference: str, size: tuple[int, int]) -> None:
    """Refuse a decompression bomb before any pixel is decoded."""
    if size[0] * size[1] > MOST_PIXELS:
        raise QwenImageImageError(
            f"{difference} It is not stored, because it has more than {MOST_PIXELS} pixels; the service delivers "
            "something else than it documents.",
            permanent=True,
        )


def _difference(found_format: str, found_size: tuple[int, int], request: GenerateRequest) -> str:
    if found_format != request.output_format:
        return f"The image is {found_format}, but {request.output_format} was requested."
    if found_size != request.pixel_size:
        return f"The image has {found_size[0]}*{found_size[1]} pixels, but {request.size} was requested."
    return ""
