"""Stored images are found again if they are whole, and no image is left next to the sidecar of another one."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import random
import shutil
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import ObjectStoragePath

from airflow_provider_qwenimage.client import downloads
from airflow_provider_qwenimage.contract import GenerateRequest, TaskSnapshot
from airflow_provider_qwenimage.exceptions import QwenImageImageError
from airflow_provider_qwenimage.rules.image_identity import ImageIdentity
from airflow_provider_qwenimage.rules.retries import RequestRetries
from airflow_provider_qwenimage.sandbox import Sandbox
from airflow_provider_qwenimage.storage import image_pairs, local_files
from airflow_provider_qwenimage.storage.images import Obstacle, StoredImages, find_images, save_images
from airflow_provider_qwenimage.storage.paths import open_output_path
from tests.storing import store_each

# It has a random seed, so each submission is another image.
REQUEST = GenerateRequest(prompt="A red fox", size="768*1024")
MADE_BY = {"dag_id": "foxes", "run_id": "manual__1", "task_id": "draw", "map_index": 3, "max_tries": 2}


@pytest.fixture(scope="module")
def drawn() -> Iterator[list[TaskSnapshot]]:
    """Six image tasks of one request, and a sandbox that serves their images."""
    from airflow_provider_qwenimage.hooks import QwenImageHook

    with Sandbox(seconds_per_image=0) as sandbox, pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("AIRFLOW_CONN_QWENIMAGE_DEFAULT", sandbox.connection_json)
        monkeypatch.setattr(downloads, "_RETRIES", RequestRetries(limit=2, delay_seconds=0.0))
        monkeypatch.setattr(image_pairs, "_PUT_PAUSE_SECONDS", 0.0)
        with QwenImageHook() as hook:
            yield [hook.wait_for_completion(hook.submit(REQUEST), poll_interval=0.05) for _ in range(6)]


@dataclass
class Stored:
    """The images of one image task on this machine's disk."""

    directory: Path
    folder: ObjectStoragePath
    snapshot: TaskSnapshot

    def image(self, number: int = 1) -> Path:
        return self.directory / f"{ImageIdentity(REQUEST).stem}{'' if number == 1 else f'-{number}'}.jpg"

    def sidecar(self, number: int = 1) -> Path:
        return self.image(number).with_suffix(".json")

    def edit(self, number: int = 1, **changes: Any) -> None:
        self.sidecar(number).write_text(json.dumps(json.loads(self.sidecar(number).read_text()) | changes))


@pytest.fixture(scope="module")
def originals(drawn: list[TaskSnapshot], tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """One image task's one image, and another's three, stored."""
    found = {}
    for count in (1, 3):
        found[count] = tmp_path_factory.mktemp("stored")
        snapshot = replace(drawn[0], image_urls=tuple(snapshot.image_urls[0] for snapshot in drawn[:count]))
        save_images(snapshot, ImageIdentity(REQUEST), open_output_path(f"file://{found[count]}"), made_by=MADE_BY)
    return found


@pytest.fixture
def stored(originals: dict[int, Path], drawn: list[TaskSnapshot], tmp_path: Path) -> Stored:
    """One stored image, to be damaged."""
    return copy_of(originals[1], drawn[0], tmp_path)


@pytest.fixture
def three_stored(originals: dict[int, Path], drawn: list[TaskSnapshot], tmp_path: Path) -> Stored:
    """Three stored images of one image task, to be damaged."""
    return copy_of(originals[3], drawn[0], tmp_path)


def copy_of(original: Path, snapshot: TaskSnapshot, tmp_path: Path) -> Stored:
    directory = Path(shutil.copytree(original, tmp_path / "images"))
    return Stored(directory, open_output_path(f"file://{directory}"), snapshot)


def test_a_stored_image_is_found_with_all_of_its_facts(stored: Stored) -> None:
    found = find_images(ImageIdentity(REQUEST), stored.folder)
    sidecar = json.loads(stored.sidecar().read_text())
    assert found == StoredImages(
        image_task_id=stored.snapshot.task_id,
        paths=(f"file://{stored.image()}",),
        image_urls=stored.snapshot.image_urls,
        consumed_credits=5,
        made_by=MADE_BY,
        stored_at=sidecar["stored_at"],
        sha256=sidecar["sha256"],
    )


def test_all_images_of_a_task_are_found_in_their_order(three_stored: Stored, drawn: list[TaskSnapshot]) -> None:
    found = find_images(ImageIdentity(REQUEST), three_stored.folder)
    assert isinstance(found, StoredImages)
    assert found.paths == tuple(f"file://{three_stored.image(number)}" for number in (1, 2, 3))
    assert found.image_urls == tuple(snapshot.image_urls[0] for snapshot in drawn[:3])


def test_nothing_is_found_in_an_empty_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert find_images(ImageIdentity(REQUEST), open_output_path(f"file://{tmp_path}")) is None
    assert caplog.records == []


@pytest.mark.parametrize(
    ("changes", "variant"),
    [
        ({}, 1),
        ({"seed": 0}, 0),
        ({"size": "1024*768"}, 0),
        ({"output_format": "png"}, 0),
        ({"prompt": "A red fox!"}, 0),
    ],
)
def test_the_image_of_another_request_is_not_found(stored: Stored, changes: dict[str, Any], variant: int) -> None:
    request = replace(REQUEST, **changes)
    assert find_images(ImageIdentity(request, variant), stored.folder) is None
    # Not even under the other one's name: it is somebody else's file.
    stem = ImageIdentity(request, variant).stem
    shutil.copy(stored.image(), stored.directory / f"{stem}{'.png' if request.output_format == 'png' else '.jpg'}")
    shutil.copy(stored.sidecar(), stored.directory / f"{stem}.json")
    found = find_images(ImageIdentity(request, variant), stored.folder)
    assert isinstance(found, Obstacle)
    assert "is the image of another request" in found.message


def test_a_callback_url_does_not_change_the_image(stored: Stored) -> None:
    assert isinstance(
        find_images(ImageIdentity(replace(REQUEST, callback_url="https://example.com")), stored.folder), StoredImages
    )


def test_an_image_with_a_given_seed_is_the_same_for_every_variant(drawn: list[TaskSnapshot], tmp_path: Path) -> None:
    folder, request = open_output_path(f"file://{tmp_path}"), replace(REQUEST, seed=7)
    save_images(drawn[0], ImageIdentity(request, 1), folder)
    assert isinstance(find_images(ImageIdentity(request, 2), folder), StoredImages)


def test_variants_of_a_request_with_a_random_seed_are_stored_separately(
    drawn: list[TaskSnapshot], tmp_path: Path
) -> None:
    folder = open_output_path(f"file://{tmp_path}")
    for variant, snapshot in enumerate(drawn[:3]):
        save_images(snapshot, ImageIdentity(REQUEST, variant), folder)
    for variant, snapshot in enumerate(drawn[:3]):
        found = find_images(ImageIdentity(REQUEST, variant), folder)
        assert isinstance(found, StoredImages)
        assert found.image_task_id == snapshot.task_id


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("damage", [Path.unlink, truncate, flip_a_bit, lambda file: file.write_bytes(b"")])
@pytest.mark.parametrize("part", [Stored.image, Stored.sidecar])
def test_an_image_that_is_not_whole_is_not_found(
    three_stored: Stored,
    part: Callable[[Stored, int], Path],
    damage: Callable[[Path], object],
    number: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert isinstance(find_images(ImageIdentity(REQUEST), three_stored.folder), StoredImages)
    if part is Stored.sidecar and damage is flip_a_bit:
        three_stored.edit(number, sha256="0" * 64)
    elif part is Stored.sidecar and damage is truncate:
        three_stored.sidecar(number).write_text(three_stored.sidecar(number).read_text().rstrip()[:-1])
    else:
        damage(part(three_stored, number))
    found = find_images(ImageIdentity(REQUEST), three_stored.folder)
    messages = [record.getMessage() for record in caplog.records]
    if part is Stored.image and damage is Path.unlink:
        # The log explains why a new image is paid.
        assert found is None
        assert messages == [
            f"file://{three_stored.image(number)} is missing, though it has a sidecar: it counts as not stored."
        ]
        return
    assert isinstance(found, Obstacle)
    assert found.path == f"file://{three_stored.image(number)}"
    assert "Nothing was submitted. Move it away" in found.message
    assert messages == []


@pytest.mark.parametrize("name", ["fingerprint", "task_id", "image_url", "sha256"])
@pytest.mark.parametrize("value", [None, 5, [], {}])
def test_a_sidecar_without_a_required_field_does_not_count(three_stored: Stored, name: str, value: Any) -> None:
    three_stored.edit(2, **{name: value})
    assert isinstance(find_images(ImageIdentity(REQUEST), three_stored.folder), Obstacle)


@pytest.mark.parametrize("name", ["fingerprint", "task_id", "sha256"])
def test_a_sidecar_that_does_not_match_its_image_does_not_count(three_stored: Stored, name: str) -> None:
    three_stored.edit(2, **{name: "something else"})
    assert isinstance(find_images(ImageIdentity(REQUEST), three_stored.folder), Obstacle)


def test_a_sidecar_without_a_hash_does_not_count_if_the_image_is_missing(stored: Stored) -> None:
    stored.edit(sha256=None)
    stored.image().unlink()
    assert find_images(ImageIdentity(REQUEST), stored.folder) is None


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"{}", b"\xff\xfe", b'{"image_count": 0}'])
def test_a_sidecar_of_another_kind_does_not_count(stored: Stored, content: bytes) -> None:
    stored.sidecar().write_bytes(content)
    assert isinstance(find_images(ImageIdentity(REQUEST), stored.folder), Obstacle)


@pytest.mark.parametrize("count", [2, 4, 10**12])
def test_a_count_of_more_images_than_are_stored_does_not_count(stored: Stored, count: int) -> None:
    stored.edit(image_count=count)
    assert find_images(ImageIdentity(REQUEST), stored.folder) is None


@pytest.mark.parametrize("count", [None, 0, -1, True, False, 1.5, "2", [], {}])
def test_no_image_count_leads_to_a_result_without_an_image(stored: Stored, count: Any) -> None:
    stored.edit(image_count=count)
    found = find_images(ImageIdentity(REQUEST), stored.folder)
    assert isinstance(found, Obstacle) or (isinstance(found, StoredImages) and len(found.paths) == 1)


@pytest.mark.parametrize("made_by", [None, MADE_BY])
def test_the_sidecar_records_the_task_that_stored_the_image(
    drawn: list[TaskSnapshot], tmp_path: Path, made_by: dict[str, Any] | None
) -> None:
    folder = open_output_path(f"file://{tmp_path}")
    save_images(drawn[0], ImageIdentity(REQUEST), folder, made_by=made_by)
    (sidecar,) = tmp_path.glob("*.json")
    assert json.loads(sidecar.read_text())["made_by"] == (made_by or {})
    found = find_images(ImageIdentity(REQUEST), folder)
    assert isinstance(found, StoredImages)
    assert found.made_by == (made_by or {})


def pairs_in(directory: Path) -> dict[str, str]:
    """Return the SHA-256 of each image, by its image task; all of them have a sidecar that describes them."""
    found = {}
    for image in directory.glob("[!.]*.jpg"):
        sidecar = json.loads(image.with_suffix(".json").read_text())
        found[sidecar["task_id"]] = hashlib.sha256(image.read_bytes()).hexdigest()
        assert found[sidecar["task_id"]] == sidecar["sha256"]
    assert len(list(directory.glob("[!.]*.json"))) == len(found) > 0
    return found


def test_the_image_tasks_of_these_tests_are_different_images(drawn: list[TaskSnapshot], tmp_path: Path) -> None:
    hashes = set()
    for snapshot in drawn:
        save_images(snapshot, ImageIdentity(REQUEST), open_output_path(f"file://{tmp_path}"))
        (sha256,) = pairs_in(tmp_path).values()
        hashes.add(sha256)
    assert len(hashes) == len(drawn)


def test_threads_that_store_under_one_name_at_once_leave_a_pair(
    drawn: list[TaskSnapshot], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_pauses(function: Callable[..., None]) -> Callable[..., None]:
        def call(*names: Any) -> None:
            # So that writers meet at every step.
            time.sleep(random.choice((0.0, 0.002, 0.01)))
            function(*names)

        return call

    monkeypatch.setattr(image_pairs, "_PUT_PAUSE_SECONDS", 0.5)
    for name in ("link", "replace"):
        monkeypatch.setattr(os, name, with_pauses(getattr(os, name)))
    writers = 3
    for number in range(12):
        directory = tmp_path / str(number)
        directory.mkdir()
        folder, ready = open_output_path(f"file://{directory}"), threading.Barrier(writers)

        def save(snapshot: TaskSnapshot, folder: Any = folder, ready: threading.Barrier = ready) -> None:
            ready.wait(100)
            save_images(snapshot, ImageIdentity(REQUEST), folder)

        with ThreadPoolExecutor(writers) as pool:
            list(pool.map(save, drawn[:writers]))
        pairs_in(directory)
        found = find_images(ImageIdentity(REQUEST), folder)
        assert isinstance(found, StoredImages)
        assert found.image_task_id in {snapshot.task_id for snapshot in drawn[:writers]}


def test_processes_that_store_under_one_name_at_once_leave_a_pair(drawn: list[TaskSnapshot], tmp_path: Path) -> None:
    writers, directories = 2, [tmp_path / str(number) for number in range(15)]
    for directory in directories:
        directory.mkdir()
    with ProcessPoolExecutor(writers, mp_context=multiprocessing.get_context("spawn")) as pool:
        storing = [
            pool.submit(store_each, [drawn[number].to_data()] * len(directories), REQUEST, directories, writers)
            for number in range(writers)
        ]
        for future in storing:
            assert len(future.result(timeout=280)) == len(directories)
    for directory in directories:
        pairs_in(directory)
        assert isinstance(find_images(ImageIdentity(REQUEST), open_output_path(f"file://{directory}")), StoredImages)


def rotten(monkeypatch: pytest.MonkeyPatch, times: int) -> list[str]:
    """Have the disk return other bytes than were written, for the first reads of images; return the files read."""
    read, reads = local_files.read, list[str]()

    def read_rotten(file: str, start: int, end: int) -> bytes | None:
        content = read(file, start, end)
        reads.append(file)
        rotten = content and file.endswith(".jpg") and sum(name.endswith(".jpg") for name in reads) <= times
        return content[:-1] if content and rotten else content

    monkeypatch.setattr(local_files, "read", read_rotten)
    return reads


def test_a_storage_that_keeps_returning_other_bytes_is_an_error(
    drawn: list[TaskSnapshot], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = open_output_path(f"file://{tmp_path}")
    reads = rotten(monkeypatch, times=99)
    with pytest.raises(
        QwenImageImageError, match="stored 5 times.*not the one its sidecar describes.*Check that"
    ) as caught:
        save_images(drawn[0], ImageIdentity(REQUEST), folder)
    assert not caught.value.permanent
    assert [".jpg" in read for read in reads] == [False, True] * 5
    assert isinstance(find_images(ImageIdentity(REQUEST), folder), Obstacle)


def test_a_storage_that_returned_other_bytes_once_is_written_again(
    drawn: list[TaskSnapshot], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = open_output_path(f"file://{tmp_path}")
    rotten(monkeypatch, times=4)
    save_images(drawn[0], ImageIdentity(REQUEST), folder)
    assert isinstance(find_images(ImageIdentity(REQUEST), folder), StoredImages)


@pytest.mark.parametrize("name", ["task_id", "image_url"])
@pytest.mark.parametrize("value", ["\ud83d", "a\x00b", "a\nb", "x" * 10_000])
def test_a_sidecar_with_text_that_no_database_can_store_does_not_count(stored: Stored, name: str, value: str) -> None:
    stored.edit(**{name: value})
    assert isinstance(find_images(ImageIdentity(REQUEST), stored.folder), Obstacle)


@pytest.mark.parametrize("value", [None, "5", True, [], {}, -1, float("nan"), float("inf"), 10**400])
def test_credits_that_are_not_a_number_are_unknown(stored: Stored, value: Any) -> None:
    stored.edit(consumed_credits=value)
    found = find_images(ImageIdentity(REQUEST), stored.folder)
    assert isinstance(found, StoredImages)
    assert found.consumed_credits is None


@pytest.mark.parametrize("value", [5, [], "x\x00", {"a": 1}])
def test_task_and_time_of_storing_are_known_only_if_they_are_valid(stored: Stored, value: Any) -> None:
    stored.edit(made_by=value, stored_at=value)
    found = find_images(ImageIdentity(REQUEST), stored.folder)
    assert isinstance(found, StoredImages)
    assert found.made_by == (value if isinstance(value, dict) else {})
    assert found.stored_at is None


def test_no_more_of_an_image_is_read_than_its_sidecar_says(stored: Stored) -> None:
    # It has no blocks on disk, and would take gigabytes of memory, or minutes.
    with stored.image().open("r+b") as stream:
        stream.truncate(4 * 1024**3)
    tracemalloc.start()
    try:
        assert isinstance(find_images(ImageIdentity(REQUEST), stored.folder), Obstacle)
        assert tracemalloc.get_traced_memory()[1] < 16 * 1024**2
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("part", [Stored.image, Stored.sidecar])
@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda file: file.symlink_to("/dev/zero")])
def test_something_other_than_a_file_with_the_name_of_an_image_stops_before_anything_is_paid(
    stored: Stored, part: Callable[[Stored], Path], make: Callable[[Path], object]
) -> None:
    part(stored).unlink()
    make(part(stored))
    with pytest.raises(OSError, match="move it away"):
        find_images(ImageIdentity(REQUEST), stored.folder)
