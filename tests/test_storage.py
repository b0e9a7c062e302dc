"""A name in storage appears with all of its content, or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import ObjectStoragePath

import airflow_provider_qwenimage
from airflow_provider_qwenimage.rules.arguments import read_argument
from airflow_provider_qwenimage.rules.made_by import writer_of
from airflow_provider_qwenimage.storage import files as storage
from airflow_provider_qwenimage.storage import local_files
from airflow_provider_qwenimage.storage.paths import check_storing, open_output_path
from tests import killing_writers
from tests.stores import fill_up, interrupt_writes, store_at

PROTOCOLS = ["s3", "gs", "abfs", "sftp", "file"]
ROOT = Path(airflow_provider_qwenimage.__file__).parents[1]


def folder_of(path: Path) -> ObjectStoragePath:
    return open_output_path(f"file://{path}")


def folder_at(protocol: str, path: Path) -> ObjectStoragePath:
    return folder_of(path) if protocol == "file" else store_at(protocol)[1]


def names_in(path: Path) -> list[str]:
    return sorted(file.name for file in path.rglob("*") if file.is_file())


@pytest.mark.parametrize(
    "output_path",
    [
        "a\nb",
        "s3://bucket/a\x00b",
        "file:///a\x1bb",
        "/a/\ud83d",
        "s3://bucket/a?",
        "/a/b#",
        "s3://bucket/a::b/c",
        "file:///a::b",
        "a::b",
        "simplecache::s3://bucket/a",
        "s3://bucket/a?versionId=1/b",
        "s3:bucket/a",
        "S3:bucket",
        "file:a/b",
        "gs:",
    ],
    ids=repr,
)
def test_a_path_that_a_storage_would_change_is_refused(output_path: str) -> None:
    with pytest.raises(ValueError, match="output_path is "):
        read_argument("output_path", output_path)


@pytest.mark.parametrize("url", ["s3://AKIAKEY:secret@bucket/x", "sftp://me:secret@host/x", "gs://:secret@bucket"])
def test_a_password_in_the_url_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ValueError, match="id of an Airflow connection") as raised:
        open_output_path(url)
    assert "secret" not in str(raised.value)
    assert "AKIAKEY" not in str(raised.value)


def test_space_around_a_url_is_ignored(tmp_path: Path) -> None:
    storage.put_json({}, open_output_path(f" file://{tmp_path}/x\n") / "a.json")
    assert (tmp_path / "x" / "a.json").exists()


def strange_file(path: Path, kind: str) -> Path:
    """Make something other than a file under a name."""
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to({"link to a device": "/dev/zero", "link to a folder": path.parent}[kind])
    return path


@pytest.mark.parametrize("kind", ["folder", "pipe", "link to a device", "link to a folder"])
def test_anything_but_a_regular_file_is_neither_read_nor_replaced(tmp_path: Path, kind: str) -> None:
    strange_file(tmp_path / "record.json", kind)
    file = folder_of(tmp_path) / "record.json"
    for do in (
        storage.read_json,
        storage.read_bytes,
        storage.sha256_of,
        storage.check_replaceable,
        partial(storage.put_json, {"a": 1}),
        partial(storage.put_bytes, b"x"),
    ):
        with pytest.raises(OSError, match="move it away.*record.json"):
            do(file)
    assert [file.name for file in tmp_path.iterdir()] == ["record.json"]


def test_a_file_behind_a_link_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file.json").write_text('{"a": 1}')
    (tmp_path / "link.json").symlink_to("file.json")
    (tmp_path / "dangling.json").symlink_to("gone.json")
    folder = folder_of(tmp_path)
    assert storage.read_json(folder / "link.json") == {"a": 1}
    assert storage.read_json(folder / "dangling.json") is None
    for name in ("link.json", "dangling.json"):
        storage.put_json({"b": 2}, folder / name)
        assert storage.read_json(folder / name) == {"b": 2}


def test_no_more_is_read_than_a_file_may_have(tmp_path: Path) -> None:
    # It has no blocks on disk, and would take gigabytes of memory.
    with (tmp_path / "huge.json").open("wb") as stream:
        stream.truncate(4 * 1024**3)
    file = folder_of(tmp_path) / "huge.json"
    tracemalloc.start()
    try:
        assert storage.read_json(file) == {}
        assert storage.sha256_of(file, most=1000) is None
        with pytest.raises(OSError, match="more than the 1000 bytes"):
            storage.read_bytes(file, most=1000)
        assert tracemalloc.get_traced_memory()[1] < 16 * 1024**2
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"a":' * 100_000, b'{"a": ' + b"9" * 5000 + b"}"])
def test_json_that_is_too_deep_or_long_reads_as_an_empty_object(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "record.json").write_bytes(content)
    assert storage.read_json(folder_of(tmp_path) / "record.json") == {}


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="nothing else stops root from writing")
def test_a_folder_that_cannot_be_written_is_reported_before_anything_is_stored() -> None:
    with pytest.raises(OSError, match="/proc/self"):
        check_storing(open_output_path("/proc/self"))


def test_the_check_leaves_nothing_behind(tmp_path: Path) -> None:
    check_storing(folder_of(tmp_path), "0123456789abcdef")
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("output_path", ["", "  ", None, 5, "out/fox.png", "s3://bucket/fox.JPG", "file:///a/b.webp/"])
def test_an_output_path_that_is_not_a_folder_is_refused(output_path: Any) -> None:
    with pytest.raises(ValueError, match=r"output_path is .*it must be the path or URL of a folder"):
        open_output_path(output_path)


def test_the_error_for_a_storage_without_a_provider_advises_to_install_it() -> None:
    with pytest.raises(ValueError, match=r"output_path is 'gopher://bucket/x'.*Install the provider"):
        open_output_path("gopher://bucket/x")


def test_the_folder_is_created(tmp_path: Path) -> None:
    open_output_path(f"file://{tmp_path}/new/folder")
    assert (tmp_path / "new" / "folder").is_dir()


@pytest.mark.parametrize("start", ["", "file:", "file://", "file:///"])
def test_a_plain_path_works_like_a_file_url(tmp_path: Path, start: str) -> None:
    folder = open_output_path(f"{start}{tmp_path}/plain")
    storage.put_json({"a": 1}, folder / "a.json")
    assert json.loads((tmp_path / "plain" / "a.json").read_text()) == {"a": 1}
    assert names_in(tmp_path) == ["a.json"]


@pytest.mark.parametrize("output_path", ["~/images", "images", ".", "file://images", "file://~/images"])
def test_a_path_may_begin_in_the_home_or_working_directory_of_the_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output_path: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    storage.put_json({"a": 1}, open_output_path(output_path) / "a.json")
    assert names_in(tmp_path) == ["a.json"]


@pytest.mark.parametrize("start", ["", "file://"])
@pytest.mark.parametrize("odd", ["x/../new", "link/../new", "../{name}/new", "./new/.", "new/sub/.."])
def test_a_recorded_path_never_contains_dots_that_lead_up(tmp_path: Path, start: str, odd: str) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "link").symlink_to("a")
    folder = open_output_path(f"{start}{tmp_path}/{odd.format(name=tmp_path.name)}")
    storage.put_json({"a": 1}, folder / "a.json")
    assert names_in(tmp_path) == ["a.json"]
    # The gallery refuses paths with `..`.
    assert ".." not in str(folder)


@pytest.mark.parametrize("start", ["", "file://"])
@pytest.mark.parametrize("odd", ["file", "file/x", "link to a file", "dangling", "loop"])
def test_a_path_that_cannot_be_a_folder_is_explained(tmp_path: Path, start: str, odd: str) -> None:
    (tmp_path / "file").write_text("x")
    for name, target in (("link to a file", "file"), ("dangling", "gone"), ("loop", "loop")):
        (tmp_path / name).symlink_to(target)
    with pytest.raises(NotADirectoryError, match=rf"cannot be created.*{tmp_path}/{odd}'"):
        open_output_path(f"{start}{tmp_path}/{odd}")
    assert names_in(tmp_path) == ["file", "link to a file"]


def test_a_home_that_does_not_exist_is_a_bad_argument() -> None:
    with pytest.raises(ValueError, match=r"output_path is '~no-such-user/x'.*Write the whole path"):
        open_output_path("~no-such-user/x")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_stored_file_is_read_replaced_and_removed(protocol: str, tmp_path: Path) -> None:
    file = folder_at(protocol, tmp_path) / ".record.json"
    for content in ({"prompt": "狐 🦊 \x00", "spent": 2.5, "id": None}, {"shorter": True}):
        storage.put_json(content, file)
        assert storage.read_json(file) == content
    storage.remove_file(file)
    assert storage.read_json(file) is None
    storage.remove_file(file)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_hash_of_a_file_covers_all_of_its_bytes(protocol: str, tmp_path: Path) -> None:
    file = folder_at(protocol, tmp_path) / "image.png"
    assert storage.sha256_of(file) is None
    for content in (b"\x00\xff" * 1_000_000, b""):
        (tmp_path / "local").write_bytes(content)
        storage.put_file(tmp_path / "local", file)
        assert storage.sha256_of(file) == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("content", [b"", b"{", b"nonsense", b"\xff\xfe", b"null", b"[]", b"5", b'"text"'])
def test_a_file_without_a_json_object_differs_from_a_missing_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "record.json").write_bytes(content)
    assert storage.read_json(folder_of(tmp_path) / "record.json") == {}


def test_storage_that_cannot_be_read_is_an_error_and_not_an_absent_file(tmp_path: Path) -> None:
    (tmp_path / "record.json").mkdir()
    file = folder_of(tmp_path) / "record.json"
    for read in (storage.read_json, storage.sha256_of):
        with pytest.raises(OSError, match="record.json"):
            read(file)


def test_a_move_that_fails_leaves_nothing_behind() -> None:
    store, folder = store_at("sftp", can_move=False)
    with pytest.raises(PermissionError):
        storage.put_json({"a": 1}, folder / "a.json")
    assert store.store == {}


@pytest.mark.parametrize("protocol", ["s3", "s3a", "gs", "gcs", "abfs", "abfss", "az"])
def test_a_store_of_whole_objects_needs_no_move(protocol: str) -> None:
    store, folder = store_at(protocol, can_move=False)
    storage.put_json({"a": 1}, folder / "a.json")
    assert [Path(name).name for name in store.store] == ["a.json"]


@pytest.mark.parametrize("most", [0, 1, 9, 10, 11, 25, 100])
def test_a_long_file_is_read_and_written_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    monkeypatch.setattr(local_files, "_PIECE_BYTES", 10)
    source, file = tmp_path / "source", folder_of(tmp_path) / "x.bin"
    source.write_bytes(bytes(range(25)))
    storage.put_file(source, file)
    assert Path(file.path).read_bytes() == bytes(range(25))
    assert storage.read_beginning(file, most) == bytes(range(min(most, 25)))


@pytest.mark.parametrize("before", [None, {"first": "version"}])
def test_a_disk_that_fills_up_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: dict[str, Any] | None
) -> None:
    file = folder_of(tmp_path) / "record.json"
    if before is not None:
        storage.put_json(before, file)
    interrupt_writes(monkeypatch, fill_up)
    with pytest.raises(OSError, match=r"No space left.*/record\.json"):
        storage.put_json({"second": "version"}, file)
    assert storage.read_json(file) == before
    assert names_in(tmp_path) == ([] if before is None else ["record.json"])


def test_a_file_is_not_visible_while_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    half_written, may_go_on = threading.Event(), threading.Event()

    def wait_in_the_middle() -> None:
        half_written.set()
        assert may_go_on.wait(100)

    file = folder_of(tmp_path) / "record.json"
    storage.put_json({"version": 1}, file)
    interrupt_writes(monkeypatch, wait_in_the_middle)
    writer = threading.Thread(target=storage.put_json, args=({"version": 2}, file), daemon=True)
    writer.start()
    assert half_written.wait(100)
    assert storage.read_json(file) == {"version": 1}
    assert [name for name in names_in(tmp_path) if not name.startswith(".")] == ["record.json"]
    may_go_on.set()
    writer.join(30)
    assert storage.read_json(file) == {"version": 2}
    assert names_in(tmp_path) == ["record.json"]


def test_concurrent_writers_of_one_name_use_different_hidden_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writers = 2
    meeting = threading.Barrier(writers, timeout=100)
    interrupt_writes(monkeypatch, meeting.wait)
    file = folder_of(tmp_path) / "record.json"
    contents = [{"writer": number, "filler": "x" * 100_000 * (number + 1)} for number in range(writers)]
    threads = [threading.Thread(target=storage.put_json, args=(content, file)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert meeting.n_waiting == 0
    assert not meeting.broken
    assert storage.read_json(file) in contents
    assert names_in(tmp_path) == ["record.json"]


def test_a_writer_that_is_killed_leaves_no_broken_file_under_a_final_name(tmp_path: Path) -> None:
    search = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    killing = subprocess.run(
        [sys.executable, killing_writers.__file__, tmp_path],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(search), "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
        timeout=280,
    )
    report = json.loads(killing.stderr.splitlines()[-1])
    assert report["broken"] == []
    assert report["found"] > 0
    # Some writers must have been killed while writing, or this test would prove nothing.
    assert report["cut_off"] > 0


def test_only_the_half_written_files_of_the_task_itself_are_removed(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    task = {"dag_id": "d", "run_id": "r", "task_id": "t", "map_index": 3, "max_tries": 2}
    mine, other = writer_of(task), writer_of(task | {"map_index": 4})
    assert writer_of(task | {"max_tries": 5}) == mine != other
    for writer in (mine, other):
        (tmp_path / f".a-fox-1234.jpg.{writer}-{'0' * 32}.part").write_text("half")
    for name in (f"a-{mine}.part", f".submission-{mine}.json", "a-fox-1234.jpg"):
        (tmp_path / name).write_text("whole")
    storage.remove_leftovers(folder, mine)
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(
        [f".a-fox-1234.jpg.{other}-{'0' * 32}.part", f".submission-{mine}.json", f"a-{mine}.part", "a-fox-1234.jpg"]
    )


def _write_file(target: ObjectStoragePath) -> None:
    local = Path(target.path).parents[1] / "local"
    local.write_bytes(b"whole")
    storage.put_file(local, target, writer=writer_of({}))


@pytest.mark.parametrize(
    "write",
    [
        _write_file,
        partial(storage.put_bytes, b"whole", writer=writer_of({})),
        partial(storage.create_bytes, b"whole", writer=writer_of({})),
    ],
    ids=["put_file", "put_bytes", "create_bytes"],
)
@pytest.mark.parametrize("removals", [1, 2])
def test_a_file_that_another_process_of_the_task_removes_as_a_leftover_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[ObjectStoragePath], object], removals: int
) -> None:
    (tmp_path / "images").mkdir()
    folder = folder_of(tmp_path / "images")
    sync, left = os.fsync, [*range(removals)]

    def sync_and_remove(descriptor: int) -> None:
        sync(descriptor)
        if left:
            left.pop()
            storage.remove_leftovers(folder, writer_of({}))
            assert names_in(tmp_path / "images") == []

    monkeypatch.setattr(os, "fsync", sync_and_remove)
    write(folder / "x.bin")
    assert not left
    assert {file.name: file.read_bytes() for file in (tmp_path / "images").iterdir()} == {"x.bin": b"whole"}


def test_files_being_written_have_the_names_that_are_removed_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_of(tmp_path)
    left: list[Path] = []
    interrupt_writes(monkeypatch, lambda: left.extend(tmp_path.iterdir()))
    storage.put_json({"a": 1}, folder / "x.json", writer=writer_of({}))
    left[0].write_text("half")
    storage.remove_leftovers(folder, writer_of({}))
    assert not left[0].exists()
    assert (tmp_path / "x.json").exists()
