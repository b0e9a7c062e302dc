"""A file that several processes change keeps the changes of all of them."""

from __future__ import annotations

import errno
import fcntl
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import ObjectStoragePath

from airflow_provider_qwenimage.choosing.candidates import find_candidates
from airflow_provider_qwenimage.choosing.verdicts import record_verdict
from airflow_provider_qwenimage.rules.choices import new_verdict
from airflow_provider_qwenimage.storage.files import put_json, read_json, remove_file, update_json
from airflow_provider_qwenimage.storage.paths import path_of
from tests.s3_server import Bucket, FailedPut, S3Server

FOLDERS = ["file", "s3"]


@pytest.fixture
def file(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStoragePath:
    """A stored JSON object, in a folder or in a bucket."""
    bucket: Bucket | None = request.getfixturevalue("bucket") if request.param == "s3" else None
    file: ObjectStoragePath = path_of(f"{tmp_path if bucket is None else bucket.url}/a fox #1.json")
    put_json({"of": "the first"}, file)
    return file


@pytest.mark.parametrize("file", FOLDERS, indirect=True)
def test_what_another_process_wrote_meanwhile_is_changed_instead(file: ObjectStoragePath) -> None:
    seen = []

    def change(content: dict[str, Any] | None) -> Mapping[str, Any] | None:
        seen.append(content)
        if len(seen) == 1:
            put_json({"of": "another"}, file)
        return {"after": content}

    update_json(file, change)
    assert seen == [{"of": "the first"}, {"of": "another"}]
    assert read_json(file) == {"after": {"of": "another"}}


@pytest.mark.parametrize("file", FOLDERS, indirect=True)
def test_what_another_process_removed_meanwhile_is_not_written_again(file: ObjectStoragePath) -> None:
    seen = []

    def change(content: dict[str, Any] | None) -> Mapping[str, Any] | None:
        seen.append(content)
        remove_file(file) if content is not None else None
        return None if content is None else {"after": content}

    update_json(file, change)
    assert seen == [{"of": "the first"}, None]
    assert read_json(file) is None


@pytest.mark.parametrize("file", FOLDERS, indirect=True)
def test_a_file_that_always_changes_is_an_error(file: ObjectStoragePath, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("airflow_provider_qwenimage.storage.files._UPDATE_PAUSE_SECONDS", 0)

    def change(content: dict[str, Any] | None) -> Mapping[str, Any] | None:
        assert content is not None
        put_json({"times": content.get("times", 0) + 1}, file)
        return content

    with pytest.raises(OSError, match="replaced each time") as caught:
        update_json(file, change)
    assert caught.value.errno == errno.EBUSY
    content = read_json(file)
    assert content is not None
    assert content["times"] > 1


def test_a_server_without_conditions_gets_the_file(bucket: Bucket, s3_server: S3Server) -> None:
    file: ObjectStoragePath = path_of(f"{bucket.url}/fox.json")
    put_json({"of": "the first"}, file)
    s3_server.failed_puts.append(FailedPut("501 Not Implemented", "NotImplemented"))
    update_json(file, lambda content: {"after": content})
    assert read_json(file) == {"after": {"of": "the first"}}


@pytest.mark.parametrize("has_locks", [True, False])
def test_the_verdicts_of_tasks_that_end_at_the_same_time_are_all_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, has_locks: bool
) -> None:
    if not has_locks:

        def refuse(*_: Any) -> None:
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(fcntl, "flock", refuse)
    image = tmp_path / "fox.png"
    image.write_bytes(b"an image")
    drawn = {"image": image.name, "task_id": "n1", "image_url": "https://cdn.example.com/1.png"}
    image.with_suffix(".json").write_text(json.dumps(drawn | {"sha256": "0" * 64, "fingerprint": "f"}))
    candidates = find_candidates({"task_id": "n1", "status": "SUCCESS", "paths": [str(image)]})
    verdict = new_verdict([1], by=None, at="2026-01-05T09:12:44+00:00", timed_out=True)
    # Without locks, tasks that end at the very same time may lose verdicts.
    tasks = [{"task_id": "choose", "map_index": index} for index in range(8 if has_locks else 1)]
    start = Barrier(len(tasks))

    def record(task: dict[str, Any]) -> None:
        start.wait()
        record_verdict(candidates, verdict, task, "w")

    with ThreadPoolExecutor(len(tasks)) as pool:
        list(pool.map(record, tasks))
    recorded = json.loads(image.with_suffix(".json").read_text())["verdicts"]
    assert sorted(entry["task"]["map_index"] for entry in recorded) == list(range(len(tasks)))
