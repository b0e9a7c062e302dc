"""A paid image of another format or size than was requested is kept beside the stored ones."""

from __future__ import annotations

import hashlib
import json
import pickle
import struct
import zlib
from pathlib import Path

import pytest

from airflow_provider_qwenimage.exceptions import QwenImageImageError
from airflow_provider_qwenimage.rules.image_identity import ImageIdentity
from airflow_provider_qwenimage.storage.images import StoredImages
from tests.test_files_in_the_way import REQUEST, Folder, picture, snapshot

MADE_BY = {"dag_id": "foxes", "run_id": "manual__1", "task_id": "draw", "map_index": -1, "max_tries": 0}


@pytest.fixture(params=[None, "my fox"], ids=["named by the request", "named by the user"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    """An empty folder."""
    return Folder(tmp_path, ImageIdentity(REQUEST, name=request.param))


@pytest.mark.parametrize(
    ("content", "suffix", "difference"),
    [
        (picture(output_format="jpeg"), "jpg", "The image is jpeg, but png was requested."),
        (picture(output_format="webp"), "webp", "The image is webp, but png was requested."),
        (picture(size=(1024, 1024)), "png", "The image has 1024*1024 pixels, but 768*1024 was requested."),
    ],
    ids=["jpeg", "webp", "larger"],
)
def test_the_image_is_kept_with_the_reason(folder: Folder, content: bytes, suffix: str, difference: str) -> None:
    error = folder.put(content, made_by=MADE_BY)
    kept = folder.directory / f"{folder.identity.stem}.refused.{suffix}"
    assert isinstance(error, QwenImageImageError)
    assert error.permanent
    assert str(error).startswith(f"{difference} It is kept as {kept}; ")
    assert kept.read_bytes() == content
    sidecar = json.loads((folder.directory / f"{folder.identity.stem}.refused.json").read_text())
    assert sidecar["image"] == kept.name
    assert sidecar["refused"] == difference
    assert sidecar["requested"] == {"width": 768, "height": 1024, "output_format": "png"}
    assert sidecar["output_format"] == {"jpg": "jpeg"}.get(suffix, suffix)
    assert sidecar["sha256"] == hashlib.sha256(content).hexdigest()
    assert (sidecar["task_id"], sidecar["consumed_credits"], sidecar["made_by"]) == ("n1a2b3", 5.0, MADE_BY)
    assert sidecar["request"]["prompt"] == "A red fox"
    assert sidecar["image_url"] == "https://cdn.example/0.png"
    assert sidecar["stored_at"]
    # It is not the image that was asked for.
    assert folder.find() is None
    assert isinstance(folder.put(picture()), str)
    assert isinstance(folder.find(), StoredImages)
    assert kept.read_bytes() == content


def test_the_same_bytes_are_kept_once_and_others_beside_them(folder: Folder) -> None:
    contents = [picture(1, (512, 512)), picture(2, (512, 512)), picture(1, output_format="jpeg")]
    for content in [*contents, *contents]:
        assert isinstance(folder.put(content), QwenImageImageError)
    stem = folder.identity.stem
    images = [f"{stem}.refused.png", f"{stem}.refused-2.png", f"{stem}.refused-3.jpg"]
    assert [(folder.directory / name).read_bytes() for name in images] == contents
    assert len(folder.names) == 6
    for name in images:
        sidecar = json.loads((folder.directory / name).with_suffix(".json").read_text())
        assert sidecar["image"] == name


def test_a_try_that_ended_before_the_sidecar_is_completed(folder: Folder) -> None:
    content = picture(size=(512, 512))
    folder.put(content)
    before = folder.names
    (folder.directory / f"{folder.identity.stem}.refused.json").unlink()
    folder.put(content)
    assert folder.names == before


def test_each_image_of_an_image_task_is_kept_under_its_number(folder: Folder) -> None:
    for number in (1, 2):
        folder.put(picture(number, (512, 512)), number=number, snapshot=snapshot(images=2))
    stem = folder.identity.stem
    assert folder.names == sorted(
        f"{stem}{number}.refused.{suffix}" for number in ("", "-2") for suffix in ("png", "json")
    )


def test_the_error_holds_neither_the_bytes_nor_a_frame_that_does(folder: Folder) -> None:
    error = folder.put(picture(size=(1024, 1024)))
    assert isinstance(error, QwenImageImageError)
    assert error.__traceback__ is None
    assert error.__context__ is None
    assert len(pickle.dumps(error)) < 2000


def a_bomb() -> bytes:
    """A PNG with a valid beginning and end that says it has 100 million pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 10_000, 10_000, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(bytes(10_000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "content",
    [b"<html>Sign in</html>", b"", picture(size=(512, 512))[:-20], picture(output_format="jpeg")[:3000], a_bomb()],
    ids=["page", "nothing", "truncated", "truncated jpeg", "bomb"],
)
def test_what_is_not_a_whole_image_is_not_kept(folder: Folder, content: bytes) -> None:
    with pytest.raises(QwenImageImageError):
        folder.put(content)
    assert folder.names == []
