"""Decides whether the pixels of a PNG file are whole. No I/O."""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_END = b"IEND"
_PIXELS = (b"IHDR", b"PLTE", b"IDAT", _END)
_HEADER_BYTES = 13
_PIECE_BYTES = 1024 * 1024
# Far more than files have, and few enough to be read one by one.
_MAX_CHUNKS = 100_000
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_WITH_PALETTE = 3
# The seven passes of an interlaced file: where each begins in a block of 8 by 8 pixels, and its steps.
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


class PngFile:
    """The chunks of a PNG file that make its pixels, without the data around them.

    Args:
        content: The bytes of the file. Texts, profiles, further frames and bytes after the end are ignored.

    Attributes:
        size: Width and height in pixels.

    Raises:
        ValueError: If a chunk is broken or missing.
    """

    def __init__(self, content: bytes) -> None:
        self._file = bytearray(SIGNATURE)
        self._header = b""
        self._has_palette = False
        self._data: list[bytes] = []
        before = b""
        for kind, chunk in chunks(content):
            if kind in _PIXELS:
                self._read_chunk(kind, chunk, before)
            elif not kind[0] & 0x20:
                raise ValueError(f"the PNG has an unknown critical chunk {kind!r}")
            before = kind
        self._check_header()
        if not self._data or (self._header[9] == _WITH_PALETTE and not self._has_palette):
            raise ValueError("the PNG has no pixels, or no palette for them")
        self.size = int.from_bytes(self._header[:4], "big"), int.from_bytes(self._header[4:8], "big")

    @property
    def pixels(self) -> bytes:
        """The file with its pixels and nothing else, which every decoder reads."""
        return bytes(self._file)

    def decode(self) -> None:
        """Decode all pixels.

        Raises:
            ValueError: If the compressed data are damaged or incomplete.
            OSError: If the decoder refuses them.
        """
        from PIL import Image

        self._inflate()
        with Image.open(io.BytesIO(self._file), formats=("PNG",)) as image:
            image.load()

    def _read_chunk(self, kind: bytes, chunk: bytes, before: bytes) -> None:
        if zlib.crc32(chunk[4:-4]) != int.from_bytes(chunk[-4:], "big"):
            raise ValueError(f"the PNG's {kind.decode()} chunk has a wrong checksum")
        if (kind == b"IHDR") == bool(self._header):
            raise ValueError("the PNG's header is not its first chunk, or not the only one")
        self._file += chunk
        if kind == b"IHDR":
            self._header = chunk[8:-4]
        elif kind == b"PLTE":
            colours = chunk[8:-4]
            self._has_palette = bool(colours) and len(colours) % 3 == 0 and not self._data
        elif kind == b"IDAT":
            # Browsers and libpng do not look for more pixels after another chunk.
            if self._data and before != kind:
                raise ValueError(f"the PNG's pixels are interrupted by a chunk {before!r}")
            self._data.append(chunk[8:-4])

    def _check_header(self) -> None:
        header = self._header
        # One kind of compression, one of filters, and one of interlacing.
        if len(header) != _HEADER_BYTES or header[9] not in _SAMPLES or header[10] or header[11] or header[12] > 1:
            raise ValueError("the PNG has no usable header")

    def _inflate(self) -> None:
        """Check that the compressed data are complete, which decoders do not check once the last row has begun."""
        expected = self._expected_bytes()
        stream = zlib.decompressobj()
        found = 0
        try:
            for data in self._data:
                piece = data
                while piece and not stream.eof and found <= expected:
                    found += len(stream.decompress(piece, _PIECE_BYTES))
                    piece = stream.unconsumed_tail
        except zlib.error as error:
            raise ValueError(f"the PNG's compressed data are damaged ({error})") from error
        # Every decoder ignores data beyond the pixels.
        if found < expected or not (stream.eof or found > expected):
            raise ValueError(f"the PNG has {found} of {expected} bytes of pixels")

    def _expected_bytes(self) -> int:
        width, height = self.size
        bits = self._header[8] * _SAMPLES[self._header[9]]
        passes = _PASSES if self._header[12] else ((0, 0, 1, 1),)
        sizes = [(-(-(width - x) // across), -(-(height - y) // down)) for x, y, across, down in passes]
        return sum(rows * (1 + -(-columns * bits // 8)) for columns, rows in sizes if columns > 0 and rows > 0)


def chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the kind and the bytes of each chunk of a PNG file, up to the one that ends it.

    Raises:
        ValueError: If the end is missing, or comes after too many chunks.
    """
    start = len(SIGNATURE)
    for _ in range(_MAX_CHUNKS):
        kind = content[start + 4 : start + 8]
        end = start + 12 + int.from_bytes(content[start : start + 4], "big")
        if end > len(content):
            raise ValueError("the PNG ends before its end mark")
        yield kind, content[start:end]
        if kind == _END:
            return
        start = end
    raise ValueError(f"the PNG has more than {_MAX_CHUNKS} chunks")
