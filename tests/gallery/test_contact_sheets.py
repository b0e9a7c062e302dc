"""The gallery shows the contact sheet of a batch: only one that this batch has stored, to who may see its images."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from airflow_provider_qwenimage import QwenImageBatchOperator
from airflow_provider_qwenimage.plugin import stored_sheets
from airflow_provider_qwenimage.plugin.batch_records import records_of_batch
from airflow_provider_qwenimage.plugin.image_records import BatchRecord, TaskInstance
from airflow_provider_qwenimage.plugin.runs import RUNS
from airflow_provider_qwenimage.plugin.storage_access import RefusedError
from airflow_provider_qwenimage.plugin.stored_sheets import StoredSheet
from airflow_provider_qwenimage.rules.contact_sheets import SheetComment
from tests.gallery.airflow_server import Server
from tests.gallery.conftest import Shown
from tests.gallery.test_access import push
from tests.gallery.test_thumbnails import TASK as ANY_TASK
from tests.integration.dag_runs import TestDag

TASK = replace(ANY_TASK, operator="QwenImageBatchOperator")


def batch_of(prompts: list[str], folder: Path) -> TestDag:
    dag = TestDag()
    with dag:
        QwenImageBatchOperator(
            task_id="draw",
            requests=[{"prompt": prompt, "seed": 1} for prompt in prompts],
            output_path=str(folder),
            contact_sheet=True,
            poll_interval=0.01,
        )
    return dag


@pytest.fixture(scope="module")
def foxes(show: Callable[[TestDag], Shown], tmp_path_factory: pytest.TempPathFactory) -> Shown:
    return show(batch_of(["A fox", "A hare"], tmp_path_factory.mktemp("foxes")))


@pytest.fixture
def forge(foxes: Shown) -> Iterator[Callable[[str, Any], None]]:
    """Return a function that changes an XCom of the foxes' batch until the end of the test."""
    xcoms = foxes.run["draw"].xcoms
    changed: set[str] = set()

    def change(key: str, value: Any) -> None:
        changed.add(key)
        push(foxes, key, value)

    yield change
    for key in changed:
        push(foxes, key, xcoms[key])


def sheets_in(server: Server, shown: Shown) -> list[dict[str, str]]:
    (batch,) = server.get(f"{shown.path}/data").json()["batches"]
    sheets: list[dict[str, str]] = batch["sheets"]
    assert batch["sheet_pages"] == len(sheets)
    return sheets


def sheet_at(shown: Shown, page: int = 1, kind: str = "") -> str:
    return f"{shown.path}/tasks/draw/sheets/{page}{kind}"


def folder_of(shown: Shown) -> Path:
    return Path(shown.run["draw"].returned["manifest"].removeprefix("file://")).parent


def test_a_run_and_a_task_list_the_contact_sheet_of_a_batch(server: Server, foxes: Shown) -> None:
    (sheet,) = sheets_in(server, foxes)
    answer = server.get(sheet["image"], user=foxes.dag_id)
    assert answer.headers["Content-Type"] == "image/jpeg"
    assert answer.content == (folder_of(foxes) / "contact-sheet.jpg").read_bytes()
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Content-Security-Policy"].endswith("sandbox")
    for _ in range(2):
        small = server.get(sheet["thumbnail"], user=foxes.dag_id)
        with Image.open(io.BytesIO(small.content)) as image:
            assert image.format == "WEBP"
            assert image.width <= 480
    (batch,) = server.get(f"{foxes.path}/tasks/draw/data").json()["batches"]
    assert batch["sheets"] == [sheet]


def test_a_page_that_was_not_recorded_is_not_served(server: Server, foxes: Shown) -> None:
    for page in (0, 2, -1):
        assert server.get(sheet_at(foxes, page)).status_code == 404


def test_forged_paths_of_sheets_give_access_to_no_other_file(
    server: Server, foxes: Shown, forge: Callable[[str, Any], None], tmp_path: Path
) -> None:
    secret = tmp_path / "contact-sheet.jpg"
    secret.write_bytes((folder_of(foxes) / "contact-sheet.jpg").read_bytes() + b"secret")
    forge("contact_sheet", [str(secret), "/etc/passwd"])
    assert b"secret" not in server.get(sheet_at(foxes)).content
    assert server.get(sheet_at(foxes)).status_code == 200
    assert server.get(sheet_at(foxes, 2)).json()["detail"] == "This contact sheet no longer exists in the storage."
    forge("contact_sheet", "not a list")
    assert sheets_in(server, foxes) == []


def test_the_sheet_of_another_task_is_not_served(
    *, server: Server, foxes: Shown, forge: Callable[[str, Any], None], tmp_path: Path
) -> None:
    other = replace(TASK, dag_id="other")
    (tmp_path / "contact-sheet.jpg").write_bytes(sheet(other))
    (tmp_path / "manifest.jsonl").write_bytes((folder_of(foxes) / "manifest.jsonl").read_bytes())
    forge("manifest", str(tmp_path / "manifest.jsonl"))
    for kind in ("", "/thumbnail"):
        answer = server.get(sheet_at(foxes, kind=kind))
        assert answer.status_code == 404
        assert answer.json()["detail"] == "A later batch replaced the contact sheet of this one."


def test_images_that_another_dag_drew_are_shown_to_who_may_read_both(
    *, server: Server, foxes: Shown, show: Callable[[TestDag], Shown]
) -> None:
    own = folder_of(foxes) / "contact-sheet.jpg"
    before = own.read_bytes()
    later = show(batch_of(["A fox"], own.parent))
    try:
        assert later.run["draw"].returned["reused"] == 1
        for kind in ("", "/thumbnail"):
            refused = server.get(sheet_at(later, kind=kind), user=later.dag_id)
            assert refused.status_code == 404
            assert "drawn in another DAG" in refused.json()["detail"]
            assert server.get(sheet_at(later, kind=kind), user=f"{later.dag_id},{foxes.dag_id}").status_code == 200
        assert "later batch" in server.get(sheet_at(foxes)).json()["detail"]
        # As if an image had no sidecar, and nobody knew who drew it.
        unknown = sheet(replace(TASK, dag_id=later.dag_id, run_id=later.run_id), other_dags=None)
        own.write_bytes(unknown)
        assert server.get(sheet_at(later), user=f"{later.dag_id},{foxes.dag_id}").status_code == 404
        assert server.get(sheet_at(later), user="*").status_code == 200
    finally:
        own.write_bytes(before)
        RUNS._cache.clear()


def sheet(
    task: TaskInstance = TASK, size: tuple[int, int] = (60, 40), other_dags: frozenset[str] | None = frozenset()
) -> bytes:
    """Return a JPEG file with the comment of a task's contact sheet."""
    made = io.BytesIO()
    comment = SheetComment(task.writer, other_dags).to_bytes()
    Image.new("L", size).save(made, "JPEG", comment=comment)
    return made.getvalue()


def content_of(file: Path, content: bytes) -> bytes:
    file.write_bytes(content)
    return StoredSheet(str(file), TASK.writer).content()


def plain_jpeg() -> bytes:
    made = io.BytesIO()
    Image.new("L", (60, 40)).save(made, "JPEG")
    return made.getvalue()


def test_only_a_contact_sheet_within_limits_is_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "contact-sheet.jpg"
    assert content_of(file, sheet()) == sheet()
    for content, problem in {
        b"<svg onload='alert(1)'/>": "not a contact sheet",
        b"": "not a contact sheet",
        plain_jpeg(): "not a contact sheet",
        sheet(replace(TASK, run_id="later")): "later batch",
        sheet(size=(5000, 4000)): "more than 16,777,216 pixels",
        sheet()[:-30]: "not an image",
    }.items():
        with pytest.raises(RefusedError, match=problem):
            content_of(file, content)
    monkeypatch.setattr(stored_sheets, "MOST_BYTES", len(sheet()) - 1)
    with pytest.raises(RefusedError, match="larger than"):
        content_of(file, sheet())


@pytest.mark.parametrize("path", ["/etc/passwd", "/x/other.jsonl", "/x/manifest-1.jsonl", None, 3, "x" * 5000])
def test_a_manifest_of_another_name_has_no_sheet(path: Any) -> None:
    (batch,) = records_of_batch(TASK, {"manifest": path, "contact_sheet": ["a"]}, (), None).batches
    assert batch.sheet(1) is None


def test_the_sheet_is_beside_the_manifest_of_a_mapped_task() -> None:
    task = replace(TASK, map_index=3)
    batch = BatchRecord(task=task, progress={}, manifest="s3://aws@b/x/manifest-3.jsonl", sheet_pages=2)
    assert batch.sheet(2) == "s3://aws@b/x/contact-sheet-m3-2.jpg"
    assert (batch.sheet(0), batch.sheet(3)) == (None, None)


def test_pages_are_limited() -> None:
    xcoms = {"manifest": "/x/manifest.jsonl", "contact_sheet": ["a"] * 5000}
    (batch,) = records_of_batch(TASK, xcoms, (), None).batches
    assert batch.sheet_pages == 1000
