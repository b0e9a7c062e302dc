"""A batch neither pays for, nor replaces, what a file in its folder stands in the way of; what it refuses it keeps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from airflow_provider_qwenimage.sandbox import Sandbox
from tests.integration.test_batch import dag_with_batch, draw, manifest, statuses


def test_a_row_whose_image_was_retouched_fails_alone_without_a_submission(
    connected_api: Sandbox, tmp_path: Path
) -> None:
    rows = [{"prompt": "A fox", "name": "one"}, {"prompt": "A hare", "name": "two"}]
    draw(tmp_path, requests=rows[:1])
    (tmp_path / "one.jpg").write_bytes(b"retouched")
    draw(tmp_path, requests=rows, max_failures=1)
    assert statuses(tmp_path) == ["FAILED", "SUCCESS"]
    assert f"{tmp_path}/one.jpg exists and is not the image" in manifest(tmp_path)[0]["message"]
    assert "Nothing was submitted" in manifest(tmp_path)[0]["message"]
    assert (tmp_path / "one.jpg").read_bytes() == b"retouched"
    assert [submission.request["prompt"] for submission in connected_api.submissions] == ["A fox", "A hare"]
    assert draw(tmp_path, requests=rows, overwrite=True).state == "success"
    assert (tmp_path / "one.jpg").read_bytes() != b"retouched"


@pytest.mark.parametrize("fault", ["wrong_format", "wrong_size"])
def test_an_image_that_was_not_requested_is_kept_by_a_batch(connected_api: Sandbox, tmp_path: Path, fault: str) -> None:
    connected_api.script("image", fault)
    dag = dag_with_batch(tmp_path, requests=[{"prompt": "A fox", "name": "one"}], retries=0)
    end = dag.run()["draw"]
    assert end.state == "failed"
    sidecar = json.loads((tmp_path / "one.refused.json").read_text())
    kept = tmp_path / sidecar["image"]
    assert kept.is_file()
    assert str(kept) in manifest(tmp_path)[0]["message"]
    assert sidecar["task_id"] == connected_api.submissions[0].task_id
    assert not (tmp_path / "one.jpg").exists()
