"""The stores of submissions: Airflow's own, a file beside the images, or none."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import ObjectStoragePath
from fsspec.implementations.local import LocalFileSystem

from airflow_provider_qwenimage.contract import GenerateRequest
from airflow_provider_qwenimage.exceptions import QwenImageSubmissionUnknownError, QwenImageTaskFailedError
from airflow_provider_qwenimage.rules.made_by import variant_of
from airflow_provider_qwenimage.rules.submissions import Resume, Stop, Submit
from airflow_provider_qwenimage.storage.paths import open_output_path
from airflow_provider_qwenimage.tasks.ledger import open_ledger
from airflow_provider_qwenimage.tasks.stores import FileStore, NoStore, Store, TaskStateStore
from tests.ledgers import REQUEST, TaskStates, opened, submitted
from tests.stores import attach

only_with_task_states = pytest.mark.airflow_feature("killed worker, no `output_path`", "the retry resumes")


def folder_of(path: Path) -> ObjectStoragePath:
    return open_output_path(f"file://{path}")


def ti(**fields: Any) -> SimpleNamespace:
    identity = {"dag_id": "foxes", "run_id": "manual__1", "task_id": "draw", "map_index": -1}
    return SimpleNamespace(**{**identity, "try_number": 1, "max_tries": 2} | fields)


def context_of(states: TaskStates | None = None, **fields: Any) -> Any:
    return {"ti": ti(**fields)} | ({} if states is None else {"task_state_store": states})


def files(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file())


def test_the_file_is_hidden_contains_no_secret_and_is_removed_when_the_submission_is_finished(tmp_path: Path) -> None:
    ledger = open_ledger(context_of(), folder_of(tmp_path), durable=True)
    assert files(tmp_path) == []
    ledger.intend(REQUEST)
    (file,) = files(tmp_path)
    assert file.parent == tmp_path
    assert file.name.startswith(".submission-")
    assert "A red fox" in file.read_text()
    assert "callback" not in file.read_text()
    assert "secret" not in file.read_text()
    ledger.accept("n43")
    assert files(tmp_path) == [file]
    assert "n43" in file.read_text()
    ledger.finish()
    assert files(tmp_path) == []
    ledger.finish()


def test_each_task_instance_uses_one_file_for_all_of_its_tries(tmp_path: Path) -> None:
    instances: list[dict[str, Any]] = [
        {},
        {"dag_id": "cats"},
        {"run_id": "manual__2"},
        {"task_id": "paint"},
        {"map_index": 0},
        {"map_index": 1},
        # Joined without a separator, these ids equal those of the first instance.
        {"dag_id": "foxesm", "run_id": "anual__1"},
    ]
    for number, instance in enumerate(instances, start=1):
        for later in ({}, {"try_number": 2}, {"try_number": 3, "max_tries": 7}):
            open_ledger(context_of(**instance | later), folder_of(tmp_path), durable=True).intend(REQUEST)
            assert len(files(tmp_path)) == number


def test_the_next_try_of_a_task_instance_finds_its_own_submission(tmp_path: Path) -> None:
    first = open_ledger(context_of(map_index=3), folder_of(tmp_path), durable=True)
    first.intend(REQUEST)
    first.accept("n43")
    again = open_ledger(context_of(map_index=3, try_number=2), folder_of(tmp_path), durable=True)
    assert isinstance(again.next_step(REQUEST), Resume)
    cleared = open_ledger(context_of(map_index=3, try_number=2, max_tries=4), folder_of(tmp_path), durable=True)
    assert cleared.is_cleared
    assert isinstance(cleared.next_step(REQUEST), Resume)
    for other in (context_of(map_index=2), context_of(map_index=-1)):
        assert open_ledger(other, folder_of(tmp_path), durable=True).next_step(REQUEST) == Submit()


@pytest.mark.parametrize(
    ("has_states", "has_folder", "durable", "expected"),
    [
        (True, True, True, TaskStateStore),
        (True, False, True, TaskStateStore),
        (False, True, True, FileStore),
        (False, False, True, NoStore),
        (True, True, False, NoStore),
        (False, True, False, NoStore),
    ],
)
def test_airflows_own_store_takes_precedence_over_a_file_and_a_file_over_none(
    tmp_path: Path, has_states: bool, has_folder: bool, durable: bool, expected: type[Store]
) -> None:
    context = context_of(TaskStates() if has_states else None)
    ledger = open_ledger(context, folder_of(tmp_path) if has_folder else None, durable=durable)
    assert type(ledger._store) is expected
    assert ledger.remembers == (expected is not NoStore)


@pytest.mark.parametrize(("map_index", "variant"), [(-1, 0), (0, 0), (1, 1), (41, 41), (None, 0)])
def test_the_variant_of_a_task_is_its_map_index(map_index: int | None, variant: int) -> None:
    assert variant_of(ti(map_index=map_index)) == variant
    ledger = open_ledger(context_of(map_index=map_index), None, durable=False)
    ledger.intend(REQUEST)
    assert ledger._record is not None
    assert ledger._record.fingerprint == REQUEST.fingerprint(variant)


class JsonStore(NoStore):
    """Stores a record as JSON, as Airflow's database does."""

    content: str | None = None

    def read(self) -> object:
        return None if self.content is None else json.loads(self.content)

    def write(self, value: dict[str, Any]) -> None:
        self.content = json.dumps(value)


@pytest.mark.parametrize("letter", ["a", "狐", "🦊", "\x01", '"'], ids=ascii)
def test_a_record_of_the_longest_prompt_fits_the_smallest_column(letter: str) -> None:
    request = GenerateRequest(prompt="a" + letter * 1999, seed=2**63 - 1)
    store = JsonStore()
    ledger = opened(store)
    ledger.intend(request)
    ledger.accept("n" * 200)
    ledger.fail(QwenImageTaskFailedError("no " * 3000))
    assert store.content is not None
    # MySQL's TEXT.
    assert len(store.content.encode()) < 65_535
    assert isinstance(opened(store, 2).next_step(request), Submit)


def assert_stops_until_a_clear(store: Store) -> None:
    for try_number in (1, 2):
        step = opened(store, try_number).next_step(REQUEST)
        assert isinstance(step, Stop)
        assert isinstance(step.error, QwenImageSubmissionUnknownError)
    assert isinstance(opened(store, 3, 4).next_step(REQUEST), Submit)


UNREADABLE = {
    "empty": b"",
    "cut off": b'{"image_task_id": "n4',
    "no JSON": b"nonsense",
    "no text": b"\xff\xfe",
    "no object": b"[]",
    "null": b"null",
    "an empty object": b"{}",
    "half a record": b'{"image_task_id": "n43", "max_tries": 2}',
}


@pytest.mark.parametrize("content", UNREADABLE.values(), ids=UNREADABLE)
def test_a_file_that_cannot_be_read_stops_until_a_clear(tmp_path: Path, content: bytes) -> None:
    (tmp_path / ".submission-0.json").write_bytes(content)
    assert_stops_until_a_clear(FileStore(folder_of(tmp_path) / ".submission-0.json"))


@only_with_task_states
@pytest.mark.parametrize("value", ["n43", 5, True, [], ["n43"], {}, {"image_task_id": "n43"}], ids=repr)
def test_a_task_state_that_is_not_a_record_stops_until_a_clear(value: object) -> None:
    states = TaskStates()
    states.set("qwenimage_submission", value)
    assert_stops_until_a_clear(TaskStateStore(states))


@pytest.mark.parametrize(
    "invalid",
    [{"max_tries": "2"}, {"request": 5}, {"request": {"prompt": "a", "style": "oil"}}, {"failure": False}],
    ids=repr,
)
def test_a_record_with_invalid_values_stops_until_a_clear(tmp_path: Path, invalid: dict[str, Any]) -> None:
    file = tmp_path / ".submission-0.json"
    store = FileStore(folder_of(tmp_path) / file.name)
    submitted(store)
    file.write_text(json.dumps(json.loads(file.read_text()) | invalid))
    assert_stops_until_a_clear(store)


@only_with_task_states
def test_a_retry_after_a_kill_at_the_end_does_not_pay_again_with_airflows_store() -> None:
    store = TaskStateStore(TaskStates())
    submitted(store).finish()
    assert isinstance(opened(store, 2).next_step(REQUEST), Resume)


@only_with_task_states
def test_a_retry_of_a_cleared_task_after_a_kill_at_the_end_does_not_pay_again_either() -> None:
    store = TaskStateStore(TaskStates())
    submitted(store)
    cleared = opened(store, 2, 4)
    assert isinstance(cleared.next_step(REQUEST), Resume)
    cleared.finish()
    assert isinstance(opened(store, 3, 4).next_step(REQUEST), Resume)


@only_with_task_states
def test_a_recorded_end_is_counted_once() -> None:
    store = TaskStateStore(TaskStates())
    assert submitted(store).finish()
    assert not opened(store, 2).finish()


@only_with_task_states
def test_a_record_that_may_be_paid_never_expires_and_others_expire_by_airflows_setting() -> None:
    from airflow.sdk import NEVER_EXPIRE  # type: ignore[attr-defined,unused-ignore]  # Airflow 3.3 and later

    states = TaskStates()
    ledger = open_ledger(context_of(states), None, durable=True)

    def retention_after(change: Callable[[], object]) -> timedelta | None:
        states.retention.clear()
        change()
        (retention,) = states.retention.values()
        return retention

    # Airflow compares with `is`.
    assert retention_after(lambda: ledger.intend(REQUEST)) is NEVER_EXPIRE
    assert retention_after(ledger.report) is NEVER_EXPIRE
    assert retention_after(lambda: ledger.accept("n43")) is NEVER_EXPIRE
    assert retention_after(ledger.record_failed_resume) is NEVER_EXPIRE
    assert retention_after(ledger.count) is NEVER_EXPIRE
    assert retention_after(ledger.finish) is None
    assert [json.loads(text)["finished"] for text in states.written.values()] == [True]
    again = open_ledger(context_of(states), None, durable=True)
    again.intend(REQUEST)
    assert retention_after(again.withdraw) is None


@only_with_task_states
def test_the_fake_of_airflows_store_has_the_signatures_of_the_real_one() -> None:
    import inspect

    from airflow.sdk.execution_time.context import (  # type: ignore[attr-defined,unused-ignore]
        TaskStateStoreAccessor,
    )

    for name in ("get", "set", "delete"):
        fake, real = (inspect.signature(getattr(kind, name)) for kind in (TaskStates, TaskStateStoreAccessor))
        assert [(p.name, p.kind, p.default) for p in fake.parameters.values()] == [
            (p.name, p.kind, p.default) for p in real.parameters.values()
        ]


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda file: file.symlink_to("/dev/zero")])
def test_a_record_that_is_not_a_file_is_an_error_and_nothing_is_submitted(
    tmp_path: Path, make: Callable[[Path], object]
) -> None:
    make(tmp_path / ".submission-1.json")
    store = FileStore(folder_of(tmp_path) / ".submission-1.json")
    with pytest.raises(OSError, match=r"cannot be read, so nothing was submitted: .*move it away"):
        store.read()


def test_a_huge_record_is_read_as_an_empty_one(tmp_path: Path) -> None:
    with (tmp_path / ".submission-1.json").open("wb") as stream:
        stream.truncate(4 * 1024**3)
    assert FileStore(folder_of(tmp_path) / ".submission-1.json").read() == {}


def test_a_record_that_cannot_be_deleted_is_overwritten(tmp_path: Path) -> None:
    class DiskWithoutDeletion(LocalFileSystem):
        cachable = False

        def rm_file(self, path: str) -> None:
            raise PermissionError(path)

    folder = ObjectStoragePath(f"{attach(DiskWithoutDeletion(), 'file')}{tmp_path}")
    store = FileStore(folder / ".submission-1.json")
    store.write({"finished": False})
    store.settle({"finished": True})
    assert store.read() == {"finished": True}
    store.erase()
    assert store.read() is None
