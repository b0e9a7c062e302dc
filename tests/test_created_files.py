"""A file is created whole, and by one of all who try; a storage that cannot do that is asked for the file first."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import ObjectStoragePath

import airflow_provider_qwenimage
from airflow_provider_qwenimage.storage import files as storage
from airflow_provider_qwenimage.storage.paths import open_output_path
from tests.creating import create_each
from tests.stores import MemoryStore, attach, fill_up, interrupt_writes, store_at

PROTOCOLS = ["s3", "gs", "abfs", "sftp", "file"]
ROOT = Path(airflow_provider_qwenimage.__file__).parents[1]
WRITER = "0123456789abcdef"


def folder_of(path: Path) -> ObjectStoragePath:
    return open_output_path(f"file://{path}")


def folder_at(protocol: str, path: Path) -> ObjectStoragePath:
    return folder_of(path) if protocol == "file" else store_at(protocol)[1]


@pytest.fixture
def no_links(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the local file systems refuse hard links, as FAT and some network file systems do."""

    def link(*names: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted", *names[:1])

    monkeypatch.setattr(os, "link", link)


def check_that_the_first_file_stays(folder: ObjectStoragePath) -> None:
    file = folder / ".record.json"
    assert storage.create_json({"by": "the first"}, file)
    assert not storage.create_json({"by": "the second"}, file)
    assert not storage.create_json({}, file)
    assert storage.read_json(file) == {"by": "the first"}
    # A library repeats a request whose answer it has not got.
    assert storage.create_json({"by": "the first"}, file)
    storage.remove_file(file)
    assert storage.create_json({"by": "the second"}, file)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_only_the_first_file_of_a_name_is_created(protocol: str, tmp_path: Path) -> None:
    check_that_the_first_file_stays(folder_at(protocol, tmp_path))


@pytest.mark.usefixtures("no_links")
def test_a_file_system_without_hard_links_creates_exclusively_as_well(tmp_path: Path) -> None:
    check_that_the_first_file_stays(folder_of(tmp_path))
    assert [file.name for file in tmp_path.iterdir()] == [".record.json"]


@pytest.mark.usefixtures("no_links")
def test_a_full_disk_without_hard_links_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync, calls = os.fsync, []

    def fill_up(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fill_up)
    with pytest.raises(OSError, match=r"No space left.*record\.json"):
        storage.create_json({"a": 1}, folder_of(tmp_path) / "record.json")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number_of_processes", [2, 4])
def test_of_processes_that_create_a_file_at_once_exactly_one_does(tmp_path: Path, number_of_processes: int) -> None:
    files = [tmp_path / f"{number}.json" for number in range(60)]
    with ProcessPoolExecutor(number_of_processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        creating = [
            pool.submit(create_each, f"process {number}", files, number_of_processes)
            for number in range(number_of_processes)
        ]
        created = [future.result(timeout=280) for future in creating]
    for number, file in enumerate(files):
        (winner,) = (f"process {index}" for index, results in enumerate(created) if results[number])
        assert json.loads(file.read_text())["by"] == winner
    # Otherwise the processes have not raced, and this test would prove nothing.
    assert all(any(results) for results in created)
    assert not list(tmp_path.glob("*.part"))


_KILLED_BEFORE_THE_LINK = """
import os, signal, sys
from airflow_provider_qwenimage.storage import files as storage
from airflow_provider_qwenimage.storage.paths import open_output_path
os.link = lambda *names: os.kill(os.getpid(), signal.SIGKILL)
storage.create_json({"a": 1}, open_output_path(sys.argv[1]) / "record.json", writer=sys.argv[2])
"""


def test_a_process_that_is_killed_before_its_file_has_its_name_leaves_nothing_that_counts(tmp_path: Path) -> None:
    search = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    killed = subprocess.run(
        [sys.executable, "-c", _KILLED_BEFORE_THE_LINK, str(tmp_path), WRITER],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(search)},
        capture_output=True,
        timeout=280,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    (left,) = tmp_path.iterdir()
    assert left.name.endswith(".part")
    assert storage.list_names(folder_of(tmp_path), "record") == []
    assert storage.create_json({"b": 2}, folder_of(tmp_path) / "record.json")
    storage.remove_leftovers(folder_of(tmp_path), WRITER)
    assert [file.name for file in tmp_path.iterdir()] == ["record.json"]


def test_a_link_that_is_reported_as_existing_because_it_was_made_twice_counts_as_created(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def link_twice(*names: Any) -> None:
        # NFS repeats a request whose answer it has not got.
        link(*names)
        link(*names)

    monkeypatch.setattr(os, "link", link_twice)
    assert storage.create_json({"a": 1}, folder_of(tmp_path) / "record.json")
    assert [file.name for file in tmp_path.iterdir()] == ["record.json"]


def test_a_disk_that_fills_up_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = folder_of(tmp_path) / "record.json"
    interrupt_writes(monkeypatch, fill_up)
    with pytest.raises(OSError, match=r"No space left.*/record\.json"):
        storage.create_json({"a": 1}, file)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["folder", "pipe", "dangling link"])
def test_anything_but_a_regular_file_is_reported_and_left_alone(tmp_path: Path, kind: str) -> None:
    strange = tmp_path / "record.json"
    if kind == "folder":
        strange.mkdir()
    elif kind == "pipe":
        os.mkfifo(strange)
    else:
        strange.symlink_to("gone.json")
    with pytest.raises(OSError, match="move it away.*record.json"):
        storage.create_json({"a": 1}, folder_of(tmp_path) / "record.json")
    assert [file.name for file in tmp_path.iterdir()] == ["record.json"]


class CloudError(Exception):
    """Like the errors of Google's and Azure's libraries: not an OSError, with the status of the answer."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.code = status


class StoreOfGoogle(MemoryStore):
    """Creates exclusively, as gcsfs does; `faults` are raised first, `stored_first` after the file was stored."""

    __module__ = "gcsfs.core"

    def __init__(self, protocol: str, faults: list[Exception], *, stored_first: bool = False) -> None:
        super().__init__(protocol)
        self.faults, self.stored_first, self.calls = faults, stored_first, 0

    def _pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        self.pipe_file(path, value, mode, **kwargs)

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        self.calls += 1
        if self.faults and not self.stored_first:
            raise self.faults.pop()
        super().pipe_file(path, value, mode)
        if self.faults:
            raise self.faults.pop()


class StoreOfAzure(StoreOfGoogle):
    """Creates exclusively, as adlfs does."""

    __module__ = "adlfs.spec"

    def _pipe_file(self, path: str, value: bytes, overwrite: bool = True, **kwargs: Any) -> None:  # type: ignore[override]
        raise NotImplementedError

    def pipe_file(self, path: str, value: bytes, mode: str = "", overwrite: bool = True, **kwargs: Any) -> None:
        assert isinstance(kwargs.pop("content_settings"), str)
        super().pipe_file(path, value, "overwrite" if overwrite else "create", **kwargs)


class OldStoreOfGoogle(MemoryStore):
    """Like a gcsfs that knows no exclusive creation and passes an unknown argument over."""

    __module__ = "gcsfs.core"

    def _pipe_file(self, path: str, value: bytes, **kwargs: Any) -> None:
        raise NotImplementedError

    def pipe_file(self, path: str, value: bytes, mode: str = "", **kwargs: Any) -> None:
        super().pipe_file(path, value, "overwrite")


@pytest.fixture(autouse=True)
def azure_without_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Provide the one class that adlfs brings."""
    module = type(sys)("azure.storage.blob")
    module.ContentSettings = lambda content_type: content_type  # type: ignore[attr-defined]
    for name in ("azure", "azure.storage"):
        monkeypatch.setitem(sys.modules, name, type(sys)(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)


def in_store(store: MemoryStore) -> ObjectStoragePath:
    return ObjectStoragePath(f"{attach(store, store.protocol)}bucket/images")


@pytest.mark.parametrize(("kind", "protocol"), [(StoreOfGoogle, "gs"), (StoreOfAzure, "abfs")])
def test_a_cloud_storage_creates_exclusively_without_a_look_before(kind: type[StoreOfGoogle], protocol: str) -> None:
    folder = in_store(kind(protocol, []))
    assert storage.creates_exclusively(folder)
    check_that_the_first_file_stays(folder)


@pytest.mark.parametrize(("kind", "protocol"), [(StoreOfGoogle, "gs"), (StoreOfAzure, "abfs")])
@pytest.mark.parametrize("error", [FileExistsError("x"), CloudError("exists", 412), CloudError("lost", 503)])
def test_an_error_after_the_file_was_stored_counts_as_created(
    kind: type[StoreOfGoogle], protocol: str, error: Exception
) -> None:
    folder = in_store(kind(protocol, [error], stored_first=True))
    assert storage.create_json({"a": 1}, folder / "record.json")


def test_a_conflict_with_a_request_that_came_to_nothing_is_tried_again() -> None:
    store = StoreOfGoogle("gs", [CloudError("conflict", 409), CloudError("conflict", 409)])
    assert storage.create_json({"a": 1}, in_store(store) / "record.json")
    assert store.calls == 3


@pytest.mark.parametrize(("status", "calls"), [(409, 5), (500, 1), (403, 1), (404, 1)])
def test_an_error_that_left_no_file_is_raised(status: int, calls: int) -> None:
    store = StoreOfGoogle("gs", [CloudError("no luck", status) for _ in range(9)])
    with pytest.raises(OSError, match=r"record\.json cannot be written.*no luck"):
        storage.create_json({"a": 1}, in_store(store) / "record.json")
    assert store.calls == calls


def test_a_server_that_does_not_know_the_condition_is_asked_without() -> None:
    store = StoreOfGoogle("gs", [CloudError("a header is not implemented", 501)])
    folder = in_store(store)
    assert storage.create_json({"a": 1}, folder / "record.json")
    store.faults = [CloudError("a header is not implemented", 501)]
    assert not storage.create_json({"b": 1}, folder / "record.json")
    assert storage.read_json(folder / "record.json") == {"a": 1}


def test_without_exclusive_creation_the_file_is_read_back() -> None:
    class Busy(MemoryStore):
        def mv(self, path1: str, path2: str, **kwargs: Any) -> None:
            super().mv(path1, path2, **kwargs)
            MemoryStore.pipe_file(self, path2, b'{"by": "another"}')

    folder = in_store(Busy("sftp"))
    assert not storage.creates_exclusively(folder)
    assert not storage.create_json({"by": "this"}, folder / "record.json")


def test_a_library_without_exclusive_creation_looks_first() -> None:
    folder = in_store(OldStoreOfGoogle("gs"))
    assert not storage.creates_exclusively(folder)
    check_that_the_first_file_stays(folder)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_only_the_files_that_begin_with_the_prefix_are_listed(protocol: str, tmp_path: Path) -> None:
    folder = folder_at(protocol, tmp_path)
    assert storage.list_names(folder, ".claim-") == []
    for name in (".claim-2.json", ".claim-1.json", ".other.json", "x.claim-3.json", "sub/.claim-4.json"):
        if protocol == "file":
            (folder / name).parent.mkdir(exist_ok=True)
        storage.put_json({}, folder / name)
    if protocol == "file":
        (tmp_path / ".claim-folder").mkdir()
    assert storage.list_names(folder, ".claim-") == [".claim-1.json", ".claim-2.json"]
    assert storage.list_names(folder / "sub", ".claim-") == [".claim-4.json"]
    assert storage.list_names(folder / "gone", ".claim-") == []


def test_threads_that_create_a_file_at_once_get_one_file(tmp_path: Path) -> None:
    for number in range(40):
        file, ready = folder_of(tmp_path) / f"{number}.json", threading.Barrier(6)
        created: list[bool] = []

        def create(
            index: int, file: Any = file, ready: threading.Barrier = ready, created: list[bool] = created
        ) -> None:
            ready.wait(100)
            created.append(storage.create_json({"by": index}, file))

        threads = [threading.Thread(target=create, args=(index,)) for index in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(100)
        assert sorted(created) == [False] * 5 + [True]


def test_a_file_survives_a_power_failure_with_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync, link, steps = os.fsync, os.link, list[str]()

    def note_sync(descriptor: int) -> None:
        fsync(descriptor)
        steps.append(Path(f"/proc/self/fd/{descriptor}").readlink().suffix or "the folder")

    def note_link(*names: Any) -> None:
        link(*names)
        steps.append("the name")

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "link", note_link)
    storage.create_json({"a": 1}, folder_of(tmp_path) / "record.json")
    assert steps == [".part", "the name", "the folder"]
