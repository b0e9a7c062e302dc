"""What a user or another request has stored under the name of an image is never replaced without consent."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from airflow_provider_qwenimage.contract import GenerateRequest, TaskSnapshot, TaskStatus
from airflow_provider_qwenimage.exceptions import QwenImageImageError
from airflow_provider_qwenimage.rules.image_identity import ImageIdentity
from airflow_provider_qwenimage.storage.images import Obstacle, StoredFile, StoredImages, find_images, verify_and_store
from airflow_provider_qwenimage.storage.paths import open_output_path
from tests.stores import store_at

REQUEST = GenerateRequest(prompt="A red fox", size="768*1024", output_format="png")
RETOUCHED = b"what the user made of it"


def picture(color: int = 0, size: tuple[int, int] = (768, 1024), output_format: str = "png") -> bytes:
    stream = BytesIO()
    Image.new("RGB", size, (color, 90, 20)).save(stream, output_format)
    return stream.getvalue()


def snapshot(image_task_id: str = "n1a2b3", images: int = 1) -> TaskSnapshot:
    urls = tuple(f"https://cdn.example/{number}.png?signature=secret" for number in range(images))
    return TaskSnapshot(
        task_id=image_task_id, status=TaskStatus.SUCCESS, image_urls=urls, consumed_credits=5.0, created_at=None
    )


@dataclass
class Folder:
    """A folder on this machine's disk, and the identity of the image that is stored in it."""

    directory: Path
    identity: ImageIdentity

    def put(self, content: bytes, image_task_id: str = "n1a2b3", **arguments: Any) -> str | QwenImageImageError:
        folder = open_output_path(str(self.directory))
        arguments = {"number": 1, "identity": self.identity, "snapshot": snapshot(image_task_id)} | arguments
        stored = verify_and_store(content, folder=folder, **arguments)
        return stored.path if isinstance(stored, StoredFile) else stored

    def find(self, identity: ImageIdentity | None = None) -> StoredImages | Obstacle | None:
        return find_images(identity or self.identity, open_output_path(str(self.directory)))

    @property
    def image(self) -> Path:
        return self.directory / f"{self.identity.stem}.png"

    @property
    def names(self) -> list[str]:
        return sorted(file.name for file in self.directory.iterdir())


@pytest.fixture(params=[None, "my fox"], ids=["named by the request", "named by the user"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    """A folder with one stored image."""
    made = Folder(tmp_path, ImageIdentity(REQUEST, name=request.param))
    assert made.put(picture()) == str(made.image)
    return made


def retouch(folder: Folder) -> None:
    folder.image.write_bytes(RETOUCHED)


def retouch_and_remove_the_sidecar(folder: Folder) -> None:
    retouch(folder)
    folder.image.with_suffix(".json").unlink()


def break_the_sidecar(folder: Folder) -> None:
    retouch(folder)
    folder.image.with_suffix(".json").write_text("{")


DAMAGES = pytest.mark.parametrize("damage", [retouch, retouch_and_remove_the_sidecar, break_the_sidecar])


@DAMAGES
def test_a_file_that_is_not_the_image_of_its_sidecar_is_named_before_anything_is_paid(
    folder: Folder, damage: Callable[[Folder], None]
) -> None:
    damage(folder)
    found = folder.find()
    assert isinstance(found, Obstacle)
    assert found.path == str(folder.image)
    assert found.message.startswith(f"{folder.image} exists and ")
    assert "Nothing was submitted. Move it away" in found.message
    assert "overwrite=True" in found.message
    folder.image.rename(folder.directory / "mine.png")
    if damage is break_the_sidecar and folder.identity.name is not None:
        # Any file may have the name that the user chose.
        left = folder.find()
        assert isinstance(left, Obstacle)
        assert left.path == str(folder.image.with_suffix(".json"))
        Path(left.path).unlink()
    assert folder.find() is None


@DAMAGES
def test_a_file_that_came_in_the_way_of_a_paid_image_stays_and_the_image_gets_another_name(
    folder: Folder, damage: Callable[[Folder], None], caplog: pytest.LogCaptureFixture
) -> None:
    damage(folder)
    before = folder.names
    beside = folder.directory / f"{folder.identity.stem}-n1a2b3.png"
    with caplog.at_level(logging.WARNING):
        assert folder.put(picture(1)) == str(beside)
    assert folder.image.read_bytes() == RETOUCHED
    assert folder.names == sorted([*before, beside.name, beside.with_suffix(".json").name])
    (message,) = caplog.messages
    assert str(folder.image) in message
    assert str(beside) in message
    # The next run finds what was paid, and a retry that downloads it again stores nothing more.
    found = folder.find()
    assert isinstance(found, StoredImages)
    assert found.paths == (str(beside),)
    assert folder.put(picture(1)) == str(beside)
    assert folder.put(picture(2)) == str(beside), "a newer image of the same request replaces it"


def test_names_that_are_all_taken_are_counted_on(folder: Folder) -> None:
    retouch(folder)
    folder.image.with_name(f"{folder.identity.stem}-n1a2b3.png").write_bytes(b"taken as well")
    assert folder.put(picture(1)) == str(folder.image.with_name(f"{folder.identity.stem}-n1a2b3-2.png"))


@DAMAGES
def test_with_consent_the_file_is_replaced(folder: Folder, damage: Callable[[Folder], None]) -> None:
    damage(folder)
    assert folder.put(picture(1), replace=True) == str(folder.image)
    assert folder.image.read_bytes() == picture(1)
    assert isinstance(folder.find(), StoredImages)
    assert len(folder.names) == 2


def test_a_try_that_ended_between_image_and_sidecar_is_completed(folder: Folder) -> None:
    folder.image.with_suffix(".json").unlink()
    assert isinstance(folder.find(), Obstacle)
    assert folder.put(picture()) == str(folder.image)
    assert isinstance(folder.find(), StoredImages)
    assert len(folder.names) == 2


def test_a_sidecar_without_its_image_is_in_nobodys_way(folder: Folder) -> None:
    folder.image.unlink()
    assert folder.find() is None
    assert folder.put(picture(1)) == str(folder.image)


@pytest.mark.parametrize("changes", [{"prompt": "A hare"}, {"seed": 5}, {"output_format": "webp"}])
def test_a_chosen_name_that_has_the_image_of_another_request_stops_before_anything_is_paid(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    folder = Folder(tmp_path, ImageIdentity(REQUEST, name="my fox"))
    folder.put(picture())
    other = ImageIdentity(replace(REQUEST, **changes), name="my fox")
    found = folder.find(other)
    assert isinstance(found, Obstacle)
    assert found.path == str(folder.image)
    assert "is the image of another request" in found.message
    # If it came in the meantime, both stay.
    stored = folder.put(picture(1, output_format=other.request.output_format), "n9", identity=other)
    assert Path(str(stored)).stem == "my fox-n9"
    assert isinstance(folder.find(), StoredImages)
    assert isinstance(folder.find(other), StoredImages)


def test_a_chosen_name_is_found_again_whatever_the_position_and_is_recorded(tmp_path: Path) -> None:
    folder = Folder(tmp_path, ImageIdentity(REQUEST, variant=3, name="my fox"))
    folder.put(picture())
    assert json.loads((tmp_path / "my fox.json").read_text())["name"] == "my fox"
    assert isinstance(folder.find(ImageIdentity(REQUEST, variant=8, name="my fox")), StoredImages)


def test_what_an_earlier_version_stored_is_found_under_a_name_as_well(tmp_path: Path) -> None:
    folder = Folder(tmp_path, ImageIdentity(REQUEST))
    folder.put(picture())
    sidecar = json.loads(folder.image.with_suffix(".json").read_text())
    assert sidecar.pop("name") is None
    folder.image.with_suffix(".json").write_text(json.dumps(sidecar))
    assert isinstance(folder.find(), StoredImages)
    assert isinstance(folder.find(ImageIdentity(REQUEST, name=folder.identity.stem)), StoredImages)


@pytest.mark.parametrize("protocol", ["s3", "sftp"])
def test_other_storages_replace_nothing_either(protocol: str) -> None:
    _, folder = store_at(protocol)
    identity = ImageIdentity(REQUEST)
    (folder / f"{identity.stem}.png").write_bytes(RETOUCHED)
    assert isinstance(find_images(identity, folder), Obstacle)
    stored = verify_and_store(picture(), snapshot(), identity, folder, number=1)
    assert isinstance(stored, StoredFile)
    assert stored.path == str(folder / f"{identity.stem}-n1a2b3.png")
    assert (folder / f"{identity.stem}.png").read_bytes() == RETOUCHED
