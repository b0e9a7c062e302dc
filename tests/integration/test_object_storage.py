"""Images in a bucket: the operators on a real S3 server, through an Airflow connection."""

from __future__ import annotations

import json
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import ObjectStoragePath

from airflow_provider_qwenimage import QwenImageBatchOperator
from airflow_provider_qwenimage.sandbox import Sandbox
from airflow_provider_qwenimage.storage import image_pairs
from airflow_provider_qwenimage.tasks.ledger import Ledger
from tests.integration.dag_runs import TaskEnd, TestDag, crash_once, dag_that_draws
from tests.s3_server import Bucket

WAYS = pytest.mark.parametrize("way", [{}, {"deferrable": True}], ids=["in the worker", "deferred"])
FOXES = ["A fox", "A fox", "A hare"]


def batch_into(folder: str, **arguments: Any) -> TestDag:
    dag = TestDag()
    with dag:
        QwenImageBatchOperator(
            **{"task_id": "draw", "requests": FOXES, "output_path": folder, "poll_interval": 0.01} | arguments
        )
    return dag


def manifest(bucket: Bucket, key: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in bucket.get(key).splitlines()]


def last_error(end: TaskEnd) -> str:
    """Return the last error of a failed task."""
    assert end.state == "failed"
    return str(end.errors[-1])


@WAYS
def test_an_image_is_stored_under_a_new_prefix_and_reused(
    connected_api: Sandbox, bucket: Bucket, way: dict[str, Any]
) -> None:
    folder = f"{bucket.url}/new prefix/狐#1?/50%+"
    dag = dag_that_draws(output_path=folder, seed=1, **way)
    end = dag.run()["draw"]
    assert (end.state, end.tries, connected_api.credits_charged) == ("success", 1, 5)
    (path,) = end.returned["paths"]
    assert path.startswith(f"{folder}/a-red-kite")
    key = path.removeprefix(f"{bucket.url}/")
    sidecar = key.replace(".jpg", ".json")
    assert bucket.keys == [key, sidecar]
    assert [bucket.content_type(name) for name in bucket.keys] == ["image/jpeg", "application/json"]
    assert ObjectStoragePath(path).read_bytes() == bucket.get(key)
    again = dag.run()["draw"]
    assert again.returned == end.returned | {"reused": True, "consumed_credits": 0}
    assert connected_api.credits_charged == 5
    assert "secret-of-s3" not in json.dumps(end.xcoms) + bucket.get(sidecar).decode()


@pytest.mark.parametrize("end_of_url", ["", "/", "/new/prefix", "/new//prefix/"])
def test_a_batch_is_stored_under_a_new_prefix_and_reused(
    connected_api: Sandbox, bucket: Bucket, end_of_url: str
) -> None:
    dag = batch_into(bucket.url + end_of_url)
    end = dag.run()["draw"]
    assert (end.state, end.tries, connected_api.credits_charged) == ("success", 1, 15)
    assert len(bucket.keys) == 2 * 3 + 1
    (key,) = (key for key in bucket.keys if key.endswith("manifest.jsonl"))
    assert end.returned["manifest"] == f"{bucket.url}/{key}"
    assert bucket.content_type(key) == "application/x-ndjson"
    rows = manifest(bucket, key)
    assert [row["status"] for row in rows] == ["SUCCESS"] * 3
    assert all(ObjectStoragePath(path).read_bytes() for row in rows for path in row["paths"])
    again = dag.run()["draw"]
    assert (again.returned["reused"], connected_api.credits_charged) == (3, 15)


def test_overwrite_replaces_the_old_image(connected_api: Sandbox, bucket: Bucket) -> None:
    dag = dag_that_draws(output_path=bucket.url, seed=1, overwrite=True)
    first, second = dag.run()["draw"], dag.run()["draw"]
    assert first.returned["paths"] == second.returned["paths"]
    assert connected_api.credits_charged == 10
    sidecar = json.loads(bucket.get(bucket.keys[1]))
    assert sidecar["task_id"] == second.returned["task_id"]


@pytest.mark.parametrize("step", ["accept", "finish"])
def test_a_batch_whose_worker_is_killed_continues(
    connected_api: Sandbox, bucket: Bucket, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    crash_once(monkeypatch, Ledger, step, after=True)
    end = batch_into(f"{bucket.url}/x", max_in_flight=1).run()["draw"]
    assert end.state == "success"
    assert connected_api.credits_charged == 15
    assert [row["status"] for row in manifest(bucket, "x/manifest.jsonl")] == ["SUCCESS"] * 3
    assert not [key for key in bucket.keys if "/." in key]


def test_an_operator_whose_worker_is_killed_while_storing_does_not_pay_again(
    connected_api: Sandbox, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The image is stored by then, its sidecar is not.
    crash_once(monkeypatch, image_pairs, "create_json")
    end = dag_that_draws(output_path=f"{bucket.url}/x").run()["draw"]
    assert end.state == "success"
    assert (end.tries, connected_api.credits_charged) == (2, 5)
    assert len(bucket.keys) == 2


def test_the_next_try_does_not_submit_a_request_whose_outcome_is_unknown(
    connected_api: Sandbox, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    crash_once(monkeypatch, Ledger, "intend", after=True)
    end = batch_into(f"{bucket.url}/x", requests=["A fox"]).run()["draw"]
    assert "may have been accepted" in manifest(bucket, "x/manifest.jsonl")[0]["message"]
    assert (end.state, connected_api.credits_charged) == ("failed", 0)


def test_a_refused_prompt_is_recorded_for_the_next_try(connected_api: Sandbox, bucket: Bucket) -> None:
    end = batch_into(f"{bucket.url}/x", requests=["Fog [policy]", "A hare"], max_failures=1).run()["draw"]
    assert (end.state, end.returned["failed"]) == ("success", 1)
    assert [row["status"] for row in manifest(bucket, "x/manifest.jsonl")] == ["FAILED", "SUCCESS"]
    records = [key for key in bucket.keys if key.startswith("x/.submission-")]
    assert [json.loads(bucket.get(key)).get("end") for key in records].count("refused") == 1
    assert {bucket.content_type(key) for key in records} == {"application/json"}


@pytest.mark.parametrize("into", [dag_that_draws, batch_into], ids=["operator", "batch"])
@pytest.mark.parametrize(
    ("right", "named"), [("list", "s3:ListBucket"), ("read", "s3:GetObject"), ("write", "s3:PutObject")]
)
def test_a_missing_permission_is_reported_in_one_sentence_and_nothing_is_paid(
    connected_api: Sandbox, bucket: Bucket, into: Any, right: str, named: str
) -> None:
    url = f"{bucket.url_without(right)}/x"
    dag = into(output_path=url) if into is dag_that_draws else into(url)
    sentence = last_error(dag.run()["draw"])
    assert url in sentence
    assert named in sentence
    assert "\n" not in sentence
    assert connected_api.submissions == []


@pytest.mark.parametrize("into", [dag_that_draws, batch_into], ids=["operator", "batch"])
def test_images_are_stored_and_reused_without_permission_to_delete(
    connected_api: Sandbox, bucket: Bucket, into: Any
) -> None:
    url = f"{bucket.url_without('delete')}/x"
    dag = into(output_path=url, seed=1) if into is dag_that_draws else into(url)
    first = dag.run()["draw"]
    assert (first.state, first.tries) == ("success", 1)
    paid = connected_api.credits_charged
    second = dag.run()["draw"]
    assert (second.state, second.tries, connected_api.credits_charged) == ("success", 1, paid)


@pytest.mark.parametrize("into", [dag_that_draws, batch_into], ids=["operator", "batch"])
def test_a_misspelt_bucket_is_refused_at_the_first_try_and_not_created(
    connected_api: Sandbox, bucket: Bucket, into: Any
) -> None:
    url = "s3://s3@misspelt/x"
    dag = into(output_path=url) if into is dag_that_draws else into(url)
    end = dag.run()["draw"]
    assert end.tries == 1
    assert "the bucket 'misspelt' does not exist" in last_error(end)
    assert connected_api.submissions == []
    assert "misspelt" not in [found["Name"] for found in bucket.server.client().list_buckets()["Buckets"]]


def test_a_users_own_manifest_is_not_replaced(connected_api: Sandbox, bucket: Bucket) -> None:
    bucket.put("x/manifest.jsonl", b'{"mine": true}\n')
    end = batch_into(f"{bucket.url}/x").run()["draw"]
    assert end.tries == 1
    assert "manifest.jsonl is not the manifest of a batch" in last_error(end)
    assert bucket.get("x/manifest.jsonl") == b'{"mine": true}\n'
    assert connected_api.submissions == []


def test_a_file_of_requests_is_read_from_a_bucket(connected_api: Sandbox, bucket: Bucket) -> None:
    bucket.put("in put/prompts #1.jsonl", '{"prompt": "狐"}\n'.encode())
    requests = f"{bucket.url}/in put/prompts #1.jsonl"
    end = batch_into(f"{bucket.url}/out", requests=requests).run()["draw"]
    assert (end.state, end.returned["images"]) == ("success", 1)
    assert [submission.request["prompt"] for submission in connected_api.submissions] == ["狐"]
