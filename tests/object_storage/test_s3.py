"""Storage on a real S3 server, through an Airflow connection."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from airflow.providers.common.compat.sdk import ObjectStoragePath

from airflow_provider_qwenimage.batch.request_files import open_requests
from airflow_provider_qwenimage.storage import files as storage
from airflow_provider_qwenimage.storage.paths import check_storing, is_empty, open_output_path
from airflow_provider_qwenimage.tasks.stores import FolderStore
from tests.s3_server import Bucket

# Characters that keys may contain, and that have a meaning in URLs.
ODD_FOLDERS = [
    "a folder",
    "50%",
    "a%20b",
    "a#b/c",
    "what?/for",
    "a+b",
    "狐/🦊",
    "é/é",
    "a//b",
    "/a",
    "[x]",
    "a@b",
    "a:b&c=d",
]


@pytest.mark.parametrize("end", ["", "/", "/new/prefix", "/new/prefix/", "//new//prefix"])
def test_a_new_prefix_works_as_a_folder(bucket: Bucket, end: str) -> None:
    folder = open_output_path(bucket.url + end)
    assert is_empty(folder) is (end.strip("/") != "") or bucket.keys == []
    storage.put_json({"a": 1}, folder / "a.json")
    assert not is_empty(folder)
    assert len(bucket.keys) == 1
    assert storage.read_json(folder / "a.json") == {"a": 1}


@pytest.mark.parametrize("odd", ODD_FOLDERS)
def test_a_folder_may_have_any_name(bucket: Bucket, odd: str) -> None:
    folder = open_output_path(f"{bucket.url}/{odd}")
    storage.put_bytes(b"x", folder / "fox.png")
    assert bucket.keys == [f"{odd}/fox.png"]
    # The next task and the gallery open the path that is returned and pushed.
    again = ObjectStoragePath(str(folder / "fox.png"))
    assert str(again) == f"{bucket.url}/{odd}/fox.png"
    assert storage.read_bytes(again) == b"x"
    storage.remove_file(again)
    assert bucket.keys == []
    assert is_empty(folder)


@pytest.mark.parametrize(
    ("name", "content_type"),
    [
        ("fox.jpg", "image/jpeg"),
        ("fox.png", "image/png"),
        ("fox.webp", "image/webp"),
        ("fox.json", "application/json"),
        (".submission-1.json", "application/json"),
        ("manifest.jsonl", "application/x-ndjson"),
        ("rows.csv", "text/csv; charset=utf-8"),
        ("notes.html", "text/html"),
        ("something", "application/octet-stream"),
    ],
)
def test_a_browser_gets_the_content_type_of_a_file(
    bucket: Bucket, tmp_path: Path, name: str, content_type: str
) -> None:
    folder = open_output_path(bucket.url)
    storage.put_bytes(b"x", folder / name)
    assert bucket.content_type(name) == content_type
    (tmp_path / "rows.jsonl").write_bytes(b"y")
    storage.put_file(tmp_path / "rows.jsonl", folder / name)
    assert bucket.content_type(name) == content_type


def test_a_bucket_that_does_not_exist_is_never_created(bucket: Bucket) -> None:
    with pytest.raises(
        ValueError, match=r"output_path is 's3://s3@misspelt/new', and the bucket 'misspelt' does not exist"
    ):
        open_output_path("s3://s3@misspelt/new")
    names = [found["Name"] for found in bucket.server.client().list_buckets()["Buckets"]]
    assert "misspelt" not in names


def test_a_deleted_bucket_is_not_created_again(bucket: Bucket) -> None:
    folder = open_output_path(f"{bucket.url}/x")
    bucket.server.client().delete_bucket(Bucket=bucket.name)
    with pytest.raises(FileNotFoundError, match=r"its bucket or container does not exist"):
        storage.put_json({}, folder / "a.json")
    with pytest.raises(ValueError, match=r"its bucket or container does not exist"):
        check_storing(folder)


@pytest.mark.parametrize("output_path", ["s3://", "s3://s3@", "s3://s3@/x", "s3:///x", "s3://s3@No_Such*Bucket/x"])
def test_an_invalid_bucket_name_is_a_bad_argument(bucket: Bucket, output_path: str) -> None:
    with pytest.raises((ValueError, OSError), match=r"output_path|Check the path"):
        open_output_path(output_path)


@pytest.mark.parametrize("end", ["/..", "/../x", "/x/..", "/x/../y"])
def test_a_key_with_double_dots_is_refused(bucket: Bucket, end: str) -> None:
    with pytest.raises(ValueError, match=r"object stores do not resolve `\.\.`"):
        open_output_path(bucket.url + end)
    assert bucket.keys == []


def test_the_error_without_the_right_to_list_names_the_path_and_the_right(bucket: Bucket) -> None:
    url = f"{bucket.url_without('list')}/images"
    with pytest.raises(PermissionError) as raised:
        open_output_path(url)
    text = str(raised.value)
    assert text.startswith(f"{url} cannot be listed: access was denied")
    assert "connection 's3_without_list' the right to list files there (s3:ListBucket)" in text


@pytest.mark.parametrize(("right", "action"), [("read", "s3:GetObject"), ("write", "s3:PutObject")])
def test_the_error_without_another_right_names_the_path_and_the_right(bucket: Bucket, right: str, action: str) -> None:
    folder = open_output_path(bucket.url_without(right))
    doing = storage.read_json if right == "read" else partial(storage.put_json, {})
    with pytest.raises(PermissionError, match=rf"{folder}a.json cannot be .*{action}") as raised:
        doing(folder / "a.json")
    assert "\n" not in str(raised.value)


def test_the_check_reports_a_missing_right_to_write(bucket: Bucket) -> None:
    with pytest.raises(PermissionError, match="s3:PutObject"):
        check_storing(open_output_path(bucket.url_without("write")))


def test_the_check_leaves_nothing_behind_and_sends_two_requests(bucket: Bucket) -> None:
    folder = open_output_path(f"{bucket.url}/x")
    before = len(bucket.requests)
    check_storing(folder, "0123456789abcdef")
    assert [method for method, _, _ in bucket.requests[before:]] == ["PUT", "DELETE"]
    assert bucket.keys == []


def test_without_the_right_to_delete_a_record_stays_and_nobody_else_may_take_its_name(bucket: Bucket) -> None:
    folder = open_output_path(bucket.url_without("delete"))
    check_storing(folder)
    store = FolderStore(folder, "0123456789abcdef")
    assert store.create("a-1", {"submission": "mine"})
    with pytest.raises(PermissionError, match="s3:DeleteObject"):
        store.remove("a-1")
    assert not FolderStore(folder, "fedcba9876543210").create("a-1", {"submission": "theirs"})
    assert store.read("a-1") == {"submission": "mine"}


def test_an_endpoint_that_cannot_be_reached_is_reported_with_its_connection(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nothing listens on this port.
    connection = json.loads(bucket.server.connection())
    connection["extra"] |= {"endpoint_url": "http://127.0.0.1:9", "config_kwargs": {"retries": {"max_attempts": 0}}}
    monkeypatch.setenv("AIRFLOW_CONN_S3_AWAY", json.dumps(connection))
    with pytest.raises(OSError, match=r"s3://s3_away@bucket/x cannot be listed .*Airflow connection 's3_away'"):
        open_output_path("s3://s3_away@bucket/x")


def test_a_role_that_cannot_be_assumed_is_reported_with_its_connection(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = json.loads(bucket.server.connection())
    connection["extra"] |= {
        "role_arn": "arn:aws:iam::123456789012:role/foxes",
        # Nothing listens on this port.
        "service_config": {"sts": {"endpoint_url": "http://127.0.0.1:9"}},
        "config_kwargs": {"retries": {"max_attempts": 0}},
    }
    monkeypatch.setenv("AIRFLOW_CONN_S3_ROLE", json.dumps(connection))
    for opening in (open_output_path, open_requests):
        with pytest.raises(OSError, match=r"s3://s3_role@bucket/x.jsonl cannot be opened .*connection 's3_role'"):
            opening("s3://s3_role@bucket/x.jsonl")


def test_a_record_that_cannot_be_read_is_an_error_and_nothing_is_submitted(bucket: Bucket) -> None:
    store = FolderStore(open_output_path(bucket.url_without("read")), "")
    with pytest.raises(PermissionError, match=r"cannot be read, so nothing was submitted.*s3:GetObject"):
        store.read("a-1")


@pytest.mark.parametrize("size", [0, 1, 2 * 1024**2])
def test_a_file_is_read_whole_and_hashed(bucket: Bucket, size: int) -> None:
    content = os.urandom(size)
    bucket.put("x.bin", content)
    file = open_output_path(bucket.url) / "x.bin"
    assert storage.read_bytes(file) == content
    assert storage.sha256_of(file) == hashlib.sha256(content).hexdigest()


def test_no_more_of_a_file_is_read_than_its_limit(bucket: Bucket) -> None:
    bucket.put("huge.json", b'{"a": "' + b"x" * 3 * 1024**2 + b'"}')
    folder = open_output_path(bucket.url)
    assert storage.read_json(folder / "huge.json") == {}
    with pytest.raises(OSError, match="more than the 100 bytes"):
        storage.read_bytes(folder / "huge.json", most=100)
    assert storage.sha256_of(folder / "huge.json", most=100) is None
    assert storage.read_beginning(folder / "huge.json", 4) == b'{"a"'


def test_a_cached_listing_does_not_hide_changes_to_a_file_of_requests(bucket: Bucket) -> None:
    bucket.put("x/a.jsonl", b'"a fox"\n')
    folder = open_output_path(f"{bucket.url}/x")
    # User code may cache the listing like this.
    assert folder.fs.ls(folder.path)
    for name, content in (("a.jsonl", b'"a fox"\n"a hare"\n'), ("b.jsonl", b'"a kite"\n'), ("a.jsonl", b'"a"\n')):
        bucket.put(f"x/{name}", content)
        with open_requests(f"{bucket.url}/x/{name}") as stream:
            assert stream.read() == content


@pytest.mark.parametrize("end", ["", "/"])
@pytest.mark.parametrize("key", ["a.jsonl/part-0", "a.jsonl/"])
def test_a_folder_is_not_read_as_an_empty_file_of_requests(bucket: Bucket, key: str, end: str) -> None:
    bucket.put(key, b"")
    with pytest.raises(ValueError, match="which is not a regular file"):
        open_requests(f"{bucket.url}/a.jsonl{end}")


def test_the_error_without_the_right_to_read_a_file_of_requests_names_the_path_and_the_right(bucket: Bucket) -> None:
    bucket.put("a.jsonl", b'"a fox"\n')
    url = f"{bucket.url_without('read')}/a.jsonl"
    with pytest.raises(PermissionError, match=rf"{url} cannot be read: .*'s3_without_read'.*s3:GetObject"):
        open_requests(url)


_OTHER_PROCESS = """
import sys
from airflow_provider_qwenimage.storage import files as storage
from airflow_provider_qwenimage.storage.paths import check_storing, is_empty, open_output_path
folder = open_output_path(sys.argv[1])
storage.put_json({"by": "the other process"}, folder / "a.json")
storage.put_bytes(b"y" * 20_000_000, folder / "b.png")
"""


def test_a_cached_listing_does_not_hide_files_that_another_process_stores(bucket: Bucket) -> None:
    folder = open_output_path(f"{bucket.url}/x")
    storage.put_bytes(b"y" * 10_000_000, folder / "b.png")
    # User code, an XCom backend or another listing of the folder may cache it like this.
    assert [file.name for file in folder.iterdir()] == ["b.png"]
    assert folder.fs.ls(folder.path, detail=False)
    command = [sys.executable, "-c", _OTHER_PROCESS, str(folder)]
    subprocess.run(command, check=True, timeout=250, capture_output=True)
    assert folder.fs.exists(f"{folder.path}/a.json") is False, (
        "the listing is not cached, so this test would prove nothing"
    )
    assert storage.read_json(folder / "a.json") == {"by": "the other process"}
    assert storage.sha256_of(folder / "b.png") == hashlib.sha256(b"y" * 20_000_000).hexdigest()
    assert storage.read_bytes(folder / "b.png") == b"y" * 20_000_000
    for key in bucket.keys:
        bucket.server.client().delete_object(Bucket=bucket.name, Key=key)
    assert is_empty(folder)
    assert storage.read_json(folder / "a.json") is None


def test_the_check_for_an_empty_folder_sends_one_request_however_many_files_exist(bucket: Bucket) -> None:
    for number in range(20):
        bucket.put(f"x/{number}", b"")
    folder = open_output_path(f"{bucket.url}/x")
    before = len(bucket.requests)
    assert not is_empty(folder)
    ((method, _, query),) = bucket.requests[before:]
    assert method == "GET"
    assert "max-keys=1" in query
