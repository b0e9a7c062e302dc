"""A batch makes its folder a dataset: once it has succeeded, and again for nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_qwenimage.batch.publishing import Publishing
from airflow_provider_qwenimage.sandbox import Sandbox
from tests.integration.dag_runs import TaskEnd
from tests.integration.test_batch import dag_with_batch

CAPTIONED = [{"prompt": "A fox", "text": "a fox, in style x", "label": "fox"}, "A hare"]


def draw(folder: Path, requests: list[Any], **arguments: Any) -> TaskEnd:
    return dag_with_batch(folder, requests=requests, dataset="imagefolder", **arguments).run()["draw"]


def test_a_dataset_is_written_by_a_retry_if_it_could_not_be_and_is_the_same_for_the_same_images(
    connected_api: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_dataset, tries = Publishing.put_dataset, iter([True])

    def put_at_the_second_try(self: Publishing) -> None:
        if next(tries, False):
            assert (tmp_path / "manifest.jsonl").exists()
            raise OSError(28, "No space left on device")
        put_dataset(self)

    monkeypatch.setattr(Publishing, "put_dataset", put_at_the_second_try)
    end = draw(tmp_path, CAPTIONED)
    assert (end.state, end.tries) == ("success", 2)
    assert len(connected_api.submissions) == 2
    written = (tmp_path / "metadata.jsonl").read_bytes()
    fox, hare = map(json.loads, written.splitlines())
    assert (fox["text"], fox["label"], hare["text"], hare["label"]) == ("a fox, in style x", "fox", "A hare", None)
    for line in (fox, hare):
        sidecar = json.loads((tmp_path / line["file_name"]).with_suffix(".json").read_text())
        assert {name: sidecar[name] for name in ("task_id", "width", "height", "output_format")} == {
            name: line[name] for name in ("task_id", "width", "height", "output_format")
        }

    # What fails is not in it. A batch that fails leaves it as it is.
    end = draw(tmp_path, [*CAPTIONED, "An owl [fail]"], max_failures=1)
    assert (end.state, end.returned["reused"], end.returned["failed"]) == ("success", 2, 1)
    assert (tmp_path / "metadata.jsonl").read_bytes() == written
    assert draw(tmp_path, ["A crow", "An owl [fail]"], retries=0).state == "failed"
    assert (tmp_path / "metadata.jsonl").read_bytes() == written
