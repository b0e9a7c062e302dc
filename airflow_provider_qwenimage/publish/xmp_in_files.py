"""Reads the XMP packet of a JPEG, PNG or WebP file and puts another one in, without touching its pixels. No I/O.

Only bytes beside the pixels are inserted or replaced: nothing is decoded or encoded again.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from airflow_provider_qwenimage.publish.xmp_packets import MAX_PACKET_BYTES
from airflow_provider_qwenimage.rules import jpeg_file, png_file, webp_file

_APP0, _APP1, _APP11 = 0xE0, 0xE1, 0xEB
_XMP_IN_JPEG = b"http://ns.adobe.com/xap/1.0/\0"
_EXIF_IN_JPEG = b"Exif\0"
# A segment's length has 16 bits and counts itself.
_MOST_BYTES_IN_JPEG = 0xFFFF - 2 - len(_XMP_IN_JPEG)
_XMP_IN_PNG = b"XML:com.adobe.xmp"
_XMP_IN_WEBP = b"XMP "
_WEBP_HAS_XMP = 0x04
_WEBP_HAS_ALPHA = 0x10
# The bit of a lossless image's header that says whether it has transparency.
_VP8L_HAS_ALPHA = 1 << 28


@dataclass(frozen=True)
class XmpPlace:
    """Where a file has its XMP packet, or where it goes.

    Attributes:
        start: The first byte of what contains the packet; the same as `end` if there is none yet.
        end: The byte after it.
        packet: The packet, or None.
        is_signed: Whether the file has a C2PA manifest, whose signature covers every byte of the file.
    """

    start: int
    end: int
    packet: bytes | None = None
    is_signed: bool = False


def find_xmp(content: bytes, output_format: str) -> XmpPlace:
    """Return where a verified image has its XMP packet, or where it goes.

    Args:
        content: The bytes of the file.
        output_format: ``jpeg``, ``png`` or ``webp``.

    Raises:
        ValueError: If the packet cannot be read.
    """
    return _FINDERS[output_format](content)


def put_xmp(content: bytes, output_format: str, place: XmpPlace, packet: bytes) -> bytes:
    """Return a file with another XMP packet.

    Args:
        content: The bytes of the file.
        output_format: ``jpeg``, ``png`` or ``webp``.
        place: What `find_xmp` returned.
        packet: The packet.

    Raises:
        ValueError: If the packet does not fit.
    """
    return _WRITERS[output_format](content, place, packet)


def _find_in_jpeg(content: bytes) -> XmpPlace:
    insert_at = at = 2
    found = None
    is_signed = False
    may_insert_later = True
    while True:
        marker, start, end = jpeg_file.next_segment(content, at)
        if marker == jpeg_file.SOS:
            break
        data = content[start + 4 : end]
        is_signed |= marker == _APP11 and b"c2pa" in data
        if marker == _APP1 and data.startswith(_XMP_IN_JPEG) and found is None:
            found = XmpPlace(start, end, data[len(_XMP_IN_JPEG) :])
        # JFIF and Exif each ask to be first.
        may_insert_later &= marker == _APP0 or (marker == _APP1 and data.startswith(_EXIF_IN_JPEG))
        if may_insert_later:
            insert_at = end
        at = end
    return replace(found or XmpPlace(insert_at, insert_at), is_signed=is_signed)


def _put_in_jpeg(content: bytes, place: XmpPlace, packet: bytes) -> bytes:
    if len(packet) > _MOST_BYTES_IN_JPEG:
        raise ValueError(f"a JPEG has room for {_MOST_BYTES_IN_JPEG} bytes of XMP, and it would be {len(packet)}")
    segment = b"\xff\xe1" + (2 + len(_XMP_IN_JPEG) + len(packet)).to_bytes(2, "big") + _XMP_IN_JPEG + packet
    return content[: place.start] + segment + content[place.end :]


def _find_in_png(content: bytes) -> XmpPlace:
    at = len(png_file.SIGNATURE)
    after_header = 0
    found = None
    is_signed = False
    for kind, chunk in png_file.chunks(content):
        at += len(chunk)
        after_header = after_header or at
        is_signed |= kind == b"caBX"
        if kind == b"iTXt" and chunk[8:].startswith(_XMP_IN_PNG + b"\0") and found is None:
            found = XmpPlace(at - len(chunk), at, _packet_in_png(chunk[8 + len(_XMP_IN_PNG) + 1 : -4]))
    return replace(found or XmpPlace(after_header, after_header), is_signed=is_signed)


def _packet_in_png(data: bytes) -> bytes:
    """Return the text of an iTXt chunk, of which the keyword was read."""
    parts = data[2:].split(b"\0", 2)
    if len(parts) < 3:  # noqa: PLR2004  the language, the translated keyword, the text
        raise ValueError("the PNG's XMP chunk is broken")
    if not data[0]:
        return parts[2]
    stream = zlib.decompressobj()
    try:
        packet = stream.decompress(parts[2], MAX_PACKET_BYTES)
    except zlib.error as error:
        raise ValueError(f"the PNG's XMP chunk is damaged ({error})") from error
    if not stream.eof:
        raise ValueError(f"the PNG's XMP chunk has more than {MAX_PACKET_BYTES} bytes, or is incomplete")
    return packet


def _put_in_png(content: bytes, place: XmpPlace, packet: bytes) -> bytes:
    # Not compressed, so that programs find it that read no PNG; the two texts after the flags are empty.
    body = b"iTXt" + _XMP_IN_PNG + b"\0" + b"\0\0" + b"\0" + b"\0" + packet
    chunk = (len(body) - 4).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")
    return content[: place.start] + chunk + content[place.end :]


def _find_in_webp(content: bytes) -> XmpPlace:
    end = 8 + int.from_bytes(content[4:8], "little")
    chunks = list(webp_file.chunks(content[webp_file.HEADER_BYTES : end]))
    packet = next((data for kind, data in chunks if kind == _XMP_IN_WEBP), None)
    return XmpPlace(end, end, packet, any(kind == b"C2PA" for kind, _ in chunks))


def _put_in_webp(content: bytes, place: XmpPlace, packet: bytes) -> bytes:
    inside = content[webp_file.HEADER_BYTES : place.end]
    chunks = list(webp_file.chunks(inside))
    # The last byte of padding may be missing.
    if not webp_file.file_of(*chunks)[webp_file.HEADER_BYTES :].startswith(inside):
        raise ValueError("the WebP has a chunk that is not whole")
    if place.packet is not None:
        chunks.remove((_XMP_IN_WEBP, place.packet))
    kind, data = chunks[0]
    if kind == b"VP8X":
        chunks[0] = (kind, bytes([data[0] | _WEBP_HAS_XMP]) + data[1:])
    else:
        # A simple file: it has no place for metadata.
        has_alpha = kind == b"VP8L" and int.from_bytes(data[1:5], "little") & _VP8L_HAS_ALPHA
        flags = _WEBP_HAS_XMP | (_WEBP_HAS_ALPHA if has_alpha else 0)
        canvas = b"".join((pixels - 1).to_bytes(3, "little") for pixels in webp_file.canvas_size(kind, data))
        chunks.insert(0, (b"VP8X", bytes([flags, 0, 0, 0]) + canvas))
    # What follows the end of the file stays there.
    return webp_file.file_of(*chunks, (_XMP_IN_WEBP, packet)) + content[place.end :]


_FINDERS: Mapping[str, Callable[[bytes], XmpPlace]] = {
    "jpeg": _find_in_jpeg,
    "png": _find_in_png,
    "webp": _find_in_webp,
}
_WRITERS: Mapping[str, Callable[[bytes, XmpPlace, bytes], bytes]] = {
    "jpeg": _put_in_jpeg,
    "png": _put_in_png,
    "webp": _put_in_webp,
}
