"""A batch that is tried again, cleared, or run by two processes: nothing that is paid is paid again, or lost."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from airflow_provider_qwenimage import QwenImageBatchOperator
from airflow_provider_qwenimage.sandbox import Sandbox
from airflow_provider_qwenimage.tasks.stores import FolderStore
from tests.airflows import HAS_TASK_STATES
from tests.events import finish_images, run_when, wait_until
from tests.integration.dag_runs import Crash, TaskEnd, TestDag
from tests.stores import MemoryStore, attach
from tests.task_processes import TaskProcesses

BATCH = "QwenImageBatchOperator"
FOXES = [f"Fox {number}" for number in range(8)]
PROMPTS = ["A", "B", "C", "D"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TaskProcesses]:
    with TaskProcesses(tmp_path_factory.mktemp("processes")) as processes:
        yield processes


@pytest.fixture
def processes(server: TaskProcesses) -> Iterator[TaskProcesses]:
    yield server
    server.kill_all()


@pytest.fixture
def api(connected_api: Sandbox) -> Sandbox:
    return connected_api


@pytest.fixture
def requests(tmp_path: Path) -> Callable[..., str]:
    """Return a function that writes rows to a file, always the same one, and returns its path."""
    file = tmp_path / "prompts.jsonl"

    def write(*rows: Any) -> str:
        file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        return str(file)

    return write


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "images"


def dag_with_batch(folder: Path | str, requests: Any, **arguments: Any) -> TestDag:
    dag = TestDag()
    with dag:
        QwenImageBatchOperator(
            **{"task_id": "draw", "requests": requests, "output_path": str(folder), "poll_interval": 0.01} | arguments
        )
    return dag


def prompts(api: Sandbox) -> list[str]:
    return [submission.request["prompt"] for submission in api.submissions]


def statuses(folder: Path) -> list[str]:
    return [json.loads(line)["status"] for line in (folder / "manifest.jsonl").read_text().splitlines()]


def at_risk(end: TaskEnd) -> Any:
    """Return the credits at risk that a task reports: in an XCom of that name, or in another one."""
    found = [value["at_risk"] for value in end.xcoms.values() if isinstance(value, dict) and "at_risk" in value]
    assert found or "at_risk" in end.xcoms, f"nothing reports at_risk: {end.xcoms}"
    return end.xcoms.get("at_risk", found[0] if found else None)


# What a killed try leaves.


def test_a_batch_that_is_killed_while_it_removes_the_records_of_an_image_leaves_none_in_the_end(
    api: Sandbox, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove, crashes = FolderStore.remove, iter([True])

    def crash_at_an_id(self: FolderStore, name: str) -> None:
        if name.endswith("-id") and next(crashes, False):
            raise Crash(name)
        remove(self, name)

    monkeypatch.setattr(FolderStore, "remove", crash_at_an_id)
    dag = dag_with_batch(folder, PROMPTS, retries=0, max_in_flight=1)
    assert dag.run()["draw"].state == "failed"
    assert [file.name for file in folder.glob(".submission-*") if file.name.endswith("-id.json")]
    assert dag.clear("draw")["draw"].state == "success"

    assert prompts(api) == PROMPTS
    assert list(folder.glob(".submission-*")) == []


# A Clear of a batch with overwrite=True continues what has failed, and draws anew what has succeeded.


def test_a_corrected_and_cleared_batch_with_overwrite_draws_only_what_it_has_not_drawn(
    api: Sandbox, folder: Path, requests: Callable[..., str]
) -> None:
    dag = dag_with_batch(folder, requests(*PROMPTS, "Fog [policy]"), overwrite=True, max_in_flight=1)
    assert dag.run()["draw"].state == "failed"
    assert prompts(api) == [*PROMPTS, "Fog [policy]"]
    requests(*PROMPTS, "Fog")
    end = dag.clear("draw")["draw"]

    assert (end.state, end.returned["images"]) == ("success", 5)
    assert prompts(api)[5:] == ["Fog"]
    assert statuses(folder) == ["SUCCESS"] * 5

    again = dag.clear("draw")["draw"]
    assert again.state == "success"
    assert Counter(prompts(api)[6:]) == Counter([*PROMPTS, "Fog"]), "a batch that has succeeded draws all anew"


def test_a_batch_with_overwrite_that_reached_max_credits_is_continued_by_a_clear(api: Sandbox, folder: Path) -> None:
    dag = dag_with_batch(folder, PROMPTS, overwrite=True, max_credits=10)
    assert dag.run()["draw"].state == "failed"
    assert len(api.submissions) == 2
    end = dag.clear("draw")["draw"]

    assert (end.state, end.returned["images"]) == ("success", 4)
    assert sorted(prompts(api)) == PROMPTS


def test_a_clear_after_a_lost_answer_submits_only_that_row_of_a_batch_with_overwrite(
    api: Sandbox, folder: Path
) -> None:
    api.script("generate", "ok", "drop_after")
    dag = dag_with_batch(folder, PROMPTS[:3], overwrite=True, max_in_flight=1)
    assert dag.run()["draw"].state == "failed"
    end = dag.clear("draw")["draw"]

    assert end.state == "success"
    assert prompts(api) == ["A", "B", "B", "C"]


def test_images_of_another_run_are_drawn_anew_once_by_a_batch_with_overwrite_that_fails_and_is_cleared(
    api: Sandbox, folder: Path, requests: Callable[..., str]
) -> None:
    rows = requests("A", "B", "Fog")
    assert dag_with_batch(folder, rows).run().state == "success"
    before = len(api.submissions)
    requests("A", "B", "Fog [policy]")
    dag = dag_with_batch(folder, rows, overwrite=True)
    assert dag.run()["draw"].state == "failed"
    requests("A", "B", "Fog")
    assert dag.clear("draw")["draw"].state == "success"

    assert sorted(prompts(api)[before:]) == ["A", "B", "Fog", "Fog [policy]"]


# An image that is paid and not stored keeps a batch from succeeding, whatever max_failures allows.


def test_a_batch_whose_paid_image_was_not_downloaded_fails_and_reports_what_was_charged(
    api: Sandbox, folder: Path, quick_downloads: None
) -> None:
    api.script("image", ("server_error", 6))
    dag = dag_with_batch(folder, PROMPTS, max_failures=1, max_in_flight=1, retries=0)
    end = dag.run()["draw"]

    assert prompts(api) == PROMPTS
    assert Counter(statuses(folder)) == {"UNFINISHED": 1, "SUCCESS": 3}
    assert end.state == "failed", "one image is paid, and can still be fetched"
    assert end.xcoms["consumed_credits"] == api.credits_charged == 20
    cleared = dag.clear("draw")["draw"]
    assert (cleared.state, cleared.returned["images"]) == ("success", 4)
    assert len(api.submissions) == 4


def test_a_retry_fetches_the_paid_image_that_was_not_downloaded(
    api: Sandbox, folder: Path, quick_downloads: None
) -> None:
    api.script("image", ("server_error", 6))
    end = dag_with_batch(folder, PROMPTS, max_failures=1, max_in_flight=1).run()["draw"]

    assert (end.state, end.tries) == ("success", 2)
    assert statuses(folder) == ["SUCCESS"] * 4
    assert end.returned["failed"] == 0
    assert end.returned["consumed_credits"] == api.credits_charged == 20


def test_a_batch_whose_paid_image_took_too_long_fails_although_failures_are_allowed(api: Sandbox, folder: Path) -> None:
    api.script("generate", "slow")
    dag = dag_with_batch(folder, PROMPTS, max_failures=1, max_in_flight=1, timeout=2, retries=0)
    end = dag.run()["draw"]

    assert end.state == "failed", "one image is paid, and may still be drawn"
    assert Counter(statuses(folder)) == {"UNFINISHED": 1, "SUCCESS": 3}
    finish_images(api)
    assert dag.clear("draw")["draw"].state == "success"
    assert prompts(api) == PROMPTS


def test_credits_that_a_lost_answer_may_have_cost_are_reported_as_at_risk(api: Sandbox, folder: Path) -> None:
    api.script("generate", "ok", "drop_after")
    end = dag_with_batch(folder, PROMPTS, max_failures=1, max_in_flight=1, retries=0).run()["draw"]

    assert Counter(statuses(folder)) == {"UNKNOWN": 1, "SUCCESS": 3}
    assert end.xcoms["consumed_credits"] == 15
    assert at_risk(end) == 5


# What happens to the folder, and to the rows, between two tries.


def try_until_retry(
    api: Sandbox, folder: Path, rows: Any, then: Callable[[], None], **arguments: Any
) -> tuple[TestDag, TaskEnd, list[str]]:
    """Run a batch whose first try leaves its images paid and not stored; then something happens, and it is retried.

    Returns:
        The DAG, the end of the task, and the ids that the first try has paid.
    """
    paid: list[str] = []
    api.configure(seconds_per_image=3600)

    def before_the_retry(_: Any) -> None:
        if not paid:
            paid.extend(submission.task_id for submission in api.submissions)
            then()
            finish_images(api)

    dag = dag_with_batch(folder, rows, timeout=1, on_retry_callback=before_the_retry, **arguments)
    end = dag.run()["draw"]
    assert paid, "there was no retry"
    return dag, end, paid


@pytest.mark.skipif(not HAS_TASK_STATES, reason="nothing but the folder knows what was paid")
def test_a_retry_that_does_not_find_the_folder_of_the_first_try_stops_before_it_pays(
    api: Sandbox, folder: Path
) -> None:
    elsewhere = folder.with_name("on another host")
    dag, end, paid = try_until_retry(api, folder, PROMPTS, partial(shutil.move, folder, elsewhere))

    assert len(paid) == 4
    assert len(api.submissions) == 4, "paid again in the empty folder"
    assert end.state == "failed"
    assert str(folder) in str(end.errors[-1])

    shutil.rmtree(folder, ignore_errors=True)
    shutil.move(elsewhere, folder)
    cleared = dag.clear("draw")["draw"]
    assert (cleared.state, cleared.returned["images"]) == ("success", 4)
    assert len(api.submissions) == 4


@pytest.mark.skipif(not HAS_TASK_STATES, reason="nothing but the folder knows what was paid")
def test_a_retry_that_finds_the_folder_emptied_stops_before_it_pays(api: Sandbox, folder: Path) -> None:
    def empty() -> None:
        shutil.rmtree(folder)
        folder.mkdir()

    _, end, _ = try_until_retry(api, folder, PROMPTS, empty)
    assert len(api.submissions) == 4, "paid again in the empty folder"
    assert end.state == "failed"
    assert str(folder) in str(end.errors[-1])


CHANGES: dict[str, dict[str, Any]] = {
    "size": {"prompt": "B", "size": "768*1024"},
    "format": {"prompt": "B", "output_format": "png"},
    "seed": {"prompt": "B", "seed": 3},
    "prompt": {"prompt": "An owl"},
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_row_that_changed_before_a_retry_is_submitted_and_what_the_old_one_paid_is_named(
    api: Sandbox, folder: Path, requests: Callable[..., str], change: str, task_log: Callable[[], str]
) -> None:
    file = requests("A", "B", "C")
    changed = CHANGES[change]

    def edit() -> None:
        requests("A", changed, "C")
        task_log()

    _, end, paid = try_until_retry(api, folder, file, edit)

    assert (end.state, end.tries, end.returned["images"]) == ("success", 2, 3)
    assert len(api.submissions) == len(paid) + 1 == 4
    assert prompts(api)[-1] == changed["prompt"]
    (old,) = [submission.task_id for submission in api.submissions[:3] if submission.request["prompt"] == "B"]
    assert old in task_log(), "paid by the old row, and not named in the log"


def test_a_row_that_changed_before_a_clear_is_submitted_and_what_the_old_one_paid_is_named(
    api: Sandbox, folder: Path, requests: Callable[..., str], task_log: Callable[[], str]
) -> None:
    api.configure(seconds_per_image=3600)
    dag = dag_with_batch(folder, requests("A", "B", "C"), timeout=1, retries=0)
    assert dag.run()["draw"].state == "failed"
    (old,) = [submission.task_id for submission in api.submissions if submission.request["prompt"] == "B"]
    finish_images(api)
    requests("A", {"prompt": "B", "size": "768*1024"}, "C")
    task_log()
    end = dag.clear("draw")["draw"]

    assert (end.state, end.returned["images"]) == ("success", 3)
    assert prompts(api)[3:] == ["B"]
    assert old in task_log(), "paid by the old row, and not named in the log"


# Storage that fails between the intents and the ids.


class DiskThatIsFull(MemoryStore):
    """Stores nothing more once it is full; what it has can be read."""

    is_full = False

    def _check(self) -> None:
        if self.is_full:
            raise OSError(28, "No space left on device")

    def pipe_file(self, *args: Any, **kwargs: Any) -> Any:
        self._check()
        return super().pipe_file(*args, **kwargs)

    def put_file(self, *args: Any, **kwargs: Any) -> Any:
        self._check()
        return super().put_file(*args, **kwargs)

    def cp_file(self, *args: Any, **kwargs: Any) -> Any:
        self._check()
        return super().cp_file(*args, **kwargs)

    def _open(self, path: str, mode: str = "rb", *args: Any, **kwargs: Any) -> Any:
        if "r" not in mode:
            self._check()
        return super()._open(path, mode, *args, **kwargs)


def assert_ids_are_named(api: Sandbox, end: TaskEnd) -> None:
    assert end.state == "failed"
    ids = [submission.task_id for submission in api.submissions]
    assert len(ids) == 4, "nothing more is submitted that cannot be written down"
    assert [task_id for task_id in ids if task_id not in str(end.error)] == [], "not in the error"
    assert [task_id for task_id in ids if task_id not in json.dumps(end.xcoms)] == [], "not in an XCom"


def test_ids_that_a_full_disk_does_not_take_are_in_the_error_and_in_an_xcom(api: Sandbox) -> None:
    store = DiskThatIsFull("gs")
    api.configure(hang_seconds=1)
    api.script("generate", ("hang_after", 4))

    def fill() -> None:
        store.is_full = True

    rows = [*PROMPTS, *FOXES]
    dag = dag_with_batch(f"{attach(store, 'gs')}bucket/images", rows, max_in_flight=4, retries=0)
    with run_when(lambda: len(api.submissions) == 4, fill):
        end = dag.run()["draw"]
    assert_ids_are_named(api, end)


def test_ids_of_a_folder_that_vanishes_are_in_the_error_and_in_an_xcom(api: Sandbox, folder: Path) -> None:
    api.configure(hang_seconds=1)
    api.script("generate", ("hang_after", 4))

    def vanish() -> None:
        folder.rename(folder.with_name("moved"))
        folder.write_text("a file that has the name of the folder")

    dag = dag_with_batch(folder, [*PROMPTS, *FOXES], max_in_flight=4, retries=0)
    with run_when(lambda: len(api.submissions) == 4, vanish):
        end = dag.run()["draw"]
    assert_ids_are_named(api, end)


# Two processes of one task: Airflow took the first one for dead.


def assert_images_are_whole(folder: Path, images: int) -> None:
    files = list(folder.glob("*.jpg"))
    assert len(files) == images
    for file in files:
        with Image.open(file) as image:
            image.load()
        assert file.with_suffix(".json").exists()


@pytest.mark.parametrize("hosts", [("host", "host"), ("host", "other")], ids=["one host", "two hosts"])
def test_two_processes_of_one_batch_at_once_pay_for_each_image_once(
    api: Sandbox, folder: Path, processes: TaskProcesses, hosts: tuple[str, str]
) -> None:
    api.configure(latency_seconds=0.2, fault_paths=("generate",))
    rows = [*PROMPTS, *FOXES]
    arguments = {"requests": rows, "output_path": str(folder), "poll_interval": 0.01, "max_in_flight": 4}
    both = [
        processes.start(BATCH, arguments, try_number=number, host=host, waits=True)
        for number, host in enumerate(hosts, start=1)
    ]
    for process in both:
        process.go()
    ends = [process.wait() for process in both]

    assert Counter(prompts(api)) == Counter(rows)
    assert [end.value["images"] for end in ends] == [12, 12]
    assert statuses(folder) == ["SUCCESS"] * 12
    assert_images_are_whole(folder, 12)


def test_a_process_that_was_taken_for_dead_ends_well_after_the_retry_has_drawn_everything(
    api: Sandbox, folder: Path, processes: TaskProcesses
) -> None:
    api.configure(seconds_per_image=3600)
    arguments = {"requests": FOXES, "output_path": str(folder), "poll_interval": 0.01, "max_in_flight": 4}
    old = processes.start(BATCH, arguments)

    def is_waiting() -> bool:
        polls = Counter(request.task_id for request in api.requests if request.route == "status")
        return len(polls) == len(api.submissions) == 4 and min(polls.values()) > 2

    wait_until(is_waiting, "the wait for four images", 30)
    old.freeze()
    finish_images(api)
    assert processes.start(BATCH, arguments, try_number=2).wait().value["images"] == 8
    old.thaw()

    assert old.wait().value["images"] == 8
    assert Counter(prompts(api)) == Counter(FOXES)
    assert_images_are_whole(folder, 8)
