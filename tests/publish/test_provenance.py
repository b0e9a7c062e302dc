"""The mark in an image's file: what it says, what stays as it was, and which files are left alone."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import subprocess
import zlib
from collections.abc import Mapping
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import pendulum
import PIL
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from airflow_provider_qwenimage import __version__
from airflow_provider_qwenimage.contract import GenerateRequest, TaskSnapshot, TaskStatus
from airflow_provider_qwenimage.publish.provenance import TRAINED_ALGORITHMIC_MEDIA, ProvenanceMark
from airflow_provider_qwenimage.publish.xmp_in_files import find_xmp
from airflow_provider_qwenimage.publish.xmp_packets import Property, add_properties, packet_of, value_in
from airflow_provider_qwenimage.rules.image_identity import ImageIdentity
from airflow_provider_qwenimage.rules.verification import verify_image
from airflow_provider_qwenimage.rules.webp_file import file_of
from airflow_provider_qwenimage.storage.images import MarkedImage, Obstacle, StoredFile, find_images, verify_and_store
from airflow_provider_qwenimage.storage.paths import open_output_path

SIZE = (768, 1024)
MADE_BY = {"dag_id": "nightly", "run_id": "scheduled__2026-01-02T03:04:05+00:00", "task_id": "draw", "map_index": -1}
FORMATS = ("jpeg", "png", "webp")
# Every script that a prompt may have, what XML gives a meaning to, and a prompt of the greatest length.
PROMPTS = {
    "latin": "A red fox, 35mm",
    "scripts": "雪中的狐狸 · キツネ · 여우 · Лиса · αλεπού · ثعلب · שועל · โลมา · 🦊",
    "markup": """<x:xmpmeta> & "quotes' ]]> <?xpacket end="w"?> </rdf:RDF> \\ line\nbreak\ttab""",
    "longest": "狐&" * 1000,
}
# What other programs write: properties as elements and as attributes, and padding at the end.
OTHERS = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n'
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><r:RDF xmlns:r="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<r:Description r:about="uuid:1" xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmp:Rating="4" '
    'xmp:CreatorTool="Another &amp; tool"/>'
    '<r:Description r:about="uuid:1" xmlns:dc="http://purl.org/dc/elements/1.1/">'
    "<dc:creator><r:Seq><r:li>Ådne</r:li></r:Seq></dc:creator></r:Description>"
    "<!-- a comment --></r:RDF></x:xmpmeta>" + "\n" + " " * 2000 + '\n<?xpacket end="w"?>'
).encode()
_SOURCE_TYPE = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType"
_TOOL = "{http://ns.adobe.com/xap/1.0/}CreatorTool"
_RATING = "{http://ns.adobe.com/xap/1.0/}Rating"
_IDENTIFIER = "{http://purl.org/dc/elements/1.1/}identifier"
_PROMPT = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}AIPromptInformation"
needs_exiftool = pytest.mark.skipif(not shutil.which("exiftool"), reason="exiftool is not installed")


def exif_data() -> bytes:
    exif = Image.Exif()
    exif[0x010E] = "a description"
    return exif.tobytes()


@cache
def canvas(mode: str = "RGB") -> Image.Image:
    """Return a picture with some detail."""
    gradient = Image.radial_gradient("L").resize(SIZE)
    picture = gradient.convert("RGB").convert(mode)
    if mode == "RGBA":
        picture.putalpha(gradient)
    return picture


def image_file(output_format: str, mode: str = "RGB", **options: Any) -> bytes:
    # Pillow writes it into a JPEG from version 11 on.
    packet = options.pop("xmp", None) if output_format == "jpeg" else None
    stream = BytesIO()
    canvas(mode).save(stream, output_format.upper(), **options)
    content = stream.getvalue()
    if packet is None:
        return content
    data = b"http://ns.adobe.com/xap/1.0/\0" + packet
    first_segment = 2 + 2 + int.from_bytes(content[4:6], "big")
    segment = b"\xff\xe1" + (2 + len(data)).to_bytes(2, "big") + data
    return content[:first_segment] + segment + content[first_segment:]


def request(output_format: str, prompt: str = "A red fox", seed: int = 7) -> GenerateRequest:
    return GenerateRequest(prompt=prompt, size="768*1024", output_format=output_format, seed=seed)


def snapshot(**fields: Any) -> TaskSnapshot:
    created = {"created_at": pendulum.datetime(2026, 1, 2, 3, 4, 5)} | fields
    return TaskSnapshot(task_id="n1a2b3", status=TaskStatus.SUCCESS, image_urls=("http://127.0.0.1:9/x",), **created)


def mark(content: bytes, output_format: str, provenance: str = "mark", **fields: Any) -> MarkedImage:
    identity = ImageIdentity(request(output_format, **fields))
    return ProvenanceMark(provenance)(content, output_format, snapshot(), identity, MADE_BY)


def marked(content: bytes, output_format: str, provenance: str = "mark", **fields: Any) -> bytes:
    found = mark(content, output_format, provenance, **fields)
    assert found.description == {"provenance": provenance}
    return found.content


def packet_in(content: bytes, output_format: str) -> bytes:
    packet = find_xmp(content, output_format).packet
    assert packet is not None
    return packet


def exiftool(content: bytes, path: Path) -> dict[str, Any]:
    """Return the XMP properties that exiftool reads, after it has validated the file."""
    path.write_bytes(content)
    command = ["exiftool", "-json", "-G1", "-struct", "-charset", "utf8", "-validate", "-warning", "-XMP:all", path]
    (found,) = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    assert found.pop("ExifTool:Validate") in ("OK", "0 0 0")
    assert "ExifTool:Warning" not in found
    found.pop("SourceFile")
    return dict(found)


def pixels(content: bytes) -> bytes:
    with Image.open(BytesIO(content)) as image:
        return image.tobytes()


@needs_exiftool
@pytest.mark.parametrize("output_format", FORMATS)
def test_exiftool_reads_who_made_the_image_when_and_in_which_image_task(output_format: str, tmp_path: Path) -> None:
    found = exiftool(marked(image_file(output_format), output_format), tmp_path / "image")
    # exiftool before 12.97 has no names for the newer properties of the IPTC, and returns them as it finds them.
    assert found == {
        "XMP-iptcExt:DigitalSourceType": TRAINED_ALGORITHMIC_MEDIA,
        "XMP-iptcExt:AISystemUsed": "Qwen-Image-2512",
        "XMP-xmp:CreatorTool": f"airflow-provider-qwenimage {__version__}",
        "XMP-xmp:CreateDate": "2026:01:02 03:04:05Z",
        "XMP-dc:Identifier": "n1a2b3",
    }


@needs_exiftool
@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("output_format", FORMATS)
def test_exiftool_reads_the_whole_prompt_in_any_alphabet_and_where_the_image_came_from(
    output_format: str, prompt: str, tmp_path: Path
) -> None:
    content = marked(image_file(output_format), output_format, "full", prompt=PROMPTS[prompt])
    found = exiftool(content, tmp_path / "image")
    # exiftool replaces line breaks and tabs in what it prints, not in JSON.
    assert found["XMP-dc:Description"] == found["XMP-iptcExt:AIPromptInformation"] == PROMPTS[prompt]
    assert {name: found[f"XMP-qwenimage:{name}"] for name in ("Seed", "DagId", "RunId", "TaskId")} == {
        "Seed": 7,
        "DagId": "nightly",
        "RunId": MADE_BY["run_id"],
        "TaskId": "draw",
    }


@pytest.mark.skipif(int(PIL.__version__.split(".")[0]) < 11, reason="Pillow reads XMP of any format from version 11 on")
@pytest.mark.parametrize("output_format", FORMATS)
def test_pillow_reads_it_as_well(output_format: str) -> None:
    with Image.open(BytesIO(marked(image_file(output_format), output_format))) as image:
        assert TRAINED_ALGORITHMIC_MEDIA.encode() in image.info["xmp"]


@pytest.mark.parametrize("exif", [b"", exif_data()])
def test_a_webp_says_in_its_header_that_it_has_metadata(exif: bytes) -> None:
    content = image_file("webp", exif=exif)
    found = marked(content, "webp")
    assert (content[12:16], found[12:16]) == (b"VP8X" if exif else b"VP8 ", b"VP8X")
    # The flags of Exif and of XMP.
    assert found[20] == (0x0C if exif else 0x04)


@pytest.mark.parametrize("provenance", ["mark", "full"])
@pytest.mark.parametrize(
    ("output_format", "mode", "options"),
    [
        ("jpeg", "RGB", {"quality": 95}),
        ("jpeg", "L", {"progressive": True, "exif": exif_data(), "comment": "a comment"}),
        ("jpeg", "RGB", {"icc_profile": b"profile" * 20_000}),
        ("png", "RGB", {}),
        ("png", "RGBA", {"icc_profile": b"profile"}),
        ("png", "P", {"transparency": 3}),
        ("webp", "RGB", {}),
        ("webp", "RGBA", {}),
        ("webp", "RGB", {"lossless": True}),
        ("webp", "RGBA", {"lossless": True}),
        ("webp", "RGBA", {"lossless": True, "exif": exif_data(), "icc_profile": b"profile"}),
    ],
)
def test_pixels_and_all_that_is_there_stay_bit_for_bit(
    output_format: str, mode: str, options: Mapping[str, Any], provenance: str
) -> None:
    content = image_file(output_format, mode, **options) + b"bytes after the end"
    found = marked(content, output_format, provenance)
    verify_image(found, request(output_format))
    assert pixels(found) == pixels(content)
    with Image.open(BytesIO(found)) as after, Image.open(BytesIO(content)) as before:
        kept = {name: value for name, value in after.info.items() if name not in ("xmp", "XML:com.adobe.xmp")}
        assert (after.mode, kept) == (before.mode, before.info)
    assert found.endswith(b"bytes after the end")
    # Nothing is lost: without what was inserted, it is the file as it came.
    if output_format != "webp":
        place = find_xmp(found, output_format)
        assert found[: place.start] + found[place.end :] == content


def test_in_a_jpeg_the_mark_follows_the_headers_that_must_be_first() -> None:
    exif = exif_data()
    found = marked(image_file("jpeg", exif=exif, comment="a comment"), "jpeg")
    assert (
        found.index(b"JFIF\0") < found.index(exif) < found.index(b"http://ns.adobe.com/xap/") < found.index(b"a comm")
    )


def test_the_same_image_gets_the_same_bytes_whenever_it_is_stored() -> None:
    content = image_file("png")
    assert marked(content, "png", "full") == marked(content, "png", "full")
    # A mark that is there already is not written twice.
    once = marked(content, "png", "full")
    assert marked(once, "png", "full") == once


def with_packet(output_format: str, packet: bytes) -> bytes:
    if output_format != "png":
        return image_file(output_format, xmp=packet)
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", packet.decode())
    return image_file("png", pnginfo=text)


def with_compressed_packet(packet: bytes) -> bytes:
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", packet.decode(), zip=True)
    return image_file("png", pnginfo=text)


@pytest.mark.parametrize("output_format", [*FORMATS, "compressed png"])
def test_metadata_of_another_program_is_kept_and_completed(output_format: str, tmp_path: Path) -> None:
    content = with_compressed_packet(OTHERS) if " " in output_format else with_packet(output_format, OTHERS)
    output_format = output_format.rpartition(" ")[2]
    found = marked(content, output_format, "full")
    verify_image(found, request(output_format))
    packet = packet_in(found, output_format)
    assert packet.startswith(OTHERS[: OTHERS.index(b"<!-- a comment -->")])
    assert value_in(packet, _TOOL) == "Another & tool"
    assert value_in(packet, _RATING) == "4"
    assert value_in(packet, _SOURCE_TYPE) == TRAINED_ALGORITHMIC_MEDIA
    assert value_in(packet, _PROMPT) == "A red fox"
    # Its padding would leave no room in a JPEG.
    assert len(packet) < len(OTHERS)
    # The packet is one, not two.
    assert found.count(b"<x:xmpmeta") == 1
    if shutil.which("exiftool"):
        properties = exiftool(found, tmp_path / "image")
        assert properties["XMP-dc:Creator"] == ["Ådne"]
        assert properties["XMP-dc:Identifier"] == "n1a2b3"


def signed(output_format: str) -> bytes:
    """Return a file that has the box or chunk of a C2PA manifest."""
    content = image_file(output_format)
    if output_format == "jpeg":
        box = b"JP\0\1\0\0\0\1\0\0\0\x20jumb\0\0\0\x18jumdc2pa"
        return content[:2] + b"\xff\xeb" + (len(box) + 2).to_bytes(2, "big") + box + content[2:]
    if output_format == "png":
        body = b"caBX" + b"manifest"
        return content[:33] + (8).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big") + content[33:]
    return file_of((b"VP8X", b"\0" * 4 + b"\xff\x02\0\xff\x03\0"), (b"VP8 ", content[20:]), (b"C2PA", b"manifest"))


REMOTELY_SIGNED = packet_of([Property("http://purl.org/dc/terms/", "dcterms", "provenance", "http://127.0.0.1:9/m")])


@pytest.mark.parametrize("output_format", [*FORMATS, "remote"])
def test_a_signed_file_is_not_changed(output_format: str, caplog: pytest.LogCaptureFixture) -> None:
    content = with_packet("webp", REMOTELY_SIGNED) if output_format == "remote" else signed(output_format)
    found = mark(content, "webp" if output_format == "remote" else output_format)
    assert found.content == content
    assert found.description["provenance"] is None
    assert "C2PA manifest" in found.description["not_marked_because"]
    assert "image task n1a2b3 is stored as it came" in caplog.text


BROKEN = {
    "no XML": b"<x:xmpmeta",
    "no RDF": b"<x:xmpmeta xmlns:x='adobe:ns:meta/'/>",
    "entities": b"<!DOCTYPE x [<!ENTITY e 'eeeeeeeeee'>]>" + OTHERS.partition(b"\n")[2],
    "another encoding": b'<?xml version="1.0" encoding="latin-1"?>'
    + OTHERS.partition(b"\n")[2].decode().encode("latin-1"),
    "two bytes": OTHERS.decode().encode("utf-16"),
    "an end in a comment": OTHERS.replace(b"</x:xmpmeta>", b"<!-- </r:RDF> --></x:xmpmeta>"),
    "another source": packet_of([Property(_SOURCE_TYPE[1:].partition("}")[0], "i", "DigitalSourceType", "capture")]),
    "too long": packet_of([Property("urn:x/", "x", "y", "z" * 65_000)]),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_an_image_with_metadata_that_cannot_be_completed_is_stored_as_it_came(
    broken: str, caplog: pytest.LogCaptureFixture
) -> None:
    content = image_file("jpeg", xmp=BROKEN[broken])
    found = mark(content, "jpeg")
    assert found.content == content
    assert found.description["provenance"] is None
    assert found.description["not_marked_because"] in caplog.text
    if broken == "too long":
        assert "a JPEG has room for 65504 bytes of XMP" in caplog.text


@pytest.mark.parametrize("size", [100, 10_000_000])
def test_a_compressed_packet_that_expands_without_end_is_not_read(size: int) -> None:
    packet = packet_of([Property("urn:x/", "x", "y", "z" * size)])
    content = with_compressed_packet(packet)
    found = mark(content, "png")
    assert (found.content == content) == (size > 100)
    assert ("more than 1048576 bytes" in str(found.description)) == (size > 100)


def test_a_batch_names_each_reason_once_and_few_of_them(caplog: pytest.LogCaptureFixture) -> None:
    content = image_file("jpeg", xmp=b"<a")
    marking = ProvenanceMark("mark")
    with caplog.at_level(logging.WARNING):
        for number in range(20):
            broken = image_file("jpeg", xmp=b"<a>" + b"\n" * number) if number > 9 else content
            marking(broken, "jpeg", snapshot(), ImageIdentity(request("jpeg")), MADE_BY)
    assert 1 < len(caplog.records) <= 5


def test_without_a_time_of_the_api_the_mark_has_none() -> None:
    identity = ImageIdentity(request("png", seed=-1))
    found = ProvenanceMark("full")(image_file("png"), "png", snapshot(created_at=None), identity, {})
    packet = packet_in(found.content, "png")
    assert value_in(packet, _IDENTIFIER) == "n1a2b3"
    # Neither has it the seed that stands for a random one, nor a DAG that is not known.
    assert b"CreateDate" not in packet
    assert b"<qwenimage:" not in packet


@pytest.mark.parametrize(
    ("reported", "written"),
    [
        ("2026-01-02T03:04:05.6+02:00", "2026-01-02T01:04:05Z"),
        ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00Z"),
        ("0001-01-01T00:00:00+14:00", "0001-01-01T00:00:00+14:00"),
        ("9999-12-31T23:59:59-14:00", "9999-12-31T23:59:59-14:00"),
    ],
)
def test_any_time_that_the_api_reports_is_written(reported: str, written: str) -> None:
    snapshot = TaskSnapshot.from_data({"task_id": "n1", "status": "PENDING", "created_at": reported})
    identity = ImageIdentity(request("png"))
    found = ProvenanceMark("mark")(image_file("png"), "png", snapshot, identity, MADE_BY)
    assert value_in(packet_in(found.content, "png"), "{http://ns.adobe.com/xap/1.0/}CreateDate") == written


NAMES = [Property(f"urn:{number}/", f"p{number}", "name", "x") for number in range(3)]


@given(st.lists(st.text(), min_size=3, max_size=3), st.integers(0, 3))
@settings(deadline=None)
def test_any_text_is_read_back(texts: list[str], there: int) -> None:
    properties = [Property(one.namespace, one.prefix, one.name, text) for one, text in zip(NAMES, texts, strict=True)]
    packet = add_properties(packet_of(properties[:there]), properties)
    for one in properties:
        allowed = "".join(c if c in "\t\n\r" or (c >= " " and c not in "\ufffe\uffff") else "\ufffd" for c in one.value)
        assert value_in(packet, one.key) == allowed.strip()


@given(st.integers(0, len(OTHERS)), st.integers(0, 40), st.binary(max_size=8))
@settings(deadline=None)
def test_a_damaged_packet_is_either_completed_or_left_alone(at: int, lost: int, instead: bytes) -> None:
    packet = OTHERS[:at] + instead + OTHERS[at + lost :]
    content = file_of((b"VP8X", b"\4\0\0\0\xff\x02\0\xff\x03\0"), (b"VP8 ", b"pixels"), (b"XMP ", packet))
    found = mark(content, "webp")
    if found.description["provenance"] is None:
        assert found.content == content
    else:
        assert value_in(packet_in(found.content, "webp"), _SOURCE_TYPE) == TRAINED_ALGORITHMIC_MEDIA


@pytest.mark.parametrize("output_format", FORMATS)
def test_storing_keeps_both_hashes_and_finds_the_marked_image(output_format: str, tmp_path: Path) -> None:
    identity, folder = ImageIdentity(request(output_format)), open_output_path(str(tmp_path))
    content = image_file(output_format)
    stored = verify_and_store(
        content, snapshot(), identity, folder, number=1, made_by=MADE_BY, mark=ProvenanceMark("mark")
    )
    assert isinstance(stored, StoredFile)
    (file,) = (path for path in tmp_path.iterdir() if path.suffix != ".json")
    kept = file.read_bytes()
    assert kept == marked(content, output_format)
    sidecar = json.loads(file.with_suffix(".json").read_text())
    assert sidecar["sha256"] == stored.sha256 == hashlib.sha256(kept).hexdigest()
    assert sidecar["size_bytes"] == len(kept)
    assert sidecar["downloaded_sha256"] == hashlib.sha256(content).hexdigest()
    assert sidecar["provenance"] == "mark"
    found = find_images(identity, folder)
    assert found is not None
    assert not isinstance(found, Obstacle)
    assert (found.paths, found.sha256) == ((stored.path,), stored.sha256)


def test_without_provenance_the_bytes_are_stored_as_they_came(tmp_path: Path) -> None:
    identity, folder = ImageIdentity(request("png")), open_output_path(str(tmp_path))
    content = image_file("png")
    verify_and_store(content, snapshot(), identity, folder, number=1, made_by=MADE_BY)
    (file,) = tmp_path.glob("*.png")
    assert file.read_bytes() == content
    # The sidecar is that of an earlier version, which is found as ever.
    assert not {"provenance", "downloaded_sha256"} & json.loads(file.with_suffix(".json").read_text()).keys()
    assert not isinstance(find_images(identity, folder), Obstacle | None)


@pytest.mark.parametrize("earlier", [None, "mark"])
def test_a_try_that_ended_between_image_and_sidecar_is_completed(earlier: str | None, tmp_path: Path) -> None:
    identity, folder = ImageIdentity(request("png")), open_output_path(str(tmp_path))
    content = image_file("png")
    left = tmp_path / f"{identity.stem}.png"
    left.write_bytes(content if earlier is None else marked(content, "png"))
    stored = verify_and_store(
        content, snapshot(), identity, folder, number=1, made_by=MADE_BY, mark=ProvenanceMark("mark")
    )
    assert isinstance(stored, StoredFile)
    assert stored.path.endswith(left.name)
    assert left.read_bytes() == marked(content, "png")
    assert len(list(tmp_path.iterdir())) == 2
