"""Decides whether the pixels of a JPEG file are whole. No I/O.

A JPEG has no checksums, and the decoder replaces damaged parts by grey without an error. But each scan is one
Huffman-coded stream of a known number of blocks: after damage it almost never ends exactly where the scan does.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

_SOI, _EOI, SOS, _DNL, _DRI, _DQT, _DHT = 0xD8, 0xD9, 0xDA, 0xDC, 0xDD, 0xDB, 0xC4
_RESTARTS = range(0xD0, 0xD8)
_BESIDE_THE_PIXELS = (*range(0xE0, 0xF0), 0xFE)
# Sequential and progressive with Huffman codes; the other kinds cannot be decoded piece by piece.
_HUFFMAN = (0xC0, 0xC1, 0xC2)
_FRAMES = (*_HUFFMAN, 0xC3, 0xC9, 0xCA, 0xCB)
_PROGRESSIVE = (0xC2, 0xCA)
_MARKER = re.compile(rb"\xff+([^\x00\xff])")
# It begins with a literal byte, for which Python searches thirty times as fast; fill bytes may precede it.
_NEXT_MARKER = re.compile(rb"\xff([^\x00\xff])")
_UNIT = re.compile(rb"\xff\x00|.", re.DOTALL)
# Encoders write about ten scans; each is a walk over all blocks, so a file of many small ones would take hours.
_MAX_SCANS = 200
_MAX_INTERVALS = 250_000
# Far more than files have, and few enough to be read one by one.
_MAX_SEGMENTS = 100_000
_COEFFICIENTS = 64
# The bytes that the decoder reads ahead.
_AHEAD = 8
# The bytes that are fed one at a time to find out what the decoder waits for.
_PROBE = 4
# A byte of ones: not a Huffman code, and skipped by a decoder that waits for a marker.
_FILL = b"\xff\x00"
_PADDING = {b"\x00", _FILL}
# Longer than a bit of each coefficient that an encoder may put off (1000 bits).
_ZEROS = bytes(256)
_FILL_INSIDE = b"\xff\xff\x00"


@dataclass(frozen=True)
class _Component:
    across: int
    down: int


@dataclass(frozen=True)
class _Scan:
    """Tables and header of a scan, and where each of its restart intervals begins and ends in the file."""

    head: bytes
    intervals: list[tuple[int, int]]


@dataclass(frozen=True)
class _ScanHeader:
    """The components of a scan, and whether its shortest codes mean blocks without detail."""

    names: bytes
    zeros_are_flat: bool


class JpegFile:
    """The structure of a JPEG file, without the data around its pixels.

    Args:
        content: The bytes of the file. Metadata and bytes after the end of the image are ignored.

    Attributes:
        size: Width and height in pixels.

    Raises:
        ValueError: If the structure is broken or incomplete.
    """

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._frame = 0
        self.size = (0, 0)
        self._components: dict[int, _Component] = {}
        self._precision_left: dict[int, list[int]] = {}
        self._restart_interval = 0
        # For each Huffman table, the symbol with the code of all zeros.
        self._zero_symbols: dict[int, int] = {}
        self._scans: list[_Scan] = []
        self._intervals_left = _MAX_INTERVALS
        self._segments_left = _MAX_SEGMENTS
        self._read()

    def decode(self) -> None:
        """Decode all pixels.

        Raises:
            ValueError: If a scan does not have exactly the expected blocks.
            OSError: If the decoder refuses it.
        """
        if self._frame in _HUFFMAN:
            self._decode_piece_by_piece()
            return
        from PIL import Image

        with Image.open(io.BytesIO(b"".join(self._essentials())), formats=("JPEG",)) as image:
            image.load()

    def _read(self) -> None:
        head = bytearray(b"\xff\xd8")
        at = 2
        while True:
            marker, start, at = next_segment(self._content, at)
            if marker == _EOI:
                break
            self._count_segment()
            if marker in _BESIDE_THE_PIXELS:
                continue
            head += self._content[start:at]
            self._read_segment(marker, start, self._content[start + 4 : at])
            if marker == SOS:
                at = self._read_scan(bytes(head), start, at)
                head.clear()
        if not self._scans or any(any(left) for left in self._precision_left.values()):
            raise ValueError("the JPEG ends before its last scan")

    def _count_segment(self) -> None:
        self._segments_left -= 1
        if self._segments_left < 0:
            raise ValueError(f"the JPEG has more than {_MAX_SEGMENTS} segments and tables")

    def _read_segment(self, marker: int, start: int, segment: bytes) -> None:
        if marker in _FRAMES:
            self._read_frame(marker, segment)
        elif marker == _DRI:
            self._restart_interval = int.from_bytes(segment[:2], "big")
        elif marker == _DHT:
            self._read_tables(segment)
        elif marker not in (SOS, _DQT, _DNL):
            raise ValueError(f"JPEG marker {marker:#04x} at byte {start} is out of place")

    def _read_scan(self, head: bytes, start: int, at: int) -> int:
        """Read a scan whose header is at `start` and whose data begin at `at`; return where they end."""
        header = self._read_scan_header(self._content[start + 4 : at], start)
        intervals = self._intervals(at, header)
        self._scans.append(_Scan(head, intervals))
        self._intervals_left -= len(intervals)
        if len(self._scans) > _MAX_SCANS or self._intervals_left < 0:
            raise ValueError(f"the JPEG has more than {_MAX_SCANS} scans or {_MAX_INTERVALS} restart intervals")
        return intervals[-1][1]

    def _read_frame(self, marker: int, frame: bytes) -> None:
        if self._frame or len(frame) < 6 or len(frame) < 6 + 3 * frame[5]:  # noqa: PLR2004  the fixed fields
            raise ValueError("the JPEG's frame header is broken")
        self._frame = marker
        self.size = int.from_bytes(frame[3:5], "big"), int.from_bytes(frame[1:3], "big")
        for name, sampling, _ in zip(frame[6::3], frame[7::3], frame[8::3], strict=False):
            self._components[name] = _Component(sampling >> 4, sampling & 15)
            self._precision_left[name] = [-1] * _COEFFICIENTS
        if not self._components or not all(part.across and part.down for part in self._components.values()):
            raise ValueError("the JPEG's frame header is broken")

    def _read_tables(self, tables: bytes) -> None:
        while tables:
            self._count_segment()
            symbols = sum(tables[1:17])
            if len(tables) < 17 + symbols:
                raise ValueError("a Huffman table of the JPEG is broken")
            if symbols:
                self._zero_symbols[tables[0]] = tables[17]
            tables = tables[17 + symbols :]

    def _read_scan_header(self, header: bytes, start: int) -> _ScanHeader:
        count = header[0] if header else 0
        names = header[1 : 1 + 2 * count : 2]
        if not names or len(header) < 4 + 2 * count or not set(names) <= set(self._components):
            raise ValueError(f"the JPEG's scan header at byte {start} is broken")
        first, last, precision = header[1 + 2 * count : 4 + 2 * count]
        before, after = precision >> 4, precision & 15
        if self._frame not in _PROGRESSIVE:
            first, last, before, after = 0, _COEFFICIENTS - 1, 0, 0
        for name in names:
            left = self._precision_left[name]
            # Each scan sends coefficients for the first time, or the next bit of coefficients sent before.
            if last >= _COEFFICIENTS or any(left[at] != (before or -1) for at in range(first, last + 1)):
                raise ValueError(f"the JPEG's scan at byte {start} does not follow from the ones before it")
            left[first : last + 1] = [after] * (last + 1 - first)
        return _ScanHeader(names, self._zeros_are_flat(header[2 : 2 + 2 * count : 2], first, last, before))

    def _zeros_are_flat(self, tables: bytes, first: int, last: int, before: int) -> bool:
        """Whether many zero bits mean that each block is like the one before, as in a plain area."""
        if self._frame not in _HUFFMAN or (last == 0 and before):
            return True
        # 0 is no difference to the block before; below 0xf0, with 0 as its second digit, is "nothing more".
        steady = first > 0 or all(self._zero_symbols.get(table >> 4) == 0 for table in tables)
        ends = [self._zero_symbols.get(0x10 | table & 15) for table in tables] if last > 0 else []
        return steady and all(end is not None and end & 15 == 0 and end < 0xF0 for end in ends)  # noqa: PLR2004

    def _units(self, names: bytes) -> int:
        """Return how many MCUs, the units that restart intervals count, a scan has."""
        components = [self._components[name] for name in names]
        width, height = self.size
        across = max(component.across for component in self._components.values())
        down = max(component.down for component in self._components.values())
        if len(components) > 1:
            return math.ceil(width / (8 * across)) * math.ceil(height / (8 * down))
        (only,) = components
        return math.ceil(math.ceil(width * only.across / across) / 8) * math.ceil(
            math.ceil(height * only.down / down) / 8
        )

    def _intervals(self, start: int, header: _ScanHeader) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = []
        begin, units = start, self._units(header.names)
        for match in _NEXT_MARKER.finditer(self._content, start):
            found.append((start, start + len(self._content[start : match.start()].rstrip(b"\xff"))))
            if match[1][0] not in _RESTARTS:
                break
            if not self._restart_interval or match[1][0] != _RESTARTS[(len(found) - 1) % 8]:
                raise ValueError(f"the JPEG's restart marker at byte {match.start()} is out of place")
            start = match.end()
        else:
            raise ValueError("the JPEG ends without its end marker")
        expected = math.ceil(units / self._restart_interval) if self._restart_interval else 1
        if len(found) != expected:
            raise ValueError(f"a scan of the JPEG has {len(found)} restart intervals instead of {expected}")
        end = found[-1][1]
        if self._content.find(_FILL_INSIDE, begin, end) >= 0 or (
            not header.zeros_are_flat and self._content.find(_ZEROS, begin, end) >= 0
        ):
            raise ValueError(f"the JPEG's scan at byte {begin} was overwritten in places")
        return found

    def _essentials(self) -> Iterator[bytes]:
        for scan in self._scans:
            yield scan.head
            for number, (start, end) in enumerate(scan.intervals):
                yield _restart(number) + self._content[start:end]
        yield b"\xff\xd9"

    def _decode_piece_by_piece(self) -> None:
        decoder = _Decoder(b"".join(scan.head for scan in self._scans))
        for scan in self._scans:
            decoder.feed(scan.head)
            for number, (start, end) in enumerate(scan.intervals):
                decoder.feed(_restart(number))
                self._decode_interval(decoder, start, end)
        decoder.feed(b"\xff\xd9")
        if not decoder.finished:
            raise ValueError("the JPEG has too few pixels")

    def _decode_interval(self, decoder: _Decoder, start: int, end: int) -> None:
        # The last byte contains a bit of the last block, so the decoder must be waiting for more until then.
        tail = max(start, end - 4 * _PROBE)
        units: list[bytes] = _UNIT.findall(self._content[tail:end])
        decoder.feed(self._content[start:tail] + b"".join(units[:-_PROBE]))
        last = units[-_PROBE:]
        done = decoder.is_done(last) and len(last) == _PROBE
        left = last[decoder.units_taken :]
        # Some encoders fill up to a word.
        if (done and not decoder.finished) or len(left) == _PROBE or not set(left) <= _PADDING:
            raise ValueError(f"the JPEG's scan has data left before byte {end}")
        decoder.feed(_FILL * _AHEAD)
        if not decoder.is_done([_FILL] * _PROBE):
            raise ValueError(f"the JPEG's scan has too few data before byte {end}")


def next_segment(content: bytes, at: int) -> tuple[int, int, int]:
    """Return the marker of a segment of a JPEG file, its position, and the end of the segment.

    Args:
        content: The bytes of the file.
        at: Where the segment begins; fill bytes may precede its marker.

    Raises:
        ValueError: If no whole segment is there.
    """
    found = _MARKER.match(content, at)
    if found is None:
        raise ValueError(
            "the JPEG ends without its end marker"
            if len(content) - at < 2  # noqa: PLR2004  the length of a marker
            else f"no JPEG marker at byte {at}"
        )
    marker, start, end = found[1][0], found.end() - 2, found.end()
    if marker == _EOI:
        return marker, start, end
    length = int.from_bytes(content[end : end + 2], "big")
    if marker == _SOI or marker in _RESTARTS or length < 2:  # noqa: PLR2004  the length counts itself
        raise ValueError(f"JPEG marker {marker:#04x} at byte {start} is out of place")
    if end + length > len(content):
        raise ValueError("the JPEG ends within a segment")
    return marker, start, end + length


def _restart(number: int) -> bytes:
    return bytes((0xFF, _RESTARTS[(number - 1) % 8])) if number else b""


class _Decoder:
    """Pillow's JPEG decoder, fed by hand: the bytes it leaves unread show what it waits for."""

    def __init__(self, head: bytes) -> None:
        from PIL import Image

        with Image.open(io.BytesIO(head), formats=("JPEG",)) as image:
            # All of the data are read at any scale; the pixels are computed at an eighth.
            image.draft("L", (image.width // 8, image.height // 8))
            kind, extents, _, arguments = image.tile[0]
            self._canvas = Image.new(image.mode, image.size)
            config = image.decoderconfig
        # As Pillow's own incremental parser does, which excludes JPEG.
        self._decoder = Image._getdecoder(self._canvas.mode, kind, arguments, config)  # noqa: SLF001
        self._decoder.setimage(self._canvas.im, extents)
        self._unread = b""
        self.finished = False
        # The units of the last probe that were fed before it finished.
        self.units_taken = 0

    def feed(self, data: bytes) -> None:
        if self.finished or not data:
            return
        self._unread += data
        read, code = self._decoder.decode(self._unread)
        if read >= 0:
            self._unread = self._unread[read:]
            return
        self.finished = True
        if code < 0:
            raise ValueError(f"the JPEG decoder stopped with error {code}")

    def is_done(self, units: list[bytes]) -> bool:
        """Whether the decoder only waits for a marker: it then reads each byte at once, and otherwise collects some."""
        waiting = False
        self.units_taken = 0
        for unit in units:
            self.units_taken += not self.finished
            self.feed(unit)
            waiting = waiting or (not self.finished and bool(self._unread))
        return not waiting
