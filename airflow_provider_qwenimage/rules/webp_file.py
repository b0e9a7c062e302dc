"""Decides whether the pixels of a WebP file are whole. No I/O.

WebP has no checksums, and its decoder makes an image of any bytes. But an encoder ends its data with the last pixel: if
a decoder can do without the end of the data, they were damaged.
"""

from __future__ import annotations

import io
from collections.abc import Iterator

HEADER_BYTES = 12
_CHUNK_HEADER_BYTES = 8
_FRAME_HEADER_BYTES = 16
_HAS_ALPHA = b"\x10\0\0\0"
# More than an encoder writes behind the last pixel: libwebp up to 2 bytes, libvpx 4.
_MOST_BYTES_LEFT = 16


class WebpFile:
    """A WebP file, without the bytes after its end.

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
        # Read here, because Pillow reserves memory for all pixels before it reports the size.
        self.size = canvas_size(content[HEADER_BYTES : HEADER_BYTES + 4], content[HEADER_BYTES + 8 : end])

    def decode(self) -> None:
        """Decode all pixels, of the first frame if there are several.

        Raises:
            ValueError: If the data do not end with the last pixel.
            OSError: If the decoder refuses them.
        """
        _decode(self._content)
        for cut in self._cut_files():
            try:
                _decode(cut)
            except Exception:  # noqa: BLE001, S112  as expected, whatever class Pillow raises
                continue
            raise ValueError("the WebP has data left after its last pixel, so it was overwritten in places")

    def _cut_files(self) -> Iterator[bytes]:
        """Make files that lack the end of the colours, or of the transparency."""
        kind, data, alpha = _first_frame(chunks(self._content[HEADER_BYTES:]))
        if len(data) > _MOST_BYTES_LEFT:
            yield file_of((kind, data[:-_MOST_BYTES_LEFT]))
        if len(alpha) > _MOST_BYTES_LEFT and kind == b"VP8 ":
            canvas = b"".join((pixels - 1).to_bytes(3, "little") for pixels in canvas_size(kind, data))
            yield file_of((b"VP8X", _HAS_ALPHA + canvas), (b"ALPH", alpha[:-_MOST_BYTES_LEFT]), (kind, data))


def _decode(content: bytes) -> None:
    from PIL import Image

    with Image.open(io.BytesIO(content), formats=("WEBP",)) as image:
        image.load()


def chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the kind and the data of each chunk of some bytes, which may end within one."""
    at = 0
    while at < len(content):
        start = at + _CHUNK_HEADER_BYTES
        length = int.from_bytes(content[at + 4 : start], "little")
        yield content[at : at + 4], content[start : start + length]
        at = start + length + length % 2


def _first_frame(found: Iterator[tuple[bytes, bytes]]) -> tuple[bytes, bytes, bytes]:
    """Return the kind and the data of the first frame's colours, and the data of its transparency, if it has one."""
    alpha = b""
    for kind, data in found:
        if kind == b"ANMF":
            return _first_frame(chunks(data[_FRAME_HEADER_BYTES:]))
        if kind == b"ALPH":
            alpha = data
        elif kind in (b"VP8 ", b"VP8L"):
            return kind, data, alpha
    raise ValueError("the WebP has no pixels")


def file_of(*parts: tuple[bytes, bytes]) -> bytes:
    """Return a WebP file with these chunks, each with its kind and its data."""
    content = b"WEBP"
    for kind, data in parts:
        content += kind + len(data).to_bytes(4, "little") + data + bytes(len(data) % 2)
    return b"RIFF" + len(content).to_bytes(4, "little") + content


def canvas_size(kind: bytes, data: bytes) -> tuple[int, int]:
    """Return the width and height of an image in pixels by the first chunk of its file.

    Raises:
        ValueError: If no image begins like this.
    """
    if kind == b"VP8X" and len(data) >= 10:  # noqa: PLR2004  flags and the two sizes
        return int.from_bytes(data[4:7], "little") + 1, int.from_bytes(data[7:10], "little") + 1
    if kind == b"VP8 " and data[3:6] == b"\x9d\x01\x2a" and len(data) >= 10:  # noqa: PLR2004  up to the two sizes
        return int.from_bytes(data[6:8], "little") & 0x3FFF, int.from_bytes(data[8:10], "little") & 0x3FFF
    if kind == b"VP8L" and data[:1] == b"\x2f" and len(data) >= 5:  # noqa: PLR2004  up to the two sizes
        bits = int.from_bytes(data[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    raise ValueError(f"the WebP begins with {kind!r} instead of an image")
