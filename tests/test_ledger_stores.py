"""The stores of facts about submissions: Airflow's own, and hidden files beside the images."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import ObjectStoragePath

from airflow_provider_qwenimage.contract import GenerateRequest
from airflow_provider_qwenimage.exceptions import QwenImageSubmissionUnknownError, QwenImageTaskFailedError
from airflow_provider_qwenimage.rules.image_identity import ImageIdentity
from airflow_provider_qwenimage.rules.made_by import description_of, variant_of
from airflow_provider_qwenimage.rules.submissions import Resume, Stop, Submit
from airflow_provider_qwenimage.storage.paths import open_output_path
from airflow_provider_qwenimage.tasks.ledger import Ledger
from airflow_provider_qwenimage.tasks.opening import (
    find_left,
    open_ledger,
    open_row_ledger,
    open_submitted_ledger,
    try_of,
)
from airflow_provider_qwenimage.tasks.stores import FolderStore, Store, TaskStateStore, record_file, recorded_names
from tests.airflows import HAS_TASK_STATES
from tests.ledgers import OTHER, REQUEST, Place, TaskStates, asking_of, context_of, step_of, ti_of
from tests.stores import store_at

only_with_task_states = pytest.mark.airflow_feature("killed worker, no `output_path`", "the retry resumes")
FACT = {"submission": "5ub", "image_task_id": "n43"}


def folder_of(path: Path) -> ObjectStoragePath:
    return open_output_path(f"file://{path}")


def files(path: Path) -> list[str]:
    return sorted(file.name for file in path.rglob("*") if file.is_file())


STORES = ["disk", "object store", *(["task states"] if HAS_TASK_STATES else [])]


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "task states":
        return TaskStateStore(TaskStates())
    if request.param == "object store":
        return FolderStore(store_at("s3", can_move=False)[1], "me")
    return FolderStore(folder_of(tmp_path), "me")


def test_a_fact_is_read_under_its_name_and_under_no_other(store: Store) -> None:
    assert store.read("k-1") is None
    store.write("k-1", FACT)
    store.write("k-1-id", {"submission": "5ub"}, is_last=True)
    assert (store.read("k-1"), store.read("k-1-id"), store.read("k-2")) == (FACT, {"submission": "5ub"}, None)
    store.write("k-1", {})
    assert store.read("k-1") == {}


def test_a_removed_fact_is_not_there(store: Store) -> None:
    store.remove("k-1")
    store.write("k-1", FACT)
    store.remove("k-1")
    store.remove("k-1")
    assert store.read("k-1") is None
    assert store.create("k-1", FACT)
    assert store.read("k-1") == FACT


def test_only_the_first_of_two_facts_of_one_name_is_created(tmp_path: Path) -> None:
    for folder in (folder_of(tmp_path), store_at("s3", can_move=False)[1]):
        one, other = FolderStore(folder, "me"), FolderStore(folder, "they")
        assert one.create("k-1", {"submission": "one"})
        assert not other.create("k-1", {"submission": "other"})
        # A library sends a request again whose answer it has not got.
        assert one.create("k-1", {"submission": "one"})
        assert other.read("k-1") == {"submission": "one"}


def test_the_names_of_hidden_files_tell_what_they_record() -> None:
    names = ["k-1", "k-1-0123456789ab-id"]
    found = [
        *(record_file(name) for name in names),
        "fox.jpg",
        "fox.json",
        ".submission-k.json.me-0.part",
        ".x-k-1.json",
    ]
    assert all(record_file(name).startswith(".submission-") for name in names)
    assert recorded_names(found) == set(names)


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda file: file.symlink_to("/dev/zero")])
def test_a_record_that_is_not_a_file_is_an_error_and_nothing_is_submitted(
    tmp_path: Path, make: Callable[[Path], object]
) -> None:
    make(tmp_path / record_file("k-1"))
    with pytest.raises(OSError, match=r"cannot be read, so nothing was submitted: .*move it away"):
        FolderStore(folder_of(tmp_path), "me").read("k-1")


def test_a_huge_record_is_read_as_an_empty_one(tmp_path: Path) -> None:
    with (tmp_path / record_file("k-1")).open("wb") as stream:
        stream.truncate(4 * 1024**3)
    assert FolderStore(folder_of(tmp_path), "me").read("k-1") == {}


@only_with_task_states
def test_a_fact_that_may_be_paid_never_expires_and_the_last_one_expires_by_airflows_setting() -> None:
    from airflow.sdk import NEVER_EXPIRE  # type: ignore[attr-defined,unused-ignore]  # Airflow 3.3 and later

    states = TaskStates()
    ledger = open_ledger(context_of(states), None, description_of(ti_of()), durable=True, number=1)
    step_of(ledger, asking_of())

    def retention_after(change: Callable[[], object]) -> timedelta | None:
        states.retention.clear()
        change()
        (retention,) = states.retention.values()
        return retention

    # Airflow compares with `is`.
    assert retention_after(lambda: ledger.intend(asking_of())) is NEVER_EXPIRE
    assert retention_after(ledger.report) is NEVER_EXPIRE
    assert retention_after(lambda: ledger.accept("n43")) is NEVER_EXPIRE
    assert retention_after(ledger.record_lost) is NEVER_EXPIRE
    assert retention_after(ledger.finish) is None


@only_with_task_states
def test_each_fact_has_a_key_of_its_own_in_airflows_task_state() -> None:
    states = TaskStates()
    ledger = open_ledger(context_of(states), None, description_of(ti_of()), durable=True, number=1)
    step_of(ledger, asking_of())
    ledger.intend(asking_of())
    ledger.accept("n43")
    ledger.finish()
    names = ["qwenimage_submission_1_1_intent", "qwenimage_submission_1_1_id", "qwenimage_submission_1_1_end"]
    assert list(states.written) == names


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


# Which records a task opens.


def opened(states: TaskStates | None, path: Path | None, *, number: int | None = 1, **fields: Any) -> Ledger:
    context = context_of(states, **fields)
    folder = None if path is None else folder_of(path)
    return open_ledger(context, folder, description_of(context["ti"]), durable=True, number=number)


def began(ledger: Ledger, request: GenerateRequest = REQUEST, **fields: Any) -> Ledger:
    asking = asking_of(request, **fields)
    assert isinstance(step_of(ledger, asking), Submit)
    assert ledger.intend(asking)
    return ledger


def test_each_task_instance_has_records_of_its_own_for_all_of_its_tries(tmp_path: Path) -> None:
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
    for number, instance in enumerate(instances):
        request = GenerateRequest(prompt=f"Fox {number}")
        # Another image each, or they would share one submission.
        began(opened(None, tmp_path, **instance), request).accept(f"n{number}")
        for later in ({"try_number": 2}, {"try_number": 3, "max_tries": 7}):
            asking = asking_of(request, **later)
            step = step_of(opened(None, tmp_path, **instance | later), asking)
            assert isinstance(step, Resume)
            assert (step.image_task_id, step.is_own) == (f"n{number}", True)


def test_the_records_in_the_folder_are_shared_by_all_who_ask_for_the_same_image(tmp_path: Path) -> None:
    began(opened(None, tmp_path)).accept("n43")
    context = context_of(None, task_id="batch")
    row = open_row_ledger(try_of(context), folder_of(tmp_path), description_of(context["ti"]), ImageIdentity(REQUEST))
    for ledger in (row, opened(TaskStates(), tmp_path, task_id="paint"), opened(None, tmp_path, run_id="manual__2")):
        step = step_of(ledger, asking_of())
        assert isinstance(step, Resume)
        assert (step.image_task_id, step.is_own) == ("n43", False)
    for other in (asking_of(OTHER), asking_of(variant=1), asking_of(name="fox")):
        assert isinstance(step_of(opened(None, tmp_path, task_id="paint"), other), Submit)


@pytest.mark.parametrize(
    ("has_states", "has_folder", "durable"),
    [
        (True, True, True),
        (True, False, True),
        (False, True, True),
        (False, False, True),
        (True, True, False),
        (False, True, False),
    ],
)
def test_a_submission_is_recorded_wherever_that_is_possible(
    tmp_path: Path, has_states: bool, has_folder: bool, durable: bool
) -> None:
    if has_states and not HAS_TASK_STATES:
        pytest.skip("this Airflow has no task states")
    states = TaskStates()
    context = context_of(states if has_states else None)
    folder = folder_of(tmp_path) if has_folder else None
    ledger = open_ledger(context, folder, description_of(context["ti"]), durable=durable, number=1)
    assert ledger.remembers == (durable and (has_states or has_folder))
    began(ledger)
    assert bool(states.written) == (durable and has_states)
    assert bool(files(tmp_path)) == (durable and has_folder)


@pytest.mark.parametrize(("map_index", "variant"), [(-1, 0), (0, 0), (1, 1), (41, 41), (None, 0)])
def test_the_variant_of_a_task_is_its_map_index(map_index: int | None, variant: int) -> None:
    assert variant_of(ti_of(map_index=map_index)) == variant


def test_the_images_that_one_try_draws_have_records_of_their_own(tmp_path: Path) -> None:
    """A subclass may execute the operator once for each of its prompts; a retry's n-th finds the n-th."""
    states = TaskStates() if HAS_TASK_STATES else None
    requests = [GenerateRequest(prompt=f"Fox {number}") for number in range(3)]
    run_id = f"manual__{tmp_path.name}"
    for number, request in enumerate(requests):
        began(opened(states, tmp_path, number=None, run_id=run_id), request).accept(f"n{number}")
    for number, request in enumerate(requests):
        ledger = opened(states, tmp_path, number=None, run_id=run_id, try_number=2)
        step = step_of(ledger, asking_of(request, 2))
        assert isinstance(step, Resume)
        assert step.image_task_id == f"n{number}"
    context = context_of(states, run_id=run_id)
    instance = description_of(context["ti"])
    for image_task_id, expected in (("n1", "n1"), ("n2", "n2"), (None, "n2")):
        ledger = open_submitted_ledger(context, folder_of(tmp_path), instance, image_task_id, durable=True)
        assert ledger.current is not None
        assert ledger.current.image_task_id == expected
    assert open_submitted_ledger(context, folder_of(tmp_path), instance, "n9", durable=True).current is None


def test_what_a_dead_batch_has_paid_and_not_fetched_is_found_by_its_key(tmp_path: Path) -> None:
    place = Place("shared files", tmp_path)
    key = ImageIdentity(REQUEST).key

    def left(**fields: Any) -> Any:
        context = context_of(None, **fields)
        return find_left(context, folder_of(tmp_path), description_of(context["ti"]), key)

    assert left() is None
    ledger = place.intended()
    assert left() is None
    ledger.accept("n43")
    assert left(try_number=2).image_task_id == "n43"
    assert left(task_id="paint") is None
    ledger.finish()
    assert left() is None


def test_only_the_first_look_of_a_batch_trusts_the_names_that_were_listed(tmp_path: Path) -> None:
    context, instance = context_of(), description_of(ti_of())
    ledger = open_row_ledger(try_of(context), folder_of(tmp_path), instance, ImageIdentity(REQUEST), known=frozenset())
    Place("shared files", tmp_path).submitted(task="paint")
    assert step_of(ledger, asking_of()) == Submit()
    assert not ledger.intend(asking_of())
    assert isinstance(step_of(ledger, asking_of()), Resume)


# Records that cannot be read.


def assert_stops_until_a_clear(place: Place) -> None:
    for try_number in (2, 3):
        step = place.step(try_number)
        assert isinstance(step, Stop)
        assert isinstance(step.error, QwenImageSubmissionUnknownError)
        assert "cannot be read" in str(step.error)
    assert isinstance(place.step(4, 5), Submit)
    # A clear consents to one submission.
    ledger = place.intended(4, 5)
    assert isinstance(place.step(5, 5), Stop)
    ledger.accept("n44")
    assert isinstance(place.step(5, 5), Resume)


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


@pytest.mark.parametrize("kind", ["own and shared files", "shared files"])
@pytest.mark.parametrize("content", UNREADABLE.values(), ids=UNREADABLE)
def test_an_intent_that_cannot_be_read_stops_until_a_clear(tmp_path: Path, content: bytes, kind: str) -> None:
    place = Place(kind, tmp_path)
    place.intended()
    for name in files(tmp_path):
        (tmp_path / name).write_bytes(content)
    assert_stops_until_a_clear(place)


@only_with_task_states
@pytest.mark.parametrize("value", ["n43", 5, True, [], ["n43"], {}, {"image_task_id": "n43"}], ids=repr)
@pytest.mark.parametrize("name", ["qwenimage_submission_1_1_intent", "qwenimage_submission"])
def test_a_task_state_that_is_not_an_intent_stops_until_a_clear(tmp_path: Path, value: object, name: str) -> None:
    place = Place("task states", tmp_path)
    place.states["draw"] = TaskStates()
    place.states["draw"].set(name, value)
    assert_stops_until_a_clear(place)


@pytest.mark.parametrize("content", [b"", b"[]", b'{"submission": "5ub"}', b'{"image_task_id": "n1"}'])
def test_an_id_that_cannot_be_read_is_none(tmp_path: Path, content: bytes) -> None:
    place = Place("shared files", tmp_path)
    place.submitted()
    (id_file,) = [name for name in files(tmp_path) if name.endswith("-id.json")]
    (tmp_path / id_file).write_bytes(content)
    assert isinstance(place.step(2), Stop)


class JsonStates(TaskStates):
    """Has a value fit a column of MySQL's type TEXT, in which Airflow stores it."""

    def set(self, key: str, value: Any, *, retention: timedelta | None = None) -> None:
        super().set(key, value, retention=retention)
        assert len(self.written[key].encode()) < 65_535


@only_with_task_states
@pytest.mark.parametrize("letter", ["a", "狐", "🦊", "\x01", '"'], ids=ascii)
def test_each_fact_about_the_longest_prompt_fits_the_smallest_column(tmp_path: Path, letter: str) -> None:
    request = GenerateRequest(prompt="a" + letter * 1999, seed=2**63 - 1)
    place = Place("task states", tmp_path)
    place.states["draw"] = JsonStates()
    place.submitted(request=request, task_id="n" * 200).fail(QwenImageTaskFailedError("no " * 3000))
    assert isinstance(place.step(2, request=request), Submit)
    for fact in place.facts().values():
        assert len(json.dumps(fact)) < 65_535


# Records of the version before, which wrote one object at each step.


def earlier_record(**fields: Any) -> dict[str, Any]:
    return {
        "request": REQUEST.description(),
        "fingerprint": REQUEST.fingerprint(),
        "intended_at": "2026-01-05T10:00:00+00:00",
        "try_number": 1,
        "max_tries": 2,
        "image_task_id": "n43",
        "finished": False,
        "failure": None,
        "refused": False,
        "reported": False,
        "missed": False,
        "counted": True,
        "spent": 0.0,
    } | fields


# The names under which that version recorded the image of the task `draw`, and of a batch of that name.
EARLIER_FILES = {
    "own and shared files": ".submission-95ba0b002661aaea.json",
    "shared files": ".submission-953bd2920096635e.json",
}


def with_earlier(kind: str, path: Path, **fields: Any) -> Place:
    place = Place(kind, path)
    record = earlier_record(**fields)
    if kind.startswith("task states"):
        place.states["draw"] = TaskStates()
        place.states["draw"].set("qwenimage_submission", record)
    else:
        path.mkdir(exist_ok=True)
        (path / EARLIER_FILES[kind]).write_text(json.dumps(record) + "\n")
    return place


EARLIER_KINDS = [*(["task states", "task states and shared files"] if HAS_TASK_STATES else []), *EARLIER_FILES]


@pytest.mark.parametrize("kind", EARLIER_KINDS)
def test_a_task_that_was_paid_under_the_version_before_goes_back_to_its_image(tmp_path: Path, kind: str) -> None:
    place = with_earlier(kind, tmp_path)
    for try_number, max_tries in ((2, 2), (2, 4)):
        step = place.step(try_number, max_tries)
        assert isinstance(step, Resume)
        assert (step.image_task_id, step.is_own) == ("n43", True)
        assert step.submission.intent.identity.request == GenerateRequest(prompt="A red fox")
    place.resumed(2).finish()
    assert place.files() == []
    assert place.step(3, 5) == Submit()


@pytest.mark.parametrize("kind", EARLIER_KINDS)
def test_a_submission_without_an_answer_of_the_version_before_stops_until_a_clear(tmp_path: Path, kind: str) -> None:
    place = with_earlier(kind, tmp_path, image_task_id=None)
    assert isinstance(place.step(2, 4), Stop)
    assert isinstance(place.step(3, 4), Stop)
    assert isinstance(place.step(4, 6), Submit)
    place.submitted(4, 6, task_id="n44")
    step = place.step(5, 6)
    assert isinstance(step, Resume)
    assert step.image_task_id == "n44"


@pytest.mark.parametrize("kind", EARLIER_KINDS)
def test_a_failure_under_the_version_before_counts_also_for_the_tries_after_the_next(tmp_path: Path, kind: str) -> None:
    place = with_earlier(kind, tmp_path, failure="Out of paint.", spent=5.0)
    assert place.step(2) == Submit(spent=5.0, charged=5.0)
    place.submitted(2, task_id="n44").fail(QwenImageTaskFailedError("no"))
    assert place.step(3) == Submit(spent=5.0, charged=5.0)
    assert place.step(3, 5) == Submit()


@pytest.mark.parametrize("kind", list(EARLIER_FILES))
def test_the_file_of_the_version_before_is_removed_once_a_later_submission_is_stored(tmp_path: Path, kind: str) -> None:
    place = with_earlier(kind, tmp_path, failure="Out of paint.", spent=5.0)
    place.submitted(2, task_id="n44")
    place.resumed(3).finish()
    assert place.files() == []


@pytest.mark.parametrize("kind", EARLIER_KINDS)
def test_a_finished_record_of_the_version_before_is_final_until_a_clear(tmp_path: Path, kind: str) -> None:
    place = with_earlier(kind, tmp_path, finished=True)
    assert isinstance(place.step(2), Resume)
    assert place.step(2, 4) == Submit()


def test_a_first_try_does_not_look_for_a_record_of_the_version_before(tmp_path: Path) -> None:
    """Only a task that an earlier version has begun can have one."""
    (tmp_path / EARLIER_FILES["own and shared files"]).write_text("{}")
    ledger = opened(None, tmp_path, number=None, run_id="manual__1")
    assert isinstance(step_of(ledger, asking_of()), Submit)


def test_what_the_version_before_wrote_over_a_record_that_it_could_not_remove_is_no_record(tmp_path: Path) -> None:
    (tmp_path / EARLIER_FILES["own and shared files"]).write_text('{"forgotten": true}\n')
    assert Place("own and shared files", tmp_path).step(2) == Submit()
