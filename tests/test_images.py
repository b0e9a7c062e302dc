"""Images are stored whole and verified, or not at all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import pytest
from airflow.providers.common.compat.sdk import ObjectStoragePath
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from airflow_provider_qwenimage.client import downloads
from airflow_provider_qwenimage.contract import GenerateRequest, TaskSnapshot, TaskStatus
from airflow_provider_qwenimage.exceptions import QwenImageImageError
from airflow_provider_qwenimage.rules.image_identity import ImageIdentity
from airflow_provider_qwenimage.rules.retries import RequestRetries
from airflow_provider_qwenimage.rules.verification import verify_image
from airflow_provider_qwenimage.sandbox import Sandbox
from airflow_provider_qwenimage.storage import images
from airflow_provider_qwenimage.storage.paths import open_output_path
from tests.stores import store_at

if TYPE_CHECKING:
    from collections.abc import Callable

REQUEST = GenerateRequest(prompt="A red fox, in the snow!", size="768*1024", seed=7, output_format="png")


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(port=0, seconds_per_image=0) as running:
        yield running


@pytest.fixture
def finished(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., TaskSnapshot]]:
    """Submit a request to the sandbox and return the finished snapshot."""
    from airflow_provider_qwenimage.hooks import QwenImageHook

    sandbox.reset()
    monkeypatch.setenv("AIRFLOW_CONN_QWENIMAGE_DEFAULT", sandbox.connection_json)
    monkeypatch.setattr(downloads, "_RETRIES", RequestRetries(limit=2, delay_seconds=0.0))
    with QwenImageHook() as hook:

        def submit(request: GenerateRequest = REQUEST) -> TaskSnapshot:
            return hook.wait_for_completion(hook.submit(request), poll_interval=0.05)

        yield submit


def folder_of(path: Path) -> ObjectStoragePath:
    return open_output_path(f"file://{path}")


def files(path: Path) -> list[str]:
    return sorted(file.name for file in path.rglob("*") if file.is_file())


def encoded(output_format: str, size: tuple[int, int] = (768, 1024)) -> bytes:
    stream = BytesIO()
    Image.effect_noise(size, 60).convert("RGB").save(stream, output_format)
    return stream.getvalue()


@pytest.mark.parametrize(("output_format", "suffix"), [("jpeg", "jpg"), ("png", "png"), ("webp", "webp")])
def test_an_image_and_its_sidecar_are_stored(
    finished: Callable[..., TaskSnapshot], tmp_path: Path, output_format: str, suffix: str
) -> None:
    request = GenerateRequest(
        prompt="A red fox, in the snow!",
        size="1536*1024",
        seed=7,
        output_format=output_format,
        callback_url="http://127.0.0.1:9/token",
    )
    snapshot = finished(request)
    (stored,) = images.save_images(snapshot, ImageIdentity(request), folder_of(tmp_path / "new" / "folder"))
    stem = f"a-red-fox-in-the-snow-{request.fingerprint()[:16]}"
    assert stored.path == f"file://{tmp_path}/new/folder/{stem}.{suffix}"
    assert files(tmp_path) == sorted([f"{stem}.{suffix}", f"{stem}.json"])
    content = (tmp_path / "new" / "folder" / f"{stem}.{suffix}").read_bytes()
    with Image.open(BytesIO(content)) as image:
        assert (image.format, image.size) == (output_format.upper(), (1536, 1024))
    sidecar = json.loads((tmp_path / "new" / "folder" / f"{stem}.json").read_text())
    assert sidecar["sha256"] == hashlib.sha256(content).hexdigest()
    assert sidecar["size_bytes"] == len(content)
    assert (sidecar["width"], sidecar["height"], sidecar["output_format"]) == (1536, 1024, output_format)
    assert sidecar["request"] == {
        "prompt": "A red fox, in the snow!",
        "size": "1536*1024",
        "seed": 7,
        "output_format": output_format,
    }
    assert (sidecar["task_id"], sidecar["consumed_credits"]) == (snapshot.task_id, 5)
    assert sidecar["fingerprint"] == request.fingerprint()
    assert {"created_at", "stored_at", "image", "image_url"} <= set(sidecar)


@pytest.mark.parametrize(
    "behaviour", ["truncate", "truncate_with_length", "html", "garbage", "not_found", "server_error", "drop"]
)
def test_a_broken_download_is_tried_again_and_leaves_nothing_partial(
    sandbox: Sandbox, finished: Callable[..., TaskSnapshot], tmp_path: Path, behaviour: str
) -> None:
    snapshot = finished()
    sandbox.script("image", behaviour, behaviour)
    images.save_images(snapshot, ImageIdentity(REQUEST), folder_of(tmp_path))
    assert len(files(tmp_path)) == 2
    with Image.open(next(tmp_path.glob("*.png"))) as image:
        image.load()


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        ("truncate", "could not be downloaded|ended after|whole image"),
        ("truncate_with_length", "whole image|no end"),
        ("html", "do not decode"),
        ("garbage", "do not decode"),
        ("not_found", "HTTP 404"),
    ],
)
def test_a_file_that_is_not_the_requested_image_never_gets_a_final_name(
    sandbox: Sandbox, finished: Callable[..., TaskSnapshot], tmp_path: Path, behaviour: str, message: str
) -> None:
    snapshot = finished()
    sandbox.script("image", *[behaviour] * 3)
    with pytest.raises(QwenImageImageError, match=message):
        images.save_images(snapshot, ImageIdentity(REQUEST), folder_of(tmp_path))
    assert files(tmp_path) == []


def test_the_wrong_image_is_not_downloaded_again(
    sandbox: Sandbox, finished: Callable[..., TaskSnapshot], tmp_path: Path
) -> None:
    snapshot = finished()
    sandbox.script("image", "wrong_size")
    with pytest.raises(QwenImageImageError):
        images.save_images(snapshot, ImageIdentity(REQUEST), folder_of(tmp_path))
    assert [record.route for record in sandbox.requests].count("image") == 1


@pytest.mark.parametrize("behaviour", ["ok", "oversized"])
def test_a_download_over_the_limit_is_cut_off(
    sandbox: Sandbox, finished: Callable[..., TaskSnapshot], tmp_path: Path, behaviour: str
) -> None:
    snapshot = finished()
    sandbox.script("image", behaviour)
    with pytest.raises(QwenImageImageError, match="larger than allowed.*Raise max_image_bytes"):
        images.save_images(snapshot, ImageIdentity(REQUEST), folder_of(tmp_path), max_image_bytes=10_000)
    assert files(tmp_path) == []
    assert [record.route for record in sandbox.requests].count("image") == 1


def test_the_image_host_never_sees_the_key_even_through_a_redirect(
    sandbox: Sandbox, finished: Callable[..., TaskSnapshot], tmp_path: Path
) -> None:
    snapshot = finished()
    sandbox.script("image", "redirect")
    images.save_images(snapshot, ImageIdentity(REQUEST), folder_of(tmp_path))
    downloads = [record for record in sandbox.requests if record.route == "image"]
    assert len(downloads) == 2
    assert not any(record.authorized_header for record in downloads)


def test_a_netrc_file_sends_no_credentials_to_the_image_host(
    sandbox: Sandbox, finished: Callable[..., TaskSnapshot], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("default login somebody password secret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    snapshot = finished()
    images.save_images(snapshot, ImageIdentity(REQUEST), folder_of(tmp_path / "out"))
    assert not any(record.authorized_header for record in sandbox.requests if record.route == "image")


def test_every_url_of_a_task_becomes_a_file(finished: Callable[..., TaskSnapshot], tmp_path: Path) -> None:
    snapshot = finished()
    url = snapshot.image_urls[0]
    several = TaskSnapshot(task_id=snapshot.task_id, status=TaskStatus.SUCCESS, image_urls=(url, url))
    first, second = images.save_images(several, ImageIdentity(REQUEST), folder_of(tmp_path))
    assert second.path == first.path.replace(".png", "-2.png")
    assert len(files(tmp_path)) == 4


def test_a_new_image_replaces_the_old_one_of_the_same_request(
    finished: Callable[..., TaskSnapshot], tmp_path: Path
) -> None:
    folder = folder_of(tmp_path)
    (first,) = images.save_images(finished(), ImageIdentity(REQUEST), folder)
    snapshot = finished()
    (second,) = images.save_images(snapshot, ImageIdentity(REQUEST), folder)
    assert second.path == first.path
    assert len(files(tmp_path)) == 2
    found = images.find_images(ImageIdentity(REQUEST), folder)
    assert found is not None
    assert found.image_task_id == snapshot.task_id


@pytest.mark.parametrize("protocol", ["s3", "sftp"])
def test_other_storages_of_airflow_work_too(finished: Callable[..., TaskSnapshot], protocol: str) -> None:
    store, folder = store_at(protocol)
    (stored,) = images.save_images(finished(), ImageIdentity(REQUEST), folder)
    # With its connection id, so that the next task can open it.
    assert stored.path == f"{folder}/{ImageIdentity(REQUEST).stem}.png"
    assert "://store_" in stored.path
    assert {Path(name).suffix for name in store.store} == {".png", ".json"}
    found = images.find_images(ImageIdentity(REQUEST), folder)
    assert found is not None
    assert found.paths == (stored.path,)


@pytest.mark.parametrize("output_format", ["jpeg", "png", "webp"])
@settings(max_examples=60)
@given(data=st.data())
def test_a_truncated_image_is_refused_wherever_it_ends(output_format: str, data: st.DataObject) -> None:
    content = WHOLE[output_format]
    cut = data.draw(st.integers(0, len(content) - 1) | st.integers(len(content) - 16, len(content) - 1))
    with pytest.raises(QwenImageImageError):
        verify_image(content[:cut], GenerateRequest(prompt="a", size="768*1024", output_format=output_format))


WHOLE = {output_format: encoded(output_format) for output_format in ("jpeg", "png", "webp")}


@pytest.mark.parametrize("output_format", ["jpeg", "png"])
def test_an_image_with_garbage_inside_is_refused(output_format: str) -> None:
    content, half = WHOLE[output_format], len(WHOLE[output_format]) // 2
    damaged = content[:half] + Random(1).randbytes(2000) + content[half + 2000 :]
    with pytest.raises(QwenImageImageError, match="do not decode"):
        verify_image(damaged, GenerateRequest(prompt="a", size="768*1024", output_format=output_format))


def test_a_png_with_a_wrong_checksum_is_refused() -> None:
    damaged = bytearray(WHOLE["png"])
    data = damaged.index(b"IDAT")
    checksum = data + 4 + int.from_bytes(damaged[data - 4 : data], "big")
    damaged[checksum] ^= 1
    with pytest.raises(QwenImageImageError, match="do not decode"):
        verify_image(bytes(damaged), GenerateRequest(prompt="a", size="768*1024", output_format="png"))


@pytest.mark.parametrize("output_format", ["jpeg", "png", "webp"])
def test_a_whole_image_is_accepted(output_format: str) -> None:
    request = GenerateRequest(prompt="a", size="768*1024", output_format=output_format)
    facts = verify_image(WHOLE[output_format], request)
    assert (facts.width, facts.height, facts.output_format) == (768, 1024, output_format)


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("A red fox!", "a-red-fox"),
        ("../../etc/passwd", "etc-passwd"),
        ("Füchse im Schnee", "fuchse-im-schnee"),
        ("雪の中の狐", "image"),
        ("word " * 100, "word-word-word-word-word-word-word-word"),
    ],
)
def test_file_names_are_readable_and_safe(prompt: str, words: str) -> None:
    request = GenerateRequest(prompt=prompt)
    assert ImageIdentity(request).stem == f"{words}-{request.fingerprint()[:16]}"
