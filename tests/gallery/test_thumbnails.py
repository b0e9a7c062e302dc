"""Small pictures are made once and kept within a bound."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

from airflow_provider_qwenimage.plugin.image_records import ImageRecord, Status, TaskInstance
from airflow_provider_qwenimage.plugin.storage_access import RefusedError
from airflow_provider_qwenimage.plugin.stored_images import read_image
from airflow_provider_qwenimage.plugin.thumbnails import ThumbnailCache, make_thumbnail

TASK = TaskInstance(
    dag_id="foxes",
    run_id="r",
    task_id="draw",
    map_index=-1,
    state="success",
    operator=None,
    try_number=1,
    changed_at=None,
)


def picture(kind: str = "JPEG", mode: str = "RGB", pixels: tuple[int, int] = (1024, 1536)) -> bytes:
    made = io.BytesIO()
    with Image.effect_noise(pixels, 80) as noise:
        noise.convert(mode).save(made, kind)
    return made.getvalue()


@pytest.mark.parametrize(
    ("kind", "mode"), [("JPEG", "RGB"), ("JPEG", "L"), ("PNG", "RGBA"), ("PNG", "P"), ("WEBP", "RGB")]
)
@pytest.mark.parametrize("pixels", [(1024, 1536), (1536, 1024), (1024, 1024), (64, 64)])
def test_a_thumbnail_keeps_the_aspect_ratio_of_the_image(kind: str, mode: str, pixels: tuple[int, int]) -> None:
    with Image.open(io.BytesIO(make_thumbnail(picture(kind, mode, pixels)))) as small:
        assert small.format == "WEBP"
        assert small.width <= 480
        assert small.height <= 360
        assert small.width / small.height == pytest.approx(pixels[0] / pixels[1], rel=0.02)
        assert small.size == pixels or 360 in small.size or 480 in small.size


def with_long_text() -> bytes:
    texts = PngImagePlugin.PngInfo()
    texts.add_text("workflow", "A fox in the snow. " * 200_000, zip=True)
    made = io.BytesIO()
    with Image.effect_noise((640, 480), 80) as noise:
        noise.save(made, "PNG", pnginfo=texts)
    return made.getvalue()


def with_picture_index() -> bytes:
    made = io.BytesIO()
    with Image.new("RGB", (640, 480), "red") as first, Image.new("RGB", (160, 120)) as second:
        first.save(made, "MPO", save_all=True, append_images=[second])
    return made.getvalue()


@pytest.mark.parametrize(
    ("content", "media_type"),
    [(with_long_text(), "image/png"), (with_picture_index(), "image/jpeg")],
    ids=["png", "jpeg"],
)
def test_metadata_of_an_image_does_not_prevent_its_thumbnail(content: bytes, media_type: str, tmp_path: Path) -> None:
    with Image.open(io.BytesIO(make_thumbnail(content))) as small:
        assert small.size == (480, 360)
    file = tmp_path / f"a.{media_type.removeprefix('image/').replace('jpeg', 'jpg')}"
    file.write_bytes(content)
    sidecar = {"size_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    record = ImageRecord(task=TASK, status=Status.DONE, state="success", path=file.as_uri())
    assert read_image(record, sidecar).media_type == media_type


def test_a_thumbnail_is_made_once_for_all_processes(tmp_path: Path) -> None:
    reads = []

    def read() -> bytes:
        reads.append(1)
        return picture()

    first = ThumbnailCache(tmp_path / "small", 2**28).get("/a.jpg", "1", read)
    assert ThumbnailCache(tmp_path / "small", 2**28).get("/a.jpg", "1", read) == first
    assert len(reads) == 1
    ThumbnailCache(tmp_path / "small", 2**28).get("/a.jpg", "2", read)
    ThumbnailCache(tmp_path / "small", 2**28).get("/b.jpg", "1", read)
    assert len(reads) == 3


def test_the_least_recently_used_thumbnails_are_deleted(tmp_path: Path) -> None:
    content = picture(pixels=(256, 256))
    size = len(make_thumbnail(content))
    cache = ThumbnailCache(tmp_path, most_bytes=20 * size)
    for number in range(100):
        cache.get(str(number), "", lambda: content)
        # Asked for all the time.
        cache.get("0", "", lambda: content)
    kept = list(tmp_path.iterdir())
    assert sum(file.stat().st_size for file in kept) <= 22 * size
    assert len(kept) > 10

    def make_again() -> bytes:
        raise AssertionError

    cache.get("0", "", make_again)
    cache.get("99", "", make_again)
    with pytest.raises(AssertionError):
        cache.get("3", "", make_again)


def test_thumbnails_are_shown_without_a_writable_disk(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert ThumbnailCache(tmp_path / "file", 2**28).get("/a.jpg", "1", picture)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(kind: str) -> None:
    made = io.BytesIO()
    with Image.new("L" if kind == "PNG" else "RGB", (4200, 4200)) as large:
        large.save(made, kind)
    with pytest.raises(RefusedError, match="16,777,216 pixels"):
        make_thumbnail(made.getvalue())


@pytest.mark.parametrize("content", [b"", b"<svg/>", picture()[:5000], picture("PNG", pixels=(64, 64))[:200]])
def test_an_image_that_cannot_be_decoded_is_refused(content: bytes) -> None:
    with pytest.raises(RefusedError, match="cannot be decoded"):
        make_thumbnail(content)
