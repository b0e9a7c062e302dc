"""A file that is not as a task has stored it is the user's: it is never replaced silently, nor paid for again.

An image that does not fit its request is not thrown away either: it is paid.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from airflow_provider_qwenimage import QwenImageBatchOperator
from airflow_provider_qwenimage.sandbox import Sandbox
from tests.integration.dag_runs import TaskEnd, TestDag, dag_that_draws

PROMPT = "A red kite over the sea"

kinds = pytest.mark.parametrize("kind", ["operator", "deferred operator", "batch"])


def dag_of(kind: str, folder: Path, **arguments: Any) -> TestDag:
    """Return a DAG with a task, "draw", that stores one image."""
    arguments = {"output_path": str(folder), "poll_interval": 0.01} | arguments
    if kind != "batch":
        return dag_that_draws(prompt=PROMPT, deferrable=kind == "deferred operator", **arguments)
    dag = TestDag()
    with dag:
        QwenImageBatchOperator(task_id="draw", requests=[PROMPT], **arguments)
    return dag


def only_image(folder: Path) -> Path:
    (image,) = folder.glob("*.jpg")
    return image


def drawn(dag: TestDag, folder: Path) -> Path:
    """Return the image that a first run has stored."""
    assert dag.run()["draw"].state == "success"
    return only_image(folder)


def texts(end: TaskEnd, folder: Path) -> str:
    """Return what a failed task says: its errors, and the manifest, if it has one."""
    manifest = folder / "manifest.jsonl"
    return "\n".join([*map(str, end.errors), manifest.read_text() if manifest.exists() else ""])


def delete_sidecar(image: Path) -> None:
    image.with_suffix(".json").unlink()


def corrupt_sidecar(image: Path) -> None:
    image.with_suffix(".json").write_text("not JSON")


def retouch(image: Path) -> None:
    with Image.open(image) as opened:
        lighter = opened.point(lambda value: min(255, value + 20))
    lighter.save(image)


def replace_by_other(image: Path) -> None:
    image.write_bytes(b"a picture of the user's own, in whatever format")


@pytest.fixture
def api(connected_api: Sandbox) -> Sandbox:
    return connected_api


@kinds
@pytest.mark.parametrize("change", [delete_sidecar, corrupt_sidecar, retouch, replace_by_other])
def test_an_image_without_a_matching_sidecar_is_neither_replaced_nor_paid_again_by_a_clear(
    api: Sandbox, tmp_path: Path, kind: str, change: Callable[[Path], None]
) -> None:
    dag = dag_of(kind, tmp_path)
    image = drawn(dag, tmp_path)
    change(image)
    content = image.read_bytes()
    end = dag.clear("draw")["draw"]

    assert image.read_bytes() == content, "the user's file was replaced"
    assert_stopped_or_stored_beside(api, end, tmp_path, image)


@kinds
@pytest.mark.parametrize("change", [delete_sidecar, retouch])
def test_an_image_without_a_matching_sidecar_is_neither_replaced_nor_paid_again_by_another_run(
    api: Sandbox, tmp_path: Path, kind: str, change: Callable[[Path], None]
) -> None:
    image = drawn(dag_of(kind, tmp_path), tmp_path)
    change(image)
    content = image.read_bytes()
    end = dag_of(kind, tmp_path).run()["draw"]

    assert image.read_bytes() == content, "the user's file was replaced"
    assert_stopped_or_stored_beside(api, end, tmp_path, image)


@kinds
def test_an_image_that_no_task_has_stored_is_neither_replaced_nor_paid_for(
    api: Sandbox, tmp_path: Path, kind: str
) -> None:
    made = drawn(dag_of(kind, tmp_path / "made"), tmp_path / "made")
    folder = tmp_path / "images"
    folder.mkdir()
    image = Path(shutil.copy(made, folder))
    content = image.read_bytes()
    end = dag_of(kind, folder).run()["draw"]

    assert image.read_bytes() == content, "the user's file was replaced"
    assert_stopped_or_stored_beside(api, end, folder, image)


def assert_stopped_or_stored_beside(api: Sandbox, end: TaskEnd, folder: Path, image: Path) -> None:
    """The task has stopped before it paid and names the file, or it has stored its image under another name."""
    if end.state == "success":
        stored = set(folder.glob("*.jpg")) - {image}
        assert len(stored) == 1
        assert image.name not in json.dumps(end.returned)
    else:
        assert end.state == "failed"
        assert len(api.submissions) == 1
        assert image.name in texts(end, folder)


@kinds
@pytest.mark.parametrize("change", [delete_sidecar, retouch])
def test_an_image_without_a_matching_sidecar_is_replaced_only_with_overwrite(
    api: Sandbox, tmp_path: Path, kind: str, change: Callable[[Path], None]
) -> None:
    image = drawn(dag_of(kind, tmp_path), tmp_path)
    change(image)
    content = image.read_bytes()
    dag_of(kind, tmp_path).run()
    assert image.read_bytes() == content, "the user's file was replaced"

    assert dag_of(kind, tmp_path, overwrite=True).run()["draw"].state == "success"
    assert image.read_bytes() != content
    sidecar = json.loads(image.with_suffix(".json").read_text())
    assert sidecar["task_id"] == api.submissions[-1].task_id


DELIVERED = {
    "wrong_format": ("PNG", (1024, 1024), "png"),
    "wrong_size": ("JPEG", (512, 512), "512"),
}


@kinds
@pytest.mark.parametrize("fault", DELIVERED)
def test_an_image_of_another_format_or_size_is_kept_beside_with_the_reason(
    api: Sandbox, tmp_path: Path, kind: str, fault: str
) -> None:
    stem = drawn(dag_of(kind, tmp_path / "made"), tmp_path / "made").stem
    folder = tmp_path / "images"
    api.script("image", (fault, 100))
    end = dag_of(kind, folder).run()["draw"]

    submission = api.submissions[-1]
    assert (end.state, len(api.submissions)) == ("failed", 2)
    kept = {file.suffix: file for file in folder.glob(f"{stem}.refused.*")}
    assert len(kept) == 2, "the bytes that were paid are kept, and a sidecar"
    sidecar = kept.pop(".json")
    assert sidecar.name == f"{stem}.refused.json"
    (image,) = kept.values()
    format_name, size, reason = DELIVERED[fault]
    with Image.open(image) as opened:
        opened.load()
        assert (opened.format, opened.size) == (format_name, size)
    assert json.loads(sidecar.read_text())["task_id"] == submission.task_id
    assert reason in sidecar.read_text()
    # It is not the image that was asked for.
    assert not (folder / f"{stem}.jpg").exists()


@kinds
def test_a_refused_image_is_not_taken_for_the_one_that_was_asked_for(api: Sandbox, tmp_path: Path, kind: str) -> None:
    api.script("image", ("wrong_size", 1))
    dag = dag_of(kind, tmp_path)
    assert dag.run()["draw"].state == "failed"
    (kept,) = tmp_path.glob("*.refused.jpg")
    content = kept.read_bytes()
    end = dag.clear("draw")["draw"]

    assert end.state == "success"
    assert len(api.submissions) == 1, "the image task can still be read, which costs nothing"
    (image,) = set(tmp_path.glob("*.jpg")) - {kept}
    with Image.open(image) as opened:
        assert opened.size == (1024, 1024)
    assert not kept.exists() or kept.read_bytes() == content
