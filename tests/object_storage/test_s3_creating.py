"""Files are created by exactly one of all who try, on a real S3 server, and listed without the rest of the bucket."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Barrier

import pytest

from airflow_provider_qwenimage.storage import files as storage
from airflow_provider_qwenimage.storage.paths import open_output_path
from tests.s3_server import Bucket, FailedPut


def test_a_new_file_takes_one_request_and_has_its_content_type(bucket: Bucket) -> None:
    folder = open_output_path(f"{bucket.url}/x")
    assert storage.creates_exclusively(folder)
    before = len(bucket.requests)
    assert storage.create_json({"a": 1}, folder / ".record.json")
    assert [method for method, _, _ in bucket.requests[before:]] == ["PUT"]
    assert bucket.content_type("x/.record.json") == "application/json"


def test_only_the_first_file_of_a_name_is_created(bucket: Bucket) -> None:
    file = open_output_path(f"{bucket.url}/x") / ".record.json"
    assert storage.create_json({"by": "the first"}, file)
    assert not storage.create_json({"by": "the second"}, file)
    assert storage.create_json({"by": "the first"}, file)
    assert storage.read_json(file) == {"by": "the first"}


def test_of_writers_at_the_same_time_exactly_one_creates_a_file(bucket: Bucket) -> None:
    writers = 6
    folder = open_output_path(f"{bucket.url}/x")
    with ThreadPoolExecutor(writers) as pool:
        for number in range(10):
            file, ready = folder / f"{number}.json", Barrier(writers)

            def create(writer: int, file: object = file, ready: Barrier = ready) -> bool:
                ready.wait(100)
                return storage.create_json({"by": writer}, file)

            created = list(pool.map(create, range(writers)))
            assert created.count(True) == 1
            assert storage.read_json(file) == {"by": created.index(True)}


@pytest.mark.parametrize("status", ["500 Internal Server Error", "503 Slow Down"])
def test_a_request_that_was_repeated_because_its_answer_was_lost_counts_as_created(bucket: Bucket, status: str) -> None:
    bucket.server.failed_puts.append(FailedPut(status, stored=True))
    folder = open_output_path(f"{bucket.url}/x")
    before = len(bucket.requests)
    assert storage.create_json({"a": 1}, folder / "record.json")
    # The last one reads what the first one has stored.
    assert [method for method, _, _ in bucket.requests[before:]] == ["PUT", "PUT", "GET"]
    assert not storage.create_json({"b": 1}, folder / "record.json")


def test_a_conflict_with_a_request_that_came_to_nothing_is_tried_again(bucket: Bucket) -> None:
    bucket.server.failed_puts += [FailedPut("409 Conflict", code="ConditionalRequestConflict")] * 2
    assert storage.create_json({"a": 1}, open_output_path(f"{bucket.url}/x") / "record.json")


def test_a_server_that_does_not_know_the_condition_is_asked_without(bucket: Bucket) -> None:
    bucket.server.failed_puts.append(FailedPut("501 Not Implemented", code="NotImplemented"))
    assert storage.create_json({"a": 1}, open_output_path(f"{bucket.url}/x") / "record.json")


def test_without_the_right_to_write_nothing_is_created_and_the_right_is_named(bucket: Bucket) -> None:
    with pytest.raises(PermissionError, match="s3:PutObject"):
        storage.create_json({}, open_output_path(bucket.url_without("write")) / "record.json")


def test_a_bucket_that_does_not_exist_is_reported(bucket: Bucket) -> None:
    folder = open_output_path(f"{bucket.url}/x")
    bucket.server.client().delete_bucket(Bucket=bucket.name)
    with pytest.raises(FileNotFoundError, match=r"its bucket or container does not exist"):
        storage.create_json({}, folder / "record.json")


@pytest.mark.parametrize("end", ["", "/", "/x", "/x/", "/a b/狐", "//a//b"])
def test_a_listing_asks_only_for_the_files_with_the_prefix(bucket: Bucket, end: str) -> None:
    folder = open_output_path(bucket.url + end)
    for name in ("claim-2.json", "claim-1.json", "other.json", "claim-3/x.json"):
        storage.put_json({}, folder / name)
    # User code, an XCom backend or another listing of the folder may cache it like this.
    with suppress(FileNotFoundError):
        folder.fs.ls(folder.path)
    bucket.put(next(key for key in bucket.keys if key.endswith("claim-2.json")).replace("claim-2", "claim-4"), b"{}")
    before = len(bucket.requests)
    assert storage.list_names(folder, "claim-") == ["claim-1.json", "claim-2.json", "claim-4.json"]
    ((method, _, query),) = bucket.requests[before:]
    assert method == "GET"
    assert "prefix=" in query
    assert "claim-" in query


def test_a_long_listing_has_all_of_its_pages(bucket: Bucket) -> None:
    for number in range(1003):
        bucket.put(f"x/claim-{number:04}", b"")
    names = storage.list_names(open_output_path(f"{bucket.url}/x"), "claim-")
    assert names == [f"claim-{number:04}" for number in range(1003)]
    assert storage.list_names(open_output_path(f"{bucket.url}/x"), "nothing") == []


def test_a_listing_without_the_right_to_list_names_the_right(bucket: Bucket) -> None:
    folder = open_output_path(bucket.url)
    denied = type(folder)(f"{bucket.url_without('list')}/x")
    with pytest.raises(PermissionError, match="s3:ListBucket"):
        storage.list_names(denied, "claim-")
