"""A batch stores its contact sheet however it ends, and a sheet that cannot be made changes nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from airflow_provider_qwenimage.sandbox import Sandbox
from tests.integration.dag_runs import TaskEnd
from tests.integration.test_batch import dag_with_batch, manifest
from tests.publish.test_contact_sheets import Sheet, is_crossed


def draw(folder: Path, requests: list[Any], **arguments: Any) -> TaskEnd:
    batch = dag_with_batch(folder, requests=requests, contact_sheet=True, retries=0, **arguments)
    return batch.run()["draw"]


def test_a_batch_stores_its_contact_sheet_also_if_it_fails(connected_api: Sandbox, tmp_path: Path) -> None:
    end = draw(tmp_path, ["A fox", {"prompt": "A hare", "label": "hare"}])
    assert end.state == "success"
    file = tmp_path / "contact-sheet.jpg"
    assert end.xcoms["contact_sheet"] == [f"{end.xcoms['manifest'].rpartition('/')[0]}/contact-sheet.jpg"]
    sheet = Sheet(file, manifest(tmp_path))
    assert not any(is_crossed(sheet, position) for position in (0, 1))
    with Image.open(manifest(tmp_path)[1]["paths"][0]) as image:
        expected = image.convert("RGB").resize(sheet.layout.thumbnail).getpixel((100, 100))
    left, top = sheet.layout.corner(1)
    shown = sheet.image.getpixel((left + 100, top + 100))
    assert all(abs(one - another) < 25 for one, another in zip(shown, expected, strict=True))

    end = draw(tmp_path, ["A fox", "An owl [fail]"])
    assert end.state == "failed"
    assert len(end.xcoms["contact_sheet"]) == 1
    sheet = Sheet(file, manifest(tmp_path))
    assert [is_crossed(sheet, position) for position in (0, 1)] == [False, True]

    # A file that somebody else has stored there costs nothing.
    file.write_bytes(b"what a user has put here")
    submitted = len(connected_api.submissions)
    end = draw(tmp_path, ["A crow"])
    assert end.state == "failed"
    assert "contact-sheet.jpg is not the contact sheet of a batch" in str(end.error)
    assert len(connected_api.submissions) == submitted
