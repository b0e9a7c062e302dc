"""The example that publishes a catalogue: a sweep, its images, what is made of them, and the DAG that waits for it."""

from __future__ import annotations

import json
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_qwenimage.sandbox import Sandbox
from tests.integration.dag_runs import TestDag

EXAMPLE = Path(__file__).parents[2] / "example_dags" / "publish.py"


def _parse() -> Any:
    spec = spec_from_file_location("example_publish", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    example = module_from_spec(spec)
    spec.loader.exec_module(example)
    return example


def _as_test_dag(task: Any) -> TestDag:
    task.retries = 0
    dag = TestDag()
    dag.dag = task.dag
    return dag


def test_a_catalogue_is_drawn_and_the_dag_that_waits_for_it_reads_what_was_stored(
    connected_api: Sandbox, airflow_database: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QWENIMAGE_OUTPUT_PATH", tmp_path.as_uri())
    example = _parse()
    example.draw.poll_interval = 0.01
    run = _as_test_dag(example.draw).run()
    assert run.state == "success"
    assert connected_api.credits_charged == 30
    folder = tmp_path / "published"
    assert (folder / "contact-sheet.jpg").is_file()

    captions = _as_test_dag(example.released.operator).run()["release"].returned
    assert len(captions) == 6
    assert set(captions.values()) == {
        f"A {product} on a linen cloth" for product in ("stoneware mug", "wooden bowl", "paper lamp")
    }
    assert all((folder / name).is_file() for name in captions)
    rows = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    assert [row["label"] for row in rows[:2]] == ["stoneware mug · seed 0", "stoneware mug · seed 1"]

    (folder / "manifest.jsonl").write_text("[]\n")
    assert _as_test_dag(example.released.operator).run().state == "failed"
