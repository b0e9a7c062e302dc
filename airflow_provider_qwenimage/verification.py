"""Checks that bytes are the image that was asked for, by decoding all of them."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass

from airflow_provider_qwenimage.contract import GenerateRequest, printable
from airflow_provider_qwenimage.exceptions import QwenImageImageError

_END_MARKS = {"jpeg": b"\xff\xd9", "png": b"IEND\xaeB`\x82"}


@dataclass(frozen=True)
class ImageFacts:
    """What was verified of an image file.

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


def verify_image(content: bytes, request: GenerateRequest) -> ImageFacts:
    """Check that bytes are the image that was asked for, by decoding all of them.

    Args:
        content: The bytes of a file.
        request: What was asked for.

    Raises:
        QwenImageImageError: If it is no image, not whole, or of another format or size.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content), formats=("JPEG", "PNG", "WEBP")) as image:
            found_format, found_size = (image.format or "").lower(), image.size
            # The size is compared before any pixel is decoded: a bomb of another size stays unexploded.
            _check_kind(found_format, found_size, request)
            image.verify()
        # verify() compares a PNG's checksums, where decoding does not; after it, only a second opening can decode.
        with Image.open(io.BytesIO(content)) as image:
            # A JPEG is read to its end at any scale, and damage is found there; its pixels are computed at an eighth.
            image.draft("L", (image.width // 8, image.height // 8))
            image.load()
    except QwenImageImageError:
        raise
    except Exception as error:  # Pillow's decoders raise a dozen classes on broken files
        raise QwenImageImageError(
            f"The downloaded bytes do not decode as a whole image ({printable(str(error))}); they begin with "
            f"{content[:16]!r}. Try again; if it persists, the service delivers broken images."
        ) from error
    _check_end(content, found_format)
    return ImageFacts(
        width=found_size[0],
        height=found_size[1],
        output_format=found_format,
        size_bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
    )


def _check_kind(found_format: str, found_size: tuple[int, int], request: GenerateRequest) -> None:
    if found_format != request.output_format:
        raise QwenImageImageError(
            f"The image is {found_format}, but {request.output_format} was asked for. It is not stored; the service "
            "delivers another format than it documents.",
            permanent=True,
        )
    if found_size != request.pixel_size:
        raise QwenImageImageError(
            f"The image has {found_size[0]}*{found_size[1]} pixels, but {request.size} was asked for. It is not "
            "stored; the service delivers another size than it documents.",
            permanent=True,
        )


def _check_end(content: bytes, found_format: str) -> None:
    """Refuse a file that decodes but lacks its last bytes, which decoders let pass."""
    mark = _END_MARKS.get(found_format)
    if mark is not None and mark not in content[-4096:]:
        raise QwenImageImageError(f"The {found_format} file has no end: its last bytes are missing. Try again.")
