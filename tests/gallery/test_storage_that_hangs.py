"""A storage that never responds, or a file that never ends, affects only its DAG; other pages keep responding."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import ObjectStoragePath

from airflow_provider_qwenimage import QwenImageBatchOperator
from airflow_provider_qwenimage.plugin import manifests, runs
from airflow_provider_qwenimage.plugin.runs import RUNS
from airflow_provider_qwenimage.plugin.storage_access import (
    RefusedError,
    open_recorded,
    read_file,
    storage_of,
    version_of,
)
from airflow_provider_qwenimage.plugin.time_limits import BusyError, Shares, TimeLimitedReads
from tests.events import wait_until
from tests.gallery.airflow_server import Server
from tests.gallery.conftest import Shown
from tests.gallery.test_access import copied, image, push
from tests.integration.dag_runs import TestDag, dag_that_draws
from tests.stores import MemoryStore, WatchedStore, attach


class SilentStore(WatchedStore):
    """Does not respond until it may."""

    def __init__(self, protocol: str) -> None:
        super().__init__(protocol)
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.asked = threading.Semaphore(0)

    def before_a_read(self) -> None:
        self.asked.release()
        assert self.may_answer.wait(200)


@pytest.fixture
def silent() -> Iterator[SilentStore]:
    store = SilentStore("s3")
    yield store
    store.may_answer.set()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch, silent: SilentStore) -> TimeLimitedReads:
    read = runs.READS.run

    def run(dag_id: str, storage: str, function: Callable[[], Any], deadline: float | None = None) -> Any:
        # Only while the store never answers: others need longer on a busy machine.
        is_silent = storage.startswith("s3") and not silent.may_answer.is_set()
        return read(dag_id, storage, function, time.monotonic() + 0.2 if is_silent else deadline)

    monkeypatch.setattr(runs.READS, "run", run)
    return runs.READS


@pytest.fixture(scope="module")
def foxes(show: Callable[[TestDag], Shown], tmp_path_factory: pytest.TempPathFactory) -> Shown:
    return show(dag_that_draws(output_path=str(tmp_path_factory.mktemp("foxes")), prompt="A fox", seed=1))


def forget() -> None:
    manifests._cache.clear()
    RUNS._cache.clear()


def test_a_storage_that_never_responds_affects_only_its_dag_and_is_read_again_later(
    server: Server, show: Callable[[TestDag], Shown], foxes: Shown, silent: SilentStore, impatient: TimeLimitedReads
) -> None:
    folder = f"{attach(silent, 's3')}bucket/images"
    dag = TestDag()
    with dag:
        QwenImageBatchOperator(task_id="draw", requests=["An owl"], output_path=folder, poll_interval=0.05)
    owls = show(dag)
    forget()
    silent.may_answer.clear()
    problems = []
    for _ in range(6):
        forget()
        problems.append(server.get(f"{owls.path}/data").json()["batches"][0]["problem"])
    assert "did not respond within" in problems[0]
    assert "does not respond" in problems[-1]
    assert impatient.abandoned == 4
    # Refused without a thread more.
    with pytest.raises(RefusedError, match="does not respond"):
        impatient.run(owls.dag_id, "elsewhere", lambda: None)
    # The others go on, and so does the page of all of them.
    assert server.get(image(foxes)).status_code == 200
    assert server.get(f"{foxes.path}/data").json()["items"][0]["status"] == "done"
    listed = server.get("/qwenimage/data?limit=200").json()
    assert foxes.dag_id in {item["dag_id"] for item in listed["items"]}
    assert server.get("/api/v2/monitor/health").status_code == 200
    silent.may_answer.set()
    wait_until(lambda: impatient.abandoned == 0, "the threads that were given up")
    forget()
    (item,) = server.get(f"{owls.path}/data").json()["items"]
    assert item["status"] == "done"
    assert server.get(item["thumbnail"]).status_code == 200


def test_no_session_is_open_while_storage_is_read(
    server: Server, show: Callable[[TestDag], Shown], silent: SilentStore
) -> None:
    from airflow import settings

    folder = f"{attach(silent, 's3')}bucket/images"
    hares = show(dag_that_draws(output_path=folder, prompt="A hare", seed=1))
    forget()
    while silent.asked.acquire(blocking=False):
        pass
    silent.may_answer.clear()
    answers: list[int] = []
    asking = threading.Thread(target=lambda: answers.append(server.get(image(hares)).status_code))
    asking.start()
    assert silent.asked.acquire(timeout=60)
    pool: Any = settings.engine.pool
    assert not hasattr(pool, "checkedout") or pool.checkedout() == 0
    silent.may_answer.set()
    asking.join()
    assert answers == [200]


@pytest.mark.parametrize("kind", ["pipe", "link to a pipe", "device", "link to a device", "socket", "folder"])
@pytest.mark.parametrize("what", ["image", "sidecar"])
def test_only_regular_files_are_opened(server: Server, foxes: Shown, tmp_path: Path, kind: str, what: str) -> None:
    copy = copied(foxes, tmp_path)
    target = copy if what == "image" else copy.with_suffix(".json")
    target.unlink()
    make_odd(target, kind)
    returned = foxes.run["draw"].returned
    push(foxes, "return_value", returned | {"paths": [str(copy)]})
    try:
        for part in ("", "/thumbnail", "/details"):
            answer = server.get(image(foxes, part))
            if part != "/details" or what == "sidecar":
                assert answer.status_code == 404
                assert "not a regular file" in answer.json()["detail"]
        assert runs.READS.abandoned == 0
    finally:
        push(foxes, "return_value", returned)


def make_odd(target: Path, kind: str) -> None:
    if kind == "folder":
        target.mkdir()
    elif kind == "socket":
        import socket

        # A name of a socket may not be long.
        here = Path.cwd()
        os.chdir(target.parent)
        try:
            with socket.socket(socket.AF_UNIX) as made:
                made.bind(target.name)
        finally:
            os.chdir(here)
    elif kind == "pipe":
        os.mkfifo(target)
    elif kind == "link to a pipe":
        os.mkfifo(target.with_name("pipe"))
        target.symlink_to("pipe")
    else:
        target.symlink_to("/dev/zero" if kind == "link to a device" else "/dev/full")


def test_a_manifest_that_is_a_pipe_is_refused(server: Server, show: Callable[[TestDag], Shown], tmp_path: Path) -> None:
    dag = TestDag()
    with dag:
        QwenImageBatchOperator(task_id="draw", requests=["An owl"], output_path=str(tmp_path), poll_interval=0.05)
    owls = show(dag)
    (tmp_path / "manifest.jsonl").unlink()
    os.mkfifo(tmp_path / "manifest.jsonl")
    forget()
    assert "not a regular file" in server.get(f"{owls.path}/data").json()["batches"][0]["problem"]


def test_no_more_of_a_file_is_read_than_its_sidecar_states(tmp_path: Path) -> None:
    huge = tmp_path / "huge.png"
    with huge.open("wb") as stream:
        stream.truncate(3 * 1024**3)
    content = read_file(ObjectStoragePath(str(huge)), 100)
    assert content is not None
    assert len(content) == 101


def test_a_small_sidecar_beside_a_huge_file_is_refused(server: Server, foxes: Shown, tmp_path: Path) -> None:
    copy = copied(foxes, tmp_path)
    with copy.open("r+b") as stream:
        stream.truncate(3 * 1024**3)
    returned = foxes.run["draw"].returned
    push(foxes, "return_value", returned | {"paths": [str(copy)]})
    try:
        assert "changed since the image was verified" in server.get(image(foxes)).json()["detail"]
        sidecar = copy.with_suffix(".json")
        described = json.loads(sidecar.read_text())
        for size in (3 * 1024**3, 10**31, -1, True, "100", 1e30):
            sidecar.write_text(json.dumps(described | {"size_bytes": size}))
            assert server.get(image(foxes)).status_code == 404
        with sidecar.open("r+b") as stream:
            stream.truncate(1024**3)
        assert "no readable sidecar" in server.get(image(foxes)).json()["detail"]
    finally:
        push(foxes, "return_value", returned)


@pytest.mark.parametrize("pixels", [(13_370, 13_370), (5000, 5000)])
def test_an_image_of_too_many_pixels_is_not_decoded(
    server: Server, foxes: Shown, tmp_path: Path, pixels: tuple[int, int]
) -> None:
    from PIL import Image

    copy = copied(foxes, tmp_path)
    bomb = copy.with_suffix(".png")
    with Image.new("1", pixels) as picture:
        picture.save(bomb)
    content = bomb.read_bytes()
    described = json.loads(copy.with_suffix(".json").read_text())
    changed = {"image": bomb.name, "sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}
    bomb.with_suffix(".json").write_text(json.dumps(described | changed))
    returned = foxes.run["draw"].returned
    push(foxes, "return_value", returned | {"paths": [str(bomb)]})
    try:
        for part in ("", "/thumbnail"):
            answer = server.get(image(foxes, part))
            assert answer.status_code == 404
            assert answer.json()["detail"].startswith(("This image has more than", "This file is not an image"))
    finally:
        push(foxes, "return_value", returned)


def test_abandoned_threads_are_limited_for_each_dag_and_storage() -> None:
    reads = TimeLimitedReads(60, most_of_dag=2, most_of_storage=3, most=4)
    end = threading.Event()

    def fails(dag_id: str, storage: str, message: str) -> None:
        with pytest.raises(RefusedError, match=message):
            reads.run(dag_id, storage, lambda: end.wait(100), time.monotonic() + 0.01)

    for _ in range(2):
        fails("a", "disk", "did not respond")
    fails("a", "other disk", "does not respond")
    fails("b", "disk", "did not respond")
    fails("c", "disk", "does not respond")
    assert reads.run("c", "s3", lambda: 5) == 5
    fails("c", "s3", "did not respond")
    fails("d", "gs", "does not respond")
    assert reads.abandoned == 4
    end.set()
    wait_until(lambda: reads.abandoned == 0, "the threads")
    assert reads.run("a", "disk", lambda: 6) == 6


def test_a_read_ends_at_the_deadline_of_its_page() -> None:
    reads = TimeLimitedReads(100)
    end = threading.Event()
    with pytest.raises(RefusedError, match="did not respond"):
        reads.run("a", "disk", lambda: end.wait(100), time.monotonic() + 0.01)
    with pytest.raises(RefusedError, match="too slow"):
        reads.run("a", "disk", lambda: 1, time.monotonic() - 1)
    end.set()


def test_an_error_of_a_read_is_raised_in_the_waiting_thread() -> None:
    with pytest.raises(FileNotFoundError):
        TimeLimitedReads(10).run("a", "disk", lambda: Path("/nothing/here").stat())


def test_a_dag_has_its_share_of_the_threads() -> None:
    async def run() -> None:
        shares = Shares(3, of_dag=2, most_waiting=4)
        end = threading.Event()
        foxes = [asyncio.create_task(shares.run("foxes", lambda: end.wait(100))) for _ in range(4)]
        await asyncio.sleep(0)
        assert await shares.run("hares", lambda: 1) == 1
        with pytest.raises(BusyError):
            await shares.run("foxes", lambda: 1)
        end.set()
        await asyncio.gather(*foxes)
        assert await shares.run("foxes", lambda: 2) == 2
        assert shares._own == {}

    asyncio.run(run())


def test_a_storage_that_cannot_be_connected_to_does_not_block_others(monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow.sdk.io import fs

    end, asked = threading.Event(), threading.Event()

    def hang(conn_id: str, options: Any) -> Any:
        asked.set()
        end.wait(100)
        raise ConnectionError

    known: Any = fs._register_filesystems()
    monkeypatch.setitem(known, "gs", hang)
    monkeypatch.setitem(known, "abfs", lambda conn_id, options: MemoryStore("abfs"))
    reads = TimeLimitedReads(50)
    with pytest.raises(RefusedError, match="did not respond"):
        reads.run("owls", "silent", lambda: open_recorded("gs://silent@bucket/a.png"), time.monotonic() + 0.1)
    assert asked.wait(60)
    assert reads.run("foxes", "sound", lambda: open_recorded("abfs://sound@bucket/a.png")).name == "a.png"
    end.set()


@pytest.mark.parametrize(
    ("path", "storage"),
    [
        ("s3://conn@bucket/a/b.png", "s3://conn@bucket"),
        ("S3://Conn@Bucket/c.png", "s3://conn@bucket"),
        ("/mnt/images/a/b.png", "/mnt/images"),
        ("file:///mnt/images/a/b.png", "/mnt/images"),
        ("/a.png", ""),
    ],
)
def test_files_of_one_bucket_or_mount_are_one_storage(path: str, storage: str) -> None:
    assert storage_of(path) == storage


def test_a_file_that_is_written_has_another_version(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_text("1")
    before = version_of(ObjectStoragePath(str(file)))
    assert before == version_of(ObjectStoragePath(str(file)))
    file.write_text("22")
    assert before != version_of(ObjectStoragePath(str(file)))


_PROCESS = """
import sys, threading
from airflow_provider_qwenimage.plugin.storage_access import RefusedError
from airflow_provider_qwenimage.plugin.time_limits import TimeLimitedReads
try:
    TimeLimitedReads(0.01).run("a", "disk", lambda: threading.Event().wait())
except RefusedError:
    print("given up")
"""


def test_a_process_exits_although_a_read_hangs() -> None:
    ended = subprocess.run([sys.executable, "-c", _PROCESS], capture_output=True, text=True, timeout=100, check=True)
    assert ended.stdout.strip().endswith("given up")
