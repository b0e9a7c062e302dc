"""Records: no write takes another one back, and of all who claim an image at the same time exactly one may submit."""

from __future__ import annotations

import json
import multiprocessing
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import ObjectStoragePath
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_qwenimage.rules.image_identity import ImageIdentity
from airflow_provider_qwenimage.rules.made_by import description_of, writer_of
from airflow_provider_qwenimage.rules.submission_facts import End, EndKind, Fact, Intent
from airflow_provider_qwenimage.rules.tries import Try
from airflow_provider_qwenimage.storage.paths import open_output_path
from airflow_provider_qwenimage.tasks.records import FolderRecords, Records, names_by_key
from airflow_provider_qwenimage.tasks.stores import FolderStore, TaskStateStore, recorded_names
from tests.airflows import HAS_TASK_STATES
from tests.ledgers import REQUEST, Facts, TaskStates, ti_of
from tests.stores import MemoryStore, attach, store_at

ME = description_of(ti_of())
FIRST = Try(number=1, max_tries=2)
LATER = Try(number=2, max_tries=4)
FAILED = End(kind=EndKind.FAILED, made_in=FIRST, reason="no", consumed_credits=5.0)
DONE = End(kind=EndKind.DONE, made_in=FIRST)
KEY = ImageIdentity(REQUEST).key


def intent_of(made_in: Try = FIRST, task: str = "draw") -> Intent:
    return Intent(
        submission_id=uuid.uuid4().hex,
        request=REQUEST.description(),
        fingerprint=REQUEST.fingerprint(),
        intended_at="2026-01-05T10:00:00+00:00",
        made_in=made_in,
        by=description_of(ti_of(task_id=task)),
    )


class StoreWithoutDeletion(MemoryStore):
    """Lets files be written and replaced, but not removed."""

    def rm_file(self, path: str) -> None:
        raise PermissionError(path)


def folder_records(folder: ObjectStoragePath, task: str = "draw", **fields: Any) -> FolderRecords:
    instance = description_of(ti_of(task_id=task))
    writer = writer_of(instance)
    return FolderRecords(FolderStore(folder, writer), KEY, instance, writer=writer, **fields)


Opener = Callable[..., Records]


FOLDERS = ["disk", "object store", "object store without deletion"]
OWN = ["task states", "memory"] if HAS_TASK_STATES else ["memory"]


def opener_of(kind: str, path: Path) -> Opener:
    """Return a function that opens the records of a kind as a new process of a task does."""
    if kind in OWN:
        store = TaskStateStore(TaskStates()) if kind == "task states" else Facts()
    elif kind == "disk":
        folder = open_output_path(f"file://{path}")
    elif kind == "object store":
        folder = store_at("s3", can_move=False)[1]
    else:
        folder = ObjectStoragePath(f"{attach(StoreWithoutDeletion('s3', can_move=False), 's3')}bucket/images")

    def open_records(task: str = "draw") -> Records:
        records = Records(store, "submission-1", ME) if kind in OWN else folder_records(folder, task)
        records.read(LATER)
        return records

    return open_records


@pytest.fixture(params=FOLDERS)
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Opener:
    """Return a function that opens the records in a folder."""
    return opener_of(request.param, tmp_path)


@pytest.fixture(params=OWN)
def own(request: pytest.FixtureRequest, tmp_path: Path) -> Opener:
    """Return a function that opens the records of one task alone."""
    return opener_of(request.param, tmp_path)


@pytest.fixture(params=[*FOLDERS, *OWN])
def anywhere(request: pytest.FixtureRequest, tmp_path: Path) -> Opener:
    """Return a function that opens records of any kind."""
    return opener_of(request.param, tmp_path)


def add(records: Records, **fields: Any) -> str:
    intent = intent_of(**fields)
    assert records.add(intent)
    return intent.submission_id


def kinds(records: Records) -> list[str | None]:
    return [None if one.end is None else str(one.end.kind) for one in records.history]


def test_each_fact_is_read_again_by_the_next_process(anywhere: Opener) -> None:
    opener = anywhere
    assert opener().history == []
    records = opener()
    one = add(records)
    (read,) = opener().history
    assert (read.number, read.intent, read.image_task_id, read.end) == (1, records.history[0].intent, None, None)
    records.write_note(one, Fact.REPORTED, FIRST)
    assert opener().history[0].reported == FIRST
    records.write_id(one, "n43")
    assert opener().history[0].image_task_id == records.history[0].image_task_id == "n43"
    records.write_note(one, Fact.LOST, FIRST)
    records.write_note(one, Fact.MISSED, LATER)
    assert opener().read_note(one, Fact.LOST) == FIRST
    assert opener().history[0].missed == LATER
    records.write_end(one, FAILED)
    assert opener().history[0].end == records.history[0].end == FAILED
    two = add(opener())
    assert [read.number for read in opener().history] == [1, 2]
    assert opener().find(two) == opener().history[-1]
    assert opener().find("another") is None


def test_a_withdrawn_intent_is_no_submission_and_the_next_one_follows(anywhere: Opener) -> None:
    opener = anywhere
    first = opener()
    one = add(first)
    first.write_end(one, FAILED)
    for _ in range(3):
        records = opener()
        records.withdraw(add(records), End(kind=EndKind.NOT_ACCEPTED, made_in=FIRST))
        assert all(one.end is not None for one in records.history)
        assert all(one.end is not None for one in opener().history)
    add(opener())
    assert kinds(opener())[0] == "failed"
    assert kinds(opener())[-1] is None


def test_settled_records_of_one_task_stay_as_its_end(own: Opener) -> None:
    records = own()
    one = add(records)
    records.write_id(one, "n43")
    records.settle(one, DONE)
    assert kinds(own()) == ["done"]
    assert own().history[0].image_task_id == "n43"


def test_settled_records_of_a_folder_are_removed_or_have_ended(opened: Opener) -> None:
    """Without the right to delete they stay."""
    records = opened()
    records.write_end(add(records), FAILED)
    two = add(records)
    records.write_id(two, "n43")
    records.settle(two, DONE)
    assert None not in kinds(records)
    assert None not in kinds(opened())
    three = add(opened())
    assert [one.intent.submission_id for one in opened().history if one.end is None] == [three]


def test_a_number_that_is_used_again_has_none_of_the_facts_of_the_submission_before(opened: Opener) -> None:
    late = opened()
    one = add(late)
    other = opened(task="paint")
    late.write_id(one, "n43")
    other.settle(one, DONE)
    add(opened())
    writes: list[Callable[[], None]] = [
        lambda: late.write_id(one, "n43"),
        lambda: late.write_end(one, FAILED),
        lambda: late.write_note(one, Fact.REPORTED, FIRST),
        lambda: late.write_note(one, Fact.MISSED, FIRST),
    ]
    for write in writes:
        write()
        now = opened().history[-1]
        assert (now.image_task_id, now.end, now.reported, now.missed) == (None, None, None, None)


def test_settling_late_leaves_a_later_submission_with_the_same_number_alone(opened: Opener) -> None:
    late = opened()
    one = add(late)
    opened(task="paint").settle(one, DONE)
    new = opened(task="third")
    two = add(new)
    new.write_id(two, "n44")
    late.settle(one, DONE)
    assert [read.image_task_id for read in opened().history if read.end is None] == ["n44"]


def test_withdrawing_an_intent_that_was_never_written_leaves_the_one_of_another_task_alone(tmp_path: Path) -> None:
    """A write may be interrupted before it has begun, and another task claim the image meanwhile."""
    folder = open_output_path(f"file://{tmp_path}")
    mine, theirs = folder_records(folder), folder_records(folder, "paint")
    intent = intent_of()

    def interrupt(name: str, fact: dict[str, Any]) -> bool:
        add(theirs, task="paint")
        raise KeyboardInterrupt

    store: Any = mine._store
    store.create = interrupt
    mine.read(FIRST)
    with pytest.raises(KeyboardInterrupt):
        mine.add(intent)
    mine.withdraw(intent.submission_id, End(kind=EndKind.NOT_ACCEPTED, made_in=FIRST))
    later = folder_records(folder)
    later.read(LATER)
    assert [one.intent.by["task_id"] for one in later.history] == ["paint"]


@pytest.mark.parametrize("kind", ["disk", "object store"])
def test_a_claim_on_records_that_are_gone_does_not_follow_them(kind: str, tmp_path: Path) -> None:
    opened = opener_of(kind, tmp_path)
    first = opened()
    one = add(first)
    first.write_end(one, FAILED)
    late = opened(task="paint")
    earlier = late.history[-1]
    two = add(opened())
    opened().settle(two, DONE)
    assert late.add(intent_of())
    assert not late.follows(earlier)
    # Also if their number is used again.
    late.withdraw(late.history[-1].intent.submission_id, DONE)
    add(opened())
    assert not late.follows(earlier)
    assert late.follows(None)


def test_only_facts_whose_names_were_listed_are_read(tmp_path: Path) -> None:
    folder = open_output_path(f"file://{tmp_path}")
    records = folder_records(folder)
    records.read(FIRST)
    add(records)
    for known, number in ((None, 1), ({f"{KEY}-1"}, 1), ({"another-1"}, 0), (set(), 0)):
        listed = folder_records(folder, known=known)
        listed.read(LATER)
        assert len(listed.history) == number


NAMES = st.sampled_from(["intent", "id", "end", "reported", "lost", "missed"])


@given(repeated=st.lists(NAMES, max_size=12), own=st.booleans())
def test_no_write_that_lands_late_or_again_changes_what_is_read(repeated: list[str], own: bool) -> None:
    store: Any = Facts()
    records = Records(store, "k", ME) if own else FolderRecords(store, "k", ME, writer="me")
    one = add(records)
    records.write_note(one, Fact.REPORTED, FIRST)
    records.write_id(one, "n43")
    records.write_note(one, Fact.LOST, FIRST)
    records.write_note(one, Fact.MISSED, LATER)
    records.write_end(one, FAILED)
    complete = dict(store.written)
    first = dict(zip(["intent", "reported", "id", "lost", "missed", "end"], complete.items(), strict=True))

    def read() -> Any:
        again = Records(store, "k", ME) if own else FolderRecords(store, "k", ME, writer="me")
        again.read(LATER)
        return again.history

    before = read()
    for name in repeated:
        key, fact = first[name]
        store.written[key] = fact
        assert read() == before
    assert store.written == complete


# Claims at the same time.


def claim(records: Records) -> bool:
    earlier = records.history[-1] if records.history else None
    return records.add(intent_of()) and records.follows(earlier)


@pytest.mark.parametrize("history", [0, 2])
def test_of_many_threads_that_claim_an_image_one_may_submit(tmp_path: Path, history: int) -> None:
    for attempt in range(5):
        folder = open_output_path(f"file://{tmp_path / str(attempt)}")
        first = folder_records(folder)
        for _ in range(history):
            first.read(FIRST)
            first.write_end(add(first), FAILED)
        claims = [folder_records(folder, f"task_{number}") for number in range(8)]
        for records in claims:
            records.read(FIRST)
        barrier = threading.Barrier(len(claims))

        def run(records: Records, barrier: threading.Barrier = barrier) -> bool:
            barrier.wait()
            return claim(records)

        with ThreadPoolExecutor(len(claims)) as pool:
            assert sorted(pool.map(run, claims)) == [False] * 7 + [True]


def test_of_many_threads_that_claim_again_what_was_withdrawn_one_may_submit(tmp_path: Path) -> None:
    folder = open_output_path(f"file://{tmp_path}")
    submitting, most = 0, 0
    lock = threading.Lock()

    def run(number: int) -> None:
        nonlocal submitting, most
        for _ in range(15):
            records = folder_records(folder, f"task_{number}")
            records.read(FIRST)
            if records.history or not claim(records):
                continue
            with lock:
                submitting += 1
                most = max(most, submitting)
            with lock:
                submitting -= 1
            records.withdraw(records.history[-1].intent.submission_id, DONE)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(run, range(6)))
    assert most == 1


def claim_in_a_process(folder: str, number: int, start: Any, won: Any) -> None:
    """Claim an image at the same time as other processes."""
    records = folder_records(open_output_path(f"file://{folder}"), f"task_{number}")
    records.read(FIRST)
    start.wait()
    won.put(claim(records))


def test_of_several_processes_that_claim_an_image_one_may_submit(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    # Opened before the forks, because Airflow needs some time to open a storage for the first time.
    folder_records(open_output_path(f"file://{tmp_path}")).read(FIRST)
    start, won = context.Barrier(4), context.Queue()
    processes = [
        context.Process(target=claim_in_a_process, args=(str(tmp_path), number, start, won)) for number in range(4)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert sorted(won.get(timeout=10) for _ in processes) == [False, False, False, True]


def test_of_two_claims_on_a_forgotten_record_that_could_not_be_deleted_one_may_submit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(file: Path, **_: Any) -> None:
        raise PermissionError(file)

    monkeypatch.setattr(Path, "unlink", refuse)
    folder = open_output_path(f"file://{tmp_path}")
    first = folder_records(folder)
    one = add(first)
    first.settle(one, DONE)
    claims = [folder_records(folder, task) for task in ("one", "other")]
    for records in claims:
        records.read(FIRST)
    store: Any = claims[0]._store
    write, ends = store.write, []

    def late(name: str, fact: dict[str, Any], **fields: Any) -> None:
        ends.append(claim(claims[1]))
        write(name, fact, **fields)

    store.write = late
    ends.append(claim(claims[0]))
    if len(ends) == 1:
        ends.append(claim(claims[1]))
    assert sorted(ends) == [False, True]


# What others have left there.


def test_a_claim_that_was_left_behind_by_a_removal_that_was_cut_off_does_not_stop_anybody(tmp_path: Path) -> None:
    """A worker may be killed while it removes the intents of a stored image, one after the other."""
    folder = open_output_path(f"file://{tmp_path}")
    records = folder_records(folder)
    records.read(FIRST)
    records.write_end(add(records), FAILED)
    two = add(records)
    records.write_id(two, "n43")
    removed: list[str] = []
    store: Any = records._store
    remove = store.remove

    def killed(name: str) -> None:
        if removed:
            raise KeyboardInterrupt
        removed.append(name)
        remove(name)

    store.remove = killed
    with pytest.raises(KeyboardInterrupt):
        records.settle(two, DONE)
    again = folder_records(folder)
    again.read(LATER)
    # Nothing is lost: what is left leads to the image, or to nothing.
    assert [one.image_task_id for one in again.history if one.end is None] in ([], ["n43"])


def test_facts_without_an_intent_are_removed_and_those_of_a_live_submission_stay(tmp_path: Path) -> None:
    folder = open_output_path(f"file://{tmp_path}")
    records = folder_records(folder)
    records.read(FIRST)
    records.write_id(add(records), "n43")
    (intent,) = (file for file in tmp_path.iterdir() if not file.name.endswith("-id.json"))
    names = recorded_names(file.name for file in tmp_path.iterdir())
    assert len(names) == 2

    folder_records(folder).remove_leftovers(names)
    assert len(list(tmp_path.iterdir())) == 2

    intent.unlink()
    other = tmp_path / ".submission-another-1-0123456789ab-id.json"
    other.write_text("{}")
    by_key = names_by_key(recorded_names(file.name for file in tmp_path.iterdir()))
    assert by_key["another"] == ["another-1-0123456789ab-id"]
    (key,) = by_key.keys() - {"another"}
    folder_records(folder).remove_leftovers(by_key[key])
    assert list(tmp_path.iterdir()) == [other]


def test_a_fact_of_another_submission_under_the_same_name_counts_for_nothing() -> None:
    store = Facts()
    records = Records(store, "k", ME)
    add(records)
    store.written["k-1-id"] = json.dumps({"submission": "another", "image_task_id": "n43"})
    store.written["k-1-end"] = json.dumps({"submission": "another", **FAILED.to_json()})
    records.read(LATER)
    (read,) = records.history
    assert (read.image_task_id, read.end) == (None, None)


def test_an_end_that_tells_the_id_makes_up_for_an_id_that_was_not_recorded() -> None:
    store = Facts()
    records = Records(store, "k", ME)
    records.settle(add(records), replace(DONE, image_task_id="n43"))
    records.read(LATER)
    assert records.history[0].image_task_id == "n43"
