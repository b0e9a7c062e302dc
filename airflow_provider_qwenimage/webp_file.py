"""Decides whether the pixels of a WebP file are whole. No I/O."""

from __future__ import annotations

import io

_HEADER_BYTES = 12


class WebpFile:
    """A WebP file, without what follows its end.

    WebP has no checksums: a file that is complete, and was overwritten inside, is not always noticed.

    Args:
        content: The bytes of the file.

    Attributes:
        size: Width and height in pixels.

    Raises:
        ValueError: If the file is incomplete, or its header broken.
    """

    def __init__(self, content: bytes) -> None:
        end = 8 + int.from_bytes(content[4:8], "little")
        if end > len(content):
            raise ValueError(f"the WebP has {len(content)} of {end} bytes")
        self._content = content[:end]
        # Read here, as Pillow reserves memory for all pixels before it tells the size.
        self.size = _size(content[_HEADER_BYTES : _HEADER_BYTES + 4], content[_HEADER_BYTES + 8 : end])

    def decode(self) -> None:
        """Decode all pixels.

        Raises:
            OSError: If the decoder refuses them.
        """
        from PIL import Image

        with Image.open(io.BytesIO(self._content), formats=("WEBP",)) as image:
            image.load()


def _size(kind: bytes, data: bytes) -> tuple[int, int]:
    if kind == b"VP8X" and len(data) >= 10:  # noqa: PLR2004  flags and the two sizes
        return int.from_bytes(data[4:7], "little") + 1, int.from_bytes(data[7:10], "little") + 1
    if kind == b"VP8 " and data[3:6] == b"\x9d\x01\x2a" and len(data) >= 10:  # noqa: PLR2004  up to the two sizes
        return int.from_bytes(data[6:8], "little") & 0x3FFF, int.from_bytes(data[8:10], "little") & 0x3FFF
    if kind == b"VP8L" and data[:1] == b"\x2f" and len(data) >= 5:  # noqa: PLR2004  up to the two sizes
        bits = int.from_bytes(data[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    raise ValueError(f"the WebP begins with {kind!r} instead of an image")
