"""Tasks that ask for the same images in one folder, at once or after one has died, pay for each image once.

The credits of an image belong to the task that submitted it; for all others it is reused, and costs nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from airflow_provider_qwenimage import QwenImageBatchOperator
from airflow_provider_qwenimage.sandbox import Sandbox
from tests.events import finish_images, run_when, status_reads, wait_until
from tests.integration.dag_runs import TestDag, dag_that_draws
from tests.task_processes import ProcessEnd, TaskProcess, TaskProcesses

BATCH, GENERATE = "QwenImageBatchOperator", "QwenImageGenerateOperator"
PROMPTS = [f"Fox {number}" for number in range(8)]

ways = pytest.mark.parametrize("way", [{}, {"deferrable": True}], ids=["in the worker", "deferred"])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TaskProcesses]:
    with TaskProcesses(tmp_path_factory.mktemp("processes")) as processes:
        yield processes


@pytest.fixture
def processes(server: TaskProcesses) -> Iterator[TaskProcesses]:
    yield server
    server.kill_all()


@pytest.fixture(params=["disk", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty folder, on the local disk or in a bucket."""
    return str(tmp_path) if request.param == "disk" else f"{request.getfixturevalue('bucket').url}/images"


@pytest.fixture
def api(connected_api: Sandbox) -> Sandbox:
    return connected_api


def in_folder(folder: Path | str, **arguments: Any) -> dict[str, Any]:
    return {"output_path": str(folder), "poll_interval": 0.01} | arguments


def run_at_once(processes: Sequence[TaskProcess]) -> list[ProcessEnd]:
    for process in processes:
        process.go()
    return [process.wait() for process in processes]


def run_batch(folder: Path, **arguments: Any) -> Any:
    """Run a batch in a new DAG; it must succeed at its first try."""
    dag = TestDag()
    with dag:
        QwenImageBatchOperator(task_id="draw", **in_folder(folder, **arguments))
    end = dag.run()["draw"]
    assert (end.state, end.tries) == ("success", 1), end.errors
    return end


def answer_slowly(api: Sandbox, place: str = "") -> None:
    """Have tasks that start together submit before one of them has an answer."""
    seconds = 1.5 if place.startswith("s3:") else 0.3
    api.configure(latency_seconds=seconds, fault_paths=("generate",))


def polls_of_each(api: Sandbox) -> Counter[str | None]:
    return Counter(request.task_id for request in api.requests if request.route == "status")


def are_waited_for(api: Sandbox, images: int) -> bool:
    """Return whether so many submitted images are polled for a third time, long after their ids are known."""
    polls = polls_of_each(api)
    return len(polls) == len(api.submissions) == images and min(polls.values()) > 2


def assert_each_is_drawn_once(api: Sandbox, prompts: Sequence[str]) -> None:
    assert Counter(submission.request["prompt"] for submission in api.submissions) == Counter(prompts)


def assert_folder_is_sound(api: Sandbox, folder: Path, images: int) -> None:
    """There is each submitted image, whole and next to a sidecar that is about it, and no other."""
    files = list(folder.glob("*.jpg"))
    assert len(files) == images
    found = []
    for file in files:
        with Image.open(file) as image:
            image.load()
        sidecar = json.loads(file.with_suffix(".json").read_text())
        assert sidecar["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
        found.append(sidecar["task_id"])
    assert sorted(found) == sorted(submission.task_id for submission in api.submissions)


def test_two_runs_of_a_batch_at_once_pay_for_each_image_once(
    api: Sandbox, tmp_path: Path, place: str, processes: TaskProcesses
) -> None:
    answer_slowly(api, place)
    arguments = in_folder(place, requests=PROMPTS, max_in_flight=4)
    ends = run_at_once([processes.start(BATCH, arguments, run_id=run, waits=True) for run in ("one", "other")])

    assert_each_is_drawn_once(api, PROMPTS)
    assert [(end.value["images"], end.value["failed"]) for end in ends] == [(8, 0)] * 2
    # Each image is new for the run that has submitted it, and reused by the other.
    assert sum(end.value["reused"] for end in ends) == 8
    assert sum(end.value["consumed_credits"] for end in ends) == api.credits_charged == 40
    if place == str(tmp_path):
        assert_folder_is_sound(api, tmp_path, 8)


def test_equal_rows_of_two_batches_at_once_are_as_many_images_as_one_of_them_has(
    api: Sandbox, tmp_path: Path, processes: TaskProcesses
) -> None:
    answer_slowly(api)
    arguments = in_folder(tmp_path, requests=["A fox"] * 3)
    ends = run_at_once([processes.start(BATCH, arguments, run_id=run, waits=True) for run in ("one", "other")])

    assert_each_is_drawn_once(api, ["A fox"] * 3)
    assert [end.value["images"] for end in ends] == [3, 3]
    assert_folder_is_sound(api, tmp_path, 3)


def test_a_batch_beside_operators_pays_for_each_image_once(
    api: Sandbox, tmp_path: Path, processes: TaskProcesses
) -> None:
    answer_slowly(api)
    prompts = PROMPTS[:3]
    started = [processes.start(BATCH, in_folder(tmp_path, requests=prompts), waits=True)]
    for number, prompt in enumerate(prompts):
        arguments = in_folder(tmp_path, prompt=prompt)
        started.append(processes.start(GENERATE, arguments, task_id=f"draw_{number}", waits=True))
    batch, *singles = run_at_once(started)

    assert_each_is_drawn_once(api, prompts)
    assert batch.value["images"] == 3
    assert batch.value["reused"] == sum(not single.value["reused"] for single in singles)
    credits_of_all = [end.value["consumed_credits"] for end in (batch, *singles)]
    assert sum(credits_of_all) == api.credits_charged == 15
    assert_folder_is_sound(api, tmp_path, 3)


def test_mapped_tasks_at_once_with_one_seed_share_one_image(
    api: Sandbox, tmp_path: Path, place: str, processes: TaskProcesses
) -> None:
    answer_slowly(api, place)
    arguments = in_folder(place, prompt="A fox", seed=7)
    ends = run_at_once([processes.start(GENERATE, arguments, map_index=index, waits=True) for index in range(3)])

    assert_each_is_drawn_once(api, ["A fox"])
    (submission,) = api.submissions
    assert [end.value["task_id"] for end in ends] == [submission.task_id] * 3
    shared = [(end.value["reused"], end.value["consumed_credits"], end.xcoms["consumed_credits"]) for end in ends]
    assert sorted(shared) == [(False, 5, 5), (True, 0, 0), (True, 0, 0)]
    if place == str(tmp_path):
        assert_folder_is_sound(api, tmp_path, 1)


@ways
def test_an_image_that_another_task_is_waiting_for_is_shared(
    api: Sandbox, tmp_path: Path, processes: TaskProcesses, way: dict[str, Any], task_log: Callable[[], str]
) -> None:
    api.configure(seconds_per_image=3600)
    first = processes.start(GENERATE, in_folder(tmp_path, prompt="A fox"), run_id="first")
    wait_until(lambda: are_waited_for(api, 1), "the wait of the first task", 30)
    first.freeze()
    polled = status_reads(api)
    task_log()
    with run_when(lambda: status_reads(api) > polled, lambda: finish_images(api)):
        second = dag_that_draws(prompt="A fox", output_path=str(tmp_path), **way).run()["draw"]

    assert_each_is_drawn_once(api, ["A fox"])
    (submission,) = api.submissions
    assert (second.state, second.tries) == ("success", 1)
    shared = (second.returned["task_id"], second.returned["reused"], second.returned["consumed_credits"])
    assert shared == (submission.task_id, True, 0)
    assert second.xcoms["consumed_credits"] == 0
    assert submission.task_id in task_log()
    first.thaw()
    returned = first.wait().value
    assert (returned["task_id"], returned["reused"], returned["consumed_credits"]) == (submission.task_id, False, 5)
    assert len(api.submissions) == 1
    assert_folder_is_sound(api, tmp_path, 1)


def test_a_submission_of_another_task_that_has_no_answer_yet_is_waited_for(
    api: Sandbox, tmp_path: Path, processes: TaskProcesses
) -> None:
    api.configure(hang_seconds=1.5)
    api.script("generate", "hang_after")
    first = processes.start(GENERATE, in_folder(tmp_path, prompt="A fox"), run_id="first")
    second = processes.start(BATCH, in_folder(tmp_path, requests=["A fox"]), run_id="second", waits=True)
    wait_until(lambda: api.submissions, "the first submission", 30)
    second.go()

    ends = first.wait(), second.wait()
    assert_each_is_drawn_once(api, ["A fox"])
    assert ends[0].value["reused"] is False
    returned = ends[1].value
    assert (returned["images"], returned["reused"], returned["consumed_credits"]) == (1, 1, 0)
    assert_folder_is_sound(api, tmp_path, 1)


def test_a_new_run_fetches_what_a_killed_batch_has_paid_and_submits_only_the_rest(
    api: Sandbox, tmp_path: Path, processes: TaskProcesses, task_log: Callable[[], str]
) -> None:
    api.configure(seconds_per_image=3600)
    killed = processes.start(BATCH, in_folder(tmp_path, requests=PROMPTS, max_in_flight=4))
    wait_until(lambda: are_waited_for(api, 4), "the wait for four images", 30)
    killed.kill()
    paid = [submission.task_id for submission in api.submissions]
    finish_images(api)
    task_log()
    end = run_batch(tmp_path, requests=PROMPTS)

    assert_each_is_drawn_once(api, PROMPTS)
    assert (end.returned["images"], end.returned["reused"], end.returned["consumed_credits"]) == (8, 4, 20)
    log = task_log()
    assert [task_id for task_id in paid if task_id not in log] == [], "paid by the dead run, and not named in the log"
    rows = [json.loads(line) for line in (tmp_path / "manifest.jsonl").read_text().splitlines()]
    assert {row["task_id"] for row in rows if row["reused"]} == set(paid)
    assert_folder_is_sound(api, tmp_path, 8)


@ways
def test_a_task_of_another_dag_fetches_what_a_killed_task_has_paid(
    api: Sandbox, tmp_path: Path, processes: TaskProcesses, way: dict[str, Any], task_log: Callable[[], str]
) -> None:
    api.configure(seconds_per_image=3600)
    killed = processes.start(GENERATE, in_folder(tmp_path, prompt="A fox"))
    wait_until(lambda: are_waited_for(api, 1), "the wait for the image", 30)
    killed.kill()
    finish_images(api)
    task_log()
    end = dag_that_draws(prompt="A fox", output_path=str(tmp_path), **way).run()["draw"]

    assert_each_is_drawn_once(api, ["A fox"])
    (submission,) = api.submissions
    assert end.state == "success"
    fetched = (end.returned["task_id"], end.returned["reused"], end.returned["consumed_credits"])
    assert fetched == (submission.task_id, True, 0)
    assert submission.task_id in task_log()
    assert_folder_is_sound(api, tmp_path, 1)


def test_a_batch_fetches_what_a_killed_operator_has_paid(
    api: Sandbox, tmp_path: Path, processes: TaskProcesses, task_log: Callable[[], str]
) -> None:
    api.configure(seconds_per_image=3600)
    killed = processes.start(GENERATE, in_folder(tmp_path, prompt="A fox"))
    wait_until(lambda: are_waited_for(api, 1), "the wait for the image", 30)
    killed.kill()
    (paid,) = api.submissions
    finish_images(api)
    task_log()
    end = run_batch(tmp_path, requests=["A fox", "A hare"])

    assert_each_is_drawn_once(api, ["A fox", "A hare"])
    assert (end.returned["reused"], end.returned["consumed_credits"]) == (1, 5)
    assert paid.task_id in task_log()
    assert_folder_is_sound(api, tmp_path, 2)


def test_an_operator_fetches_what_a_killed_batch_has_paid(
    api: Sandbox, tmp_path: Path, processes: TaskProcesses, task_log: Callable[[], str]
) -> None:
    api.configure(seconds_per_image=3600)
    killed = processes.start(BATCH, in_folder(tmp_path, requests=["A fox"]))
    wait_until(lambda: are_waited_for(api, 1), "the wait for the image", 30)
    killed.kill()
    (paid,) = api.submissions
    finish_images(api)
    task_log()
    end = dag_that_draws(prompt="A fox", output_path=str(tmp_path)).run()["draw"]

    assert len(api.submissions) == 1
    assert (end.returned["task_id"], end.returned["reused"]) == (paid.task_id, True)
    assert paid.task_id in task_log()
