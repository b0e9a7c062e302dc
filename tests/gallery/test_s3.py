"""The gallery shows the current content of a bucket."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import ObjectStoragePath

from airflow_provider_qwenimage import QwenImageBatchOperator
from airflow_provider_qwenimage.plugin.manifests import read_rows
from airflow_provider_qwenimage.rules.made_by import writer_of
from tests.gallery.airflow_server import Server
from tests.gallery.conftest import Shown
from tests.integration.dag_runs import TestDag, dag_that_draws
from tests.s3_server import Bucket


def items(server: Server, shown: Shown) -> list[dict[str, Any]]:
    answer = server.get(f"{shown.path}/data")
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["items"]
    return found


@pytest.mark.parametrize("folder", ["", "/a folder/50%+", "/狐/a#b?c", "/x//y"])
def test_images_in_a_bucket_are_shown(
    server: Server, show: Callable[[TestDag], Shown], bucket: Bucket, folder: str
) -> None:
    shown = show(dag_that_draws(output_path=bucket.url + folder, prompt="A fox", seed=1))
    (item,) = items(server, shown)
    (path,) = shown.run["draw"].returned["paths"]
    assert server.get(item["image"]).content == ObjectStoragePath(path).read_bytes()
    assert server.get(item["thumbnail"]).status_code == 200
    dag = TestDag()
    with dag:
        QwenImageBatchOperator(task_id="draw", requests=["A hare"], output_path=bucket.url + folder, poll_interval=0.01)
    (item,) = items(server, show(dag))
    assert (item["status"], item["prompt"]) == ("done", "A hare")
    assert server.get(item["thumbnail"]).status_code == 200


def test_a_cached_directory_listing_hides_no_rows(bucket: Bucket) -> None:
    from airflow_provider_qwenimage.plugin.image_records import TaskInstance
    from airflow_provider_qwenimage.plugin.runs import READS

    key_fields = {"dag_id": "foxes", "run_id": "r", "task_id": "draw", "map_index": -1}
    writer = writer_of(key_fields)
    task = TaskInstance(**key_fields, state="success", operator=None, try_number=1, changed_at=None)
    row = f'{{"row": 1, "writer": "{writer}"}}\n'.encode()
    bucket.put("x/manifest.jsonl", row)
    manifest = {"manifest": f"{bucket.url}/x/manifest.jsonl"}
    assert len(read_rows(task, manifest, READS)[0]) == 1
    # As an XCom backend on the same storage does.
    folder = ObjectStoragePath(f"{bucket.url}/x")
    assert folder.fs.ls(folder.path)
    bucket.put("x/manifest.jsonl", row * 2)
    assert len(read_rows(task, manifest, READS)[0]) == 2
    bucket.server.client().delete_object(Bucket=bucket.name, Key="x/manifest.jsonl")
    assert read_rows(task, manifest, READS) == ((), "manifest.jsonl no longer exists.")
