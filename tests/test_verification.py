"""Whole pixels are accepted with any data around them; damaged or incomplete pixels are refused."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from io import BytesIO
from itertools import pairwise, product
from random import Random
from typing import Any

import pytest
from PIL import Image, ImageDraw, PngImagePlugin

from airflow_provider_qwenimage.contract import GenerateRequest
from airflow_provider_qwenimage.exceptions import QwenImageImageError
from airflow_provider_qwenimage.rules.verification import open_image, verify_image

SIZE = (768, 1024)
JPEG_KINDS: dict[str, dict[str, Any]] = {
    "baseline": {},
    "finer": {"quality": 95, "subsampling": 0},
    "optimized": {"optimize": True},
    "progressive": {"progressive": True},
    "progressive-finer": {"progressive": True, "quality": 95},
    "restarts": {"restart_marker_rows": 1},
    "progressive-restarts": {"progressive": True, "restart_marker_rows": 2},
}

WEBP_KINDS: dict[str, dict[str, Any]] = {
    "middling": {"method": 0},
    "fine": {"method": 0, "quality": 100, "alpha_quality": 50},
    "coarse": {"method": 4, "quality": 1},
    "lossless": {"method": 0, "lossless": True, "quality": 20},
}


def verify(content: bytes, output_format: str) -> None:
    facts = verify_image(content, GenerateRequest(prompt="a", size="768*1024", output_format=output_format))
    assert (facts.width, facts.height, facts.output_format) == (*SIZE, output_format)
    assert facts.size_bytes == len(content)


def refused(content: bytes, output_format: str) -> None:
    with pytest.raises(QwenImageImageError, match="do not decode as a whole image") as caught:
        verify(content, output_format)
    # The next download may bring the whole image.
    assert not caught.value.permanent


def noise(seed: int, size: tuple[int, int]) -> Image.Image:
    """Return the same noise each time: whether damage is detected depends on the data it hits."""
    random = Random(seed)
    return Image.frombytes(
        "L", size, bytes(min(255, max(0, round(random.gauss(128, 90)))) for _ in range(size[0] * size[1]))
    )


@cache
def picture(mode: str = "RGB") -> Image.Image:
    """Return a picture with noise above, a drawing in the middle and a plain area below."""
    image = Image.new("RGB", SIZE, (20, 160, 90))
    image.paste(Image.merge("RGB", [noise(seed, (SIZE[0] // 4, 100)).resize((SIZE[0], 600)) for seed in range(3)]))
    draw = ImageDraw.Draw(image)
    for number in range(60):
        draw.ellipse((number * 12, 400 + number * 3, number * 12 + 90, 520 + number * 3), fill=(number * 4, 30, 200))
    image = image.convert(mode)
    if mode == "RGBA":
        image.putalpha(noise(3, (SIZE[0] // 8, SIZE[1] // 8)).resize(SIZE))
    return image


@cache
def encoded(output_format: str, mode: str = "RGB", kind: str = "") -> bytes:
    stream = BytesIO()
    picture(mode).save(stream, output_format, **(JPEG_KINDS | WEBP_KINDS).get(kind, {}))
    return stream.getvalue()


def png_chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 8
    while at < len(content):
        length = int.from_bytes(content[at : at + 4], "big")
        yield content[at + 4 : at + 8], content[at + 8 : at + 8 + length]
        at += 12 + length


def png(chunks: list[tuple[bytes, bytes]]) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def png_with(*extra: tuple[bytes, bytes]) -> bytes:
    """Return a PNG with further chunks after its header."""
    header, *others = png_chunks(encoded("png"))
    return png([header, *extra, *others])


def png_of(header: bytes, pixels: bytes) -> bytes:
    return png([(b"IHDR", header), (b"IDAT", pixels), (b"IEND", b"")])


def png_pixels(content: bytes) -> bytes:
    return b"".join(data for kind, data in png_chunks(content) if kind == b"IDAT")


def interlaced() -> bytes:
    """Return an interlaced PNG of one colour: each of its seven passes has rows of its own."""
    rows = b""
    for x, y, across, down in (
        (0, 0, 8, 8),
        (4, 0, 8, 8),
        (0, 4, 4, 8),
        (2, 0, 4, 4),
        (0, 2, 2, 4),
        (1, 0, 2, 2),
        (0, 1, 1, 2),
    ):
        columns, lines = len(range(x, SIZE[0], across)), len(range(y, SIZE[1], down))
        rows += (b"\0" + b"\x55" * columns) * lines
    return png_of(struct.pack(">IIBBBBB", *SIZE, 8, 0, 0, 0, 1), zlib.compress(rows))


def png_of_mode(mode: str) -> bytes:
    if mode == "interlaced":
        return interlaced()
    if mode == "I;16":
        stream = BytesIO()
        Image.new("I;16", SIZE, 40_000).save(stream, "png")
        return stream.getvalue()
    return encoded("png", mode)


def animation(output_format: str) -> bytes:
    stream = BytesIO()
    picture().save(stream, output_format, save_all=True, append_images=[Image.new("RGB", SIZE), picture()])
    return stream.getvalue()


def plain_webp(mode: str) -> bytes:
    stream = BytesIO()
    Image.new(mode, SIZE).save(stream, "webp")
    return stream.getvalue()


def webp_with_metadata() -> bytes:
    stream = BytesIO()
    picture().save(stream, "webp", method=0, icc_profile=b"none", exif=b"none", xmp=b"none")
    return stream.getvalue()


def with_long_text() -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", "x" * 3_000_000, zip=True)
    stream = BytesIO()
    picture().save(stream, "png", pnginfo=info)
    return stream.getvalue()


def with_picture_index() -> bytes:
    stream = BytesIO()
    picture().save(stream, "MPO", save_all=True, append_images=[Image.new("RGB", (160, 120))])
    return stream.getvalue()


def jpeg_with(segment: bytes, marker: int = 0xE1) -> bytes:
    content = encoded("jpeg")
    return content[:2] + bytes((0xFF, marker)) + struct.pack(">H", len(segment) + 2) + segment + content[2:]


def jpeg_with_thumbnail() -> bytes:
    stream = BytesIO()
    picture().resize((160, 120)).save(stream, "jpeg")
    tiff = b"II*\0\x08\0\0\0" + b"\0\0" + struct.pack("<I", 14) + b"\0\0" + b"\0\0\0\0"
    return jpeg_with(b"Exif\0\0" + tiff + stream.getvalue())


def jpeg_of_other_kind(**options: object) -> bytes:
    stream = BytesIO()
    picture().save(stream, "jpeg", **options)
    return stream.getvalue()


WHOLE: dict[str, tuple[str, Callable[[], bytes]]] = {
    "a compressed text of 3 MB": ("png", with_long_text),
    "a text that is no zlib stream": ("png", lambda: png_with((b"zTXt", b"a\0\0nothing of the kind"))),
    "many long texts": ("png", lambda: png_with(*[(b"iTXt", b"a\0\0\0\0\0" + b"x" * 900_000)] * 80)),
    "a broken colour profile": ("png", lambda: png_with((b"iCCP", b"profile\0\0broken"))),
    "a broken eXIf": ("png", lambda: png_with((b"eXIf", b"\xff\xfe broken"))),
    "an empty pHYs": ("png", lambda: png_with((b"pHYs", b""))),
    "a broken gAMA, tIME and unknown chunks": (
        "png",
        lambda: png_with((b"gAMA", b"1"), (b"tIME", b""), (b"sRGB", b""), (b"cHRM", b"12"), (b"qwEn", b"\0" * 99)),
    ),
    "bytes after IEND": ("png", lambda: encoded("png") + b"\0" * 5000 + b"<html>"),
    "an animated PNG": ("png", lambda: animation("png")),
    "a broken animation control": ("png", lambda: png_with((b"acTL", b"\xff" * 3))),
    "a PNG of true colours with a palette": ("png", lambda: png_with((b"PLTE", b"\x10\x20\x30" * 9))),
    "a PNG in small pieces": (
        "png",
        lambda: png(
            [
                (kind, piece)
                for kind, data in png_chunks(encoded("png"))
                for piece in ([data[at : at + 999] for at in range(0, len(data), 999)] or [b""])
            ]
        ),
    ),
    **{
        f"a PNG of mode {mode}": ("png", lambda mode=mode: png_of_mode(mode))  # type: ignore[misc]
        for mode in ("1", "L", "LA", "P", "RGBA", "I;16", "interlaced")
    },
    "a multi-picture index": ("jpeg", with_picture_index),
    "a broken multi-picture index": ("jpeg", lambda: jpeg_with(b"MPF\0II*\0\xff\xff\xff\xff", 0xE2)),
    "a thumbnail": ("jpeg", jpeg_with_thumbnail),
    "an Exif rotation": (
        "jpeg",
        lambda: jpeg_with(b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"),
    ),
    "a broken Exif": ("jpeg", lambda: jpeg_with(b"Exif\0\0II*\0\xff\xff\xff\x7f")),
    "a broken JFIF header": ("jpeg", lambda: jpeg_with(b"JFIF\0", 0xE0)),
    "an unknown JFIF header": ("jpeg", lambda: jpeg_with(b"JFXX\0\x10" + b"\0" * 40, 0xE0)),
    "a broken Photoshop segment": ("jpeg", lambda: jpeg_with(b"Photoshop 3.0\x008BIM\x04\x04\xff", 0xED)),
    "a broken colour profile in a JPEG": ("jpeg", lambda: jpeg_with(b"ICC_PROFILE\0\x05\x01junk", 0xE2)),
    "a comment that is no text": ("jpeg", lambda: jpeg_with(bytes(range(256)), 0xFE)),
    "the longest segments": (
        "jpeg",
        lambda: jpeg_with(b"http://ns.adobe.com/xmp/extension/\0" + b"\xff\xd9" * 32_000),
    ),
    "bytes after EOI": ("jpeg", lambda: encoded("jpeg") + b"\0" * 5000 + b"\xff\xd8\xff\xc0"),
    "fill bytes before markers": ("jpeg", lambda: encoded("jpeg")[:-2] + b"\xff\xff\xff\xd9"),
    "no subsampling": ("jpeg", lambda: jpeg_of_other_kind(subsampling=1)),
    "the lowest quality": ("jpeg", lambda: jpeg_of_other_kind(quality=1)),
    "the highest quality": ("jpeg", lambda: jpeg_of_other_kind(quality=100, subsampling=0)),
    "restart markers after each block": ("jpeg", lambda: jpeg_of_other_kind(restart_marker_blocks=1)),
    **{
        f"a {kind} JPEG of mode {mode}": ("jpeg", lambda mode=mode, kind=kind: encoded("jpeg", mode, kind))  # type: ignore[misc]
        for mode, kind in product(("RGB", "L", "CMYK"), JPEG_KINDS)
    },
    **{
        f"a WebP of {name}": ("webp", lambda mode=mode, kind=kind: encoded("webp", mode, kind))  # type: ignore[misc]
        for (name, mode), kind in product((("colours", "RGB"), ("colours and transparency", "RGBA")), WEBP_KINDS)
    },
    "a plain WebP": ("webp", lambda: plain_webp("RGB")),
    "a plain WebP with alpha": ("webp", lambda: plain_webp("RGBA")),
    "a WebP with a profile, Exif and XMP that are none": ("webp", webp_with_metadata),
    "an animated WebP": ("webp", lambda: animation("webp")),
    "bytes after the WebP": ("webp", lambda: encoded("webp") + b"\0" * 5000),
}


@pytest.mark.parametrize("name", WHOLE)
def test_whole_pixels_are_accepted_with_any_data_around_them(name: str) -> None:
    output_format, make = WHOLE[name]
    verify(make(), output_format)


@pytest.mark.parametrize("colour", [(255, 255, 255), (0, 0, 0), (20, 160, 90)])
@pytest.mark.parametrize("kind", JPEG_KINDS)
def test_a_plain_area_is_accepted_although_its_data_repeat(kind: str, colour: tuple[int, int, int]) -> None:
    stream = BytesIO()
    Image.new("RGB", SIZE, colour).save(stream, "jpeg", **JPEG_KINDS[kind])
    verify(stream.getvalue(), "jpeg")


def scan_of(content: bytes) -> int:
    """Return where the data of the first scan of a JPEG begin."""
    start = content.index(b"\xff\xda")
    return start + 2 + int.from_bytes(content[start + 2 : start + 4], "big")


def overwritten(content: bytes, at: int, new: bytes) -> bytes:
    return content[:at] + new + content[at + len(new) :]


OVERWRITTEN: dict[str, Callable[[bytes, int], bytes]] = {
    "zeros": lambda content, at: overwritten(content, at, bytes(4000)),
    "few zeros": lambda content, at: overwritten(content, at, bytes(600)),
    "ones": lambda content, at: overwritten(content, at, b"\xff" * 4000),
    "garbage": lambda content, at: overwritten(content, at, Random(at).randbytes(2000)),
    "text": lambda content, at: overwritten(content, at, b"<html><body>502 Bad Gateway</body></html>" * 20),
}
JPEG_DAMAGE = OVERWRITTEN | {
    "missing": lambda content, at: content[:at] + content[at + 3000 :],
    "twice": lambda content, at: content[: at + 3000] + content[at:],
    "the rest zeros": lambda content, at: content[:at] + bytes(len(content) - at - 2) + b"\xff\xd9",
    "the rest missing": lambda content, at: content[:at].rstrip(b"\xff") + b"\xff\xd9",
}


@pytest.mark.parametrize("damage", JPEG_DAMAGE)
@pytest.mark.parametrize("kind", JPEG_KINDS)
def test_a_jpeg_that_is_damaged_inside_is_refused(kind: str, damage: str) -> None:
    content = encoded("jpeg", "RGB", kind)
    first, last = scan_of(content), len(content) - 5000
    # If a progressive scan ends in a plain area, that absorbs surplus blocks.
    places = (
        (first + 100, (first + last) // 2, last) if damage != "twice" or "progressive" not in kind else (first + 100,)
    )
    for at in places:
        refused(JPEG_DAMAGE[damage](content, at), "jpeg")


def test_zeros_that_happen_to_decode_to_the_right_number_of_blocks_are_refused() -> None:
    # In this image, the number of blocks comes out even at most positions: the end of an empty block fits any block.
    source = Random(1)
    noise = bytes(max(0, min(255, int(source.gauss(128, 60)))) for _ in range(SIZE[0] * SIZE[1]))
    stream = BytesIO()
    Image.merge("RGB", [Image.frombytes("L", SIZE, noise)] * 3).convert("CMYK").save(stream, "jpeg", optimize=True)
    content = stream.getvalue()
    verify(content, "jpeg")
    for part in range(12):
        refused(overwritten(content, 1500 + (len(content) - 7000) * part // 12, bytes(4000)), "jpeg")


def test_a_plain_area_is_accepted_in_each_scan_of_a_progressive_jpeg() -> None:
    # Squares of all greys above, so that no difference between blocks is rare; below, the last bit of each is 0.
    image = Image.new("L", SIZE, 128)
    squares = Image.frombytes("L", (SIZE[0] // 8, 104), Random(1).randbytes(SIZE[0] // 8 * 104))
    image.paste(squares.resize((SIZE[0], 832), Image.Resampling.NEAREST), (0, 0))
    stream = BytesIO()
    image.save(stream, "jpeg", progressive=True)
    assert bytes(280) in stream.getvalue()
    verify(stream.getvalue(), "jpeg")


def scans_of(content: bytes) -> list[int]:
    """Return where the tables and headers of each scan of a progressive JPEG begin, and where the last one ends."""
    found, at = [], scan_of(content)
    while content[at : at + 2] != b"\xff\xd9":
        if content[at] == 0xFF and content[at + 1] not in (0, *range(0xD0, 0xD8)):
            found.append(at)
            while content[at + 1] != 0xDA:
                at += 2 + int.from_bytes(content[at + 2 : at + 4], "big")
            at += 2 + int.from_bytes(content[at + 2 : at + 4], "big")
        else:
            at += 1
    return [*found, at]


def test_a_progressive_jpeg_without_one_of_its_scans_is_refused() -> None:
    content = encoded("jpeg", "RGB", "progressive")
    starts = scans_of(content)
    assert len(starts) > 5
    for start, end in pairwise(starts):
        refused(content[:start] + b"\xff\xd9", "jpeg")
        refused(content[:start] + content[end:], "jpeg")
        refused(content[:end] + content[start:], "jpeg")


@pytest.mark.parametrize("kind", ["restarts", "progressive-restarts"])
def test_a_jpeg_without_some_of_its_restart_markers_is_refused(kind: str) -> None:
    content = encoded("jpeg", "RGB", kind)
    first, ninth = (content.index(b"\xff\xd0"), content.index(b"\xff\xd0", content.index(b"\xff\xd7")))
    refused(content[:first] + content[first + 2 :], "jpeg")
    refused(overwritten(content, first, b"\xff\xd5"), "jpeg")
    refused(content[:first] + content[ninth:], "jpeg")


def test_a_jpeg_without_its_end_is_refused() -> None:
    content = encoded("jpeg")
    for cut in (content[:-2], content[:-1], content[: len(content) // 2], content[:300], content[:3]):
        refused(cut, "jpeg")


def test_a_jpeg_of_very_many_scans_is_not_decoded() -> None:
    header = encoded("jpeg", "L")
    scan = b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00" + b"\x00" * 9
    refused(header[: header.index(b"\xff\xda")] + scan * 100_000 + b"\xff\xd9", "jpeg")


def test_a_jpeg_of_mostly_fill_bytes_is_refused_quickly() -> None:
    content = encoded("jpeg")
    middle = scan_of(content) + 1000
    refused(content[:middle] + b"\xff" * 20_000_000 + b"\0" + content[middle:], "jpeg")


# The beginning of each file, the position of its parts, and one part.
PARTS: dict[str, tuple[str, int, bytes]] = {
    "comments": ("jpeg", 2, b"\xff\xfe\x00\x02"),
    "empty tables": ("jpeg", 2, b"\xff\xc4\x00\x02"),
    "unused tables": ("jpeg", 2, b"\xff\xc4\x00\x13" + bytes(17)),
    "texts": ("png", 33, struct.pack(">I4sI", 0, b"teXt", zlib.crc32(b"teXt"))),
}


@pytest.mark.parametrize("name", PARTS)
def test_an_image_of_very_many_parts_is_refused_quickly(name: str) -> None:
    """Some hundred megabytes of empty parts would hold the API server for minutes."""
    output_format, at, part = PARTS[name]
    content = encoded(output_format)
    verify(content[:at] + 1000 * part + content[at:], output_format)
    many = content[:at] + 100_000 * part + content[at:]
    with pytest.raises(ValueError, match="more than 100000"):
        open_image(many)


def with_palette(*palettes: bytes) -> list[tuple[bytes, bytes]]:
    """Return the chunks of a PNG with other palettes than its own."""
    header, *others = png_chunks(encoded("png", "P"))
    return [header, *((b"PLTE", palette) for palette in palettes), *(part for part in others if part[0] != b"PLTE")]


PIXELS = png_pixels(encoded("png"))
HEADER = struct.pack(">IIBBBBB", *SIZE, 8, 2, 0, 0, 0)
RAW = zlib.decompress(PIXELS)
PNG_DAMAGE: dict[str, Callable[[], bytes]] = {
    "a flipped bit": lambda: overwritten(encoded("png"), 5000, bytes((encoded("png")[5000] ^ 4,))),
    "zeros": lambda: overwritten(encoded("png"), 5000, bytes(4000)),
    "no end": lambda: encoded("png")[:-12],
    "half an end": lambda: encoded("png")[:-3],
    "no pixels": lambda: png([(b"IHDR", HEADER), (b"IEND", b"")]),
    "a cut zlib stream": lambda: png_of(HEADER, PIXELS[:-2000]),
    "a zlib stream without its end": lambda: png_of(HEADER, PIXELS[:-4]),
    "a wrong sum of the zlib stream": lambda: png_of(HEADER, PIXELS[:-1] + bytes((PIXELS[-1] ^ 1,))),
    "garbage with the right checksum": lambda: png_of(HEADER, overwritten(PIXELS, 5000, Random(1).randbytes(500))),
    "a row too few": lambda: png_of(HEADER, zlib.compress(RAW[: -len(RAW) // SIZE[1]])),
    "half of its rows": lambda: png_of(HEADER, zlib.compress(RAW[: len(RAW) // 2])),
    "an unknown filter": lambda: png_of(HEADER, zlib.compress(b"\x09" + RAW[1:])),
    "two pieces of pixels with a text between": lambda: png(
        [
            (b"IHDR", HEADER),
            (b"IDAT", PIXELS[:5000]),
            (b"tEXt", b"a\0b"),
            (b"IDAT", PIXELS[5000:]),
            (b"IEND", b""),
        ]
    ),
    "two pieces in the wrong order": lambda: png(
        [(b"IHDR", HEADER), (b"IDAT", PIXELS[5000:]), (b"IDAT", PIXELS[:5000]), (b"IEND", b"")]
    ),
    "no palette": lambda: png(with_palette()),
    "an empty palette": lambda: png(with_palette(b"")),
    "a palette that ends within a colour": lambda: png(with_palette(bytes(100))),
    "a palette behind the pixels": lambda: png([*with_palette()[:-1], (b"PLTE", bytes(768)), (b"IEND", b"")]),
    "an unknown compression": lambda: png_of(HEADER[:10] + b"\1\0\0", PIXELS),
    "an unknown kind of filters": lambda: png_of(HEADER[:10] + b"\0\1\0", PIXELS),
    "an unknown kind of interlacing": lambda: png_of(HEADER[:10] + b"\0\0\2", png_pixels(interlaced())),
    "an unknown critical chunk": lambda: png_with((b"CgBI", b"\0\0\0\0")),
    "a half interlaced file": lambda: png_of(
        HEADER[:9] + b"\0\0\0\1", zlib.compress(zlib.decompress(png_pixels(interlaced()))[: SIZE[0] * SIZE[1] // 2])
    ),
    "a page": lambda: b"<!DOCTYPE html><html><body>Sign in</body></html>",
    "nothing": lambda: b"",
}


@pytest.mark.parametrize("name", PNG_DAMAGE)
def test_a_damaged_png_is_refused(name: str) -> None:
    refused(PNG_DAMAGE[name](), "png")


def test_an_incomplete_webp_is_refused() -> None:
    content = encoded("webp")
    for cut in (content[:-1], content[: len(content) // 2], content[:20], content[:12]):
        refused(cut, "webp")


@pytest.mark.parametrize("damage", OVERWRITTEN)
@pytest.mark.parametrize("kind", ["middling", "fine", "lossless"])
def test_a_webp_that_is_damaged_inside_is_refused(kind: str, damage: str) -> None:
    content = encoded("webp", "RGB", kind)
    # It ends in zeros: the plain area.
    for part in (1, 2, 3):
        refused(OVERWRITTEN[damage](content, len(content) * part // 5), "webp")


@pytest.mark.parametrize("damage", OVERWRITTEN)
def test_a_webp_with_damaged_transparency_is_refused(damage: str) -> None:
    content = encoded("webp", "RGBA", "middling")
    start = content.index(b"ALPH")
    length = int.from_bytes(content[start + 4 : start + 8], "little")
    assert length > 10_000
    for part in (1, 2, 3):
        refused(OVERWRITTEN[damage](content, start + length * part // 5), "webp")


def test_a_webp_with_a_damaged_first_frame_is_refused() -> None:
    content = animation("webp")
    refused(overwritten(content, content.index(b"ANMF") + 20_000, bytes(4000)), "webp")


@pytest.mark.parametrize(
    ("output_format", "content"),
    [
        ("png", lambda: png_of(struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0), zlib.compress(b"\0" * 10**7))),
        (
            "webp",
            lambda: (
                b"RIFF" + struct.pack("<I", 22) + b"WEBPVP8X" + struct.pack("<I", 10) + b"\0" * 4 + b"\xfe\x3f\0" * 2
            ),
        ),
        (
            "jpeg",
            lambda: encoded("jpeg").replace(
                struct.pack(">HH", SIZE[1], SIZE[0]), struct.pack(">HH", 65_000, 65_000), 1
            ),
        ),
    ],
)
def test_an_image_of_very_many_pixels_is_not_decoded(output_format: str, content: Callable[[], bytes]) -> None:
    with pytest.raises(QwenImageImageError):
        verify(content(), output_format)


def test_a_png_that_unpacks_to_far_more_than_its_pixels_is_not_unpacked() -> None:
    # One row too many is accepted; gigabytes are not read.
    packer = zlib.compressobj(9)
    bomb = b"".join(packer.compress(bytes(1 << 20)) for _ in range(300)) + packer.flush()
    verify(png_of(HEADER, bomb), "png")
