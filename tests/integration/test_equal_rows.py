"""Rows of a batch that share an image although they ask for different calls: refused before anything is paid."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_qwenimage import QwenImageBatchOperator
from airflow_provider_qwenimage.sandbox import Sandbox
from tests.integration.dag_runs import TaskEnd, TestDag

FOX = {"prompt": "A fox", "seed": 7}
CALL, OTHER_CALL = ({"callback_url": f"http://127.0.0.1:9/{name}"} for name in ("call", "other"))
differing = pytest.mark.parametrize(
    "rows",
    [
        [FOX | CALL, "A hare", FOX | OTHER_CALL],
        [FOX, "A hare", FOX | CALL],
        [FOX | CALL, FOX | CALL, FOX | OTHER_CALL],
    ],
    ids=["two URLs", "only the later one has a URL", "the third differs"],
)


@pytest.fixture
def api(connected_api: Sandbox) -> Sandbox:
    return connected_api


def draw(folder: Path, requests: Any, dag: TestDag) -> TaskEnd:
    with dag:
        QwenImageBatchOperator(
            task_id="draw", requests=requests, output_path=str(folder), poll_interval=0.01, max_failures=10
        )
    return dag.run()["draw"]


def assert_refused(api: Sandbox, end: TaskEnd) -> None:
    assert (end.state, end.tries) == ("failed", 1)
    assert api.submissions == []
    assert "callback_url" in str(end.error)
    # Not an error of the API or of one row, but of an argument.
    assert end.xcoms["error"]["error"] == "ValueError"


@differing
def test_rows_of_a_file_that_differ_only_in_their_callback_are_refused(
    api: Sandbox, tmp_path: Path, rows: list[Any]
) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    assert_refused(api, draw(tmp_path / "images", str(file), TestDag()))


@differing
def test_rendered_rows_that_differ_only_in_their_callback_are_refused(
    api: Sandbox, tmp_path: Path, rows: list[Any]
) -> None:
    dag = TestDag(params={"rows": json.dumps(rows)})
    assert_refused(api, draw(tmp_path / "images", "{{ params.rows }}", dag))
