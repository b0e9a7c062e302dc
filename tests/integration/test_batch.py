"""Many images in one task: batches that succeed, fail, are killed and are retried."""

from __future__ import annotations

import asyncio
import json
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import task
from PIL import Image

from airflow_provider_qwenimage import QwenImageBatchOperator, QwenImageGenerateOperator
from airflow_provider_qwenimage.batch import image as batch_image
from airflow_provider_qwenimage.batch import run as batch
from airflow_provider_qwenimage.batch import task as batch_task
from airflow_provider_qwenimage.batch.task import BatchTask
from airflow_provider_qwenimage.client import downloads
from airflow_provider_qwenimage.hooks import QwenImageAsyncHook
from airflow_provider_qwenimage.sandbox import Sandbox
from airflow_provider_qwenimage.sandbox.server import SandboxServer
from airflow_provider_qwenimage.storage import files as storage
from airflow_provider_qwenimage.storage import image_pairs
from airflow_provider_qwenimage.storage.image_pairs import ImagePair
from airflow_provider_qwenimage.tasks.ledger import Ledger
from tests.events import finish_image, finish_images, pass_execution_timeout, run_when, wait_until
from tests.integration.dag_runs import TaskEnd, TestDag, crash_once, stored_files

FOXES = ["A fox", "A fox", "A hare"]


def dag_with_batch(folder: Path, dag: TestDag | None = None, **arguments: Any) -> TestDag:
    dag = dag or TestDag()
    with dag:
        QwenImageBatchOperator(
            **{"task_id": "draw", "requests": FOXES, "output_path": str(folder), "poll_interval": 0.01} | arguments
        )
    return dag


def draw(folder: Path, **arguments: Any) -> TaskEnd:
    return dag_with_batch(folder, **arguments).run()["draw"]


def manifest(folder: Path, name: str = "manifest.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def statuses(folder: Path) -> list[str]:
    return [row["status"] for row in manifest(folder)]


def prompts(api: Sandbox) -> list[str]:
    return sorted(submission.request["prompt"] for submission in api.submissions)


def hidden_files(folder: Path) -> list[str]:
    return [file.name for file in folder.iterdir() if file.name.startswith(".")]


def recorded_ids(folder: Path) -> set[str]:
    """The API's ids of the image tasks that are recorded, and not done."""
    facts = [json.loads((folder / name).read_text()) for name in hidden_files(folder)]
    return {fact["image_task_id"] for fact in facts if "image_task_id" in fact}


def polled_tasks(api: Sandbox) -> set[str | None]:
    """Return the ids of the image tasks that were polled; a task is polled after its id is recorded."""
    return {request.task_id for request in api.requests if request.route == "status"}


def has_ended() -> bool:
    """Return whether all threads of a batch have ended, so that nothing more is submitted or stored."""
    return not any(thread.name.startswith(("qwenimage-batch", "qwenimage-stor")) for thread in threading.enumerate())


@pytest.fixture
def patient_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give a stopped batch enough time for its last steps on a busy machine."""
    # Airflow kills a process five seconds after a signal.
    assert 2 < batch._LAST_ANSWERS_SECONDS < batch_task._STOP_SECONDS < 5
    monkeypatch.setattr(batch, "_LAST_ANSWERS_SECONDS", 60.0)
    monkeypatch.setattr(batch_task, "_STOP_SECONDS", 90.0)
    # An alarm must interrupt the wait for the batch, not Airflow's work on an XCom.
    monkeypatch.setattr(batch_task, "_PROGRESS_SECONDS", 3600.0)


@pytest.fixture
def answer_when_stopped(patient_end: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answer submissions as soon as the batch is asked to stop, whatever their latency."""
    stopped = threading.Event()
    stop = batch.Batch.stop

    def stop_and_note(self: batch.Batch, reason: str) -> None:
        stop(self, reason)
        stopped.set()

    async def pause(self: SandboxServer, seconds: float) -> None:
        assert await asyncio.to_thread(stopped.wait, 60)

    monkeypatch.setattr(batch.Batch, "stop", stop_and_note)
    monkeypatch.setattr(SandboxServer, "_pause", pause)


def price_images(monkeypatch: pytest.MonkeyPatch, price: float) -> None:
    """Have the API report this price for each image."""
    follow = QwenImageAsyncHook.follow

    async def follow_priced(self: QwenImageAsyncHook, *args: Any, **kwargs: Any) -> Any:
        end = await follow(self, *args, **kwargs)
        return replace(end, snapshot=replace(end.snapshot, consumed_credits=price))

    monkeypatch.setattr(QwenImageAsyncHook, "follow", follow_priced)


@pytest.fixture
def api(connected_api: Sandbox) -> Sandbox:
    return connected_api


def test_every_image_is_stored_and_listed_in_the_order_of_the_requests(api: Sandbox, tmp_path: Path) -> None:
    requests = [*FOXES, {"prompt": "An owl", "seed": 3, "size": "768*1024", "output_format": "png"}]
    end = draw(tmp_path, requests=requests)
    assert (end.state, end.tries) == ("success", 1)
    assert end.returned == {
        "manifest": str(tmp_path / "manifest.jsonl"),
        "requests": 4,
        "images": 4,
        "reused": 0,
        "failed": 0,
        "consumed_credits": 20,
        "at_risk": 0,
    }
    assert "at_risk" not in end.xcoms
    assert end.xcoms["manifest"] == end.returned["manifest"]
    assert end.xcoms["consumed_credits"] == api.credits_charged == 20
    rows = manifest(tmp_path)
    assert [row["prompt"] for row in rows] == ["A fox", "A fox", "A hare", "An owl"]
    assert [row["row"] for row in rows] == [1, 2, 3, 4]
    assert statuses(tmp_path) == ["SUCCESS"] * 4
    for row in rows:
        (path,) = row["paths"]
        with Image.open(path.removeprefix("file://")) as image:
            image.load()
            assert f"{image.width}*{image.height}" == row["size"]
        sidecar = json.loads(Path(path.removeprefix("file://")).with_suffix(".json").read_text())
        assert (sidecar["task_id"], sidecar["consumed_credits"]) == (row["task_id"], 5)
    assert len({row["task_id"] for row in rows}) == 4
    assert len(stored_files(tmp_path)) == 2 * 4 + 1
    assert hidden_files(tmp_path) == []


def test_a_signature_in_the_url_of_an_image_is_not_stored(
    api: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    follow = QwenImageAsyncHook.follow

    async def follow_signed(self: QwenImageAsyncHook, *args: Any, **kwargs: Any) -> Any:
        end = await follow(self, *args, **kwargs)
        signed = tuple(f"{url}?Signature=secret" for url in end.snapshot.image_urls)
        return replace(end, snapshot=replace(end.snapshot, image_urls=signed))

    monkeypatch.setattr(QwenImageAsyncHook, "follow", follow_signed)
    draw(tmp_path)
    assert [request.path.endswith("?Signature=secret") for request in api.requests if request.route == "image"] == [
        True
    ] * 3
    assert statuses(tmp_path) == ["SUCCESS"] * 3
    for file in tmp_path.glob("*.json*"):
        assert "secret" not in file.read_text()


def test_equal_requests_with_one_seed_are_drawn_and_paid_once(api: Sandbox, tmp_path: Path) -> None:
    fox = {"prompt": "A fox", "seed": 7}
    end = draw(tmp_path, requests=[fox | {"label": "first"}, "A hare", fox | {"label": "twin", "text": "a fox"}])
    assert end.returned["images"] == 2
    assert end.returned["requests"] == 3
    assert prompts(api) == ["A fox", "A hare"]
    first, _, third = manifest(tmp_path)
    assert (third["same_as"], third["paths"], third["consumed_credits"]) == (1, first["paths"], 0)
    assert (first["label"], third["label"], third["text"], "text" in first) == ("first", "twin", "a fox", False)
    assert api.submissions[0].request.keys() == api.submissions[1].request.keys(), "the API is not told"
    assert "first" not in Path(first["paths"][0]).with_suffix(".json").read_text(), "the sidecar may be shared"


def test_no_more_than_max_in_flight_images_are_in_flight_at_once(api: Sandbox, tmp_path: Path) -> None:
    draw(tmp_path, requests=[f"Fox {number}" for number in range(9)], max_in_flight=3)
    assert len(api.submissions) == 9
    polls, in_flight = Counter[str | None](), set[str | None]()
    for request in api.requests:
        if request.route == "generate":
            in_flight.add(request.task_id)
            assert len(in_flight) <= 3
        elif request.route == "status":
            polls[request.task_id] += 1
            # The second poll finds the image finished.
            if polls[request.task_id] == 2:
                in_flight.remove(request.task_id)
    assert in_flight == set()


def test_progress_is_pushed_and_logged_while_it_runs(
    api: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task_log: Callable[[], str]
) -> None:
    monkeypatch.setattr(batch_task, "_PROGRESS_SECONDS", 0.02)
    api.configure(seconds_per_image=3600)
    report = BatchTask._report

    def report_and_finish(self: BatchTask, *args: Any) -> None:
        report(self, *args)
        progress = self._reported
        # Two are in flight, except at the end.
        if progress["in_flight"] == min(2, 6 - progress["done"]):
            for submission in api.submissions:
                finish_image(api, submission.task_id)

    monkeypatch.setattr(BatchTask, "_report", report_and_finish)
    end = draw(tmp_path, requests=[f"Fox {number}" for number in range(6)], max_in_flight=2)
    progress = end.xcoms["progress"]
    assert (progress["requests"], progress["done"], progress["in_flight"], progress["consumed_credits"]) == (
        6,
        6,
        0,
        30,
    )
    assert progress["images_per_second"] > 0
    log = task_log()
    assert log.count(" of 6 images stored") >= 3
    assert "2 in flight" in log


def test_requests_are_read_from_a_file_whose_path_is_a_template(api: Sandbox, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('"A fox"\n{"prompt": "A hare", "seed": 5}\n')
    dag = dag_with_batch(tmp_path / "images", TestDag(params={"file": f"file://{file}"}), requests="{{ params.file }}")
    assert dag.run()["draw"].returned["images"] == 2
    assert [row["prompt"] for row in manifest(tmp_path / "images")] == ["A fox", "A hare"]


def test_requests_come_from_an_xcom_and_are_rendered(api: Sandbox, tmp_path: Path) -> None:
    dag = TestDag()
    with dag:

        @task
        def think_of_prompts() -> list[Any]:
            return ["A fox", {"prompt": "A hare", "seed": 1}]

        dag_with_batch(tmp_path / "a", dag, requests=think_of_prompts())
        dag_with_batch(
            tmp_path / "b",
            dag,
            task_id="listed",
            requests=["{{ dag.dag_id }}", {"prompt": "{{ run_id }}", "seed": "{{ 3 + 4 }}"}],
        )
        dag_with_batch(
            tmp_path / "c",
            dag,
            task_id="pulled",
            requests="{{ ti.xcom_pull(task_ids='think_of_prompts') }}",
        )
        dag.dag.set_dependency("think_of_prompts", "pulled")
    run = dag.run()
    assert run.state == "success"
    assert [row["prompt"] for row in manifest(tmp_path / "a")] == ["A fox", "A hare"]
    assert [row["seed"] for row in manifest(tmp_path / "b")] == [-1, 7]
    assert [row["prompt"] for row in manifest(tmp_path / "c")] == ["A fox", "A hare"]


def test_mapped_batches_have_manifests_and_images_of_their_own(api: Sandbox, tmp_path: Path) -> None:
    dag = TestDag()
    with dag:
        QwenImageBatchOperator.partial(task_id="draw", output_path=str(tmp_path), poll_interval=0.01).expand(
            requests=[["A fox"], ["A fox", "A hare"]]
        )
    assert dag.run().state == "success"
    assert len(api.submissions) == 3
    paths = [row["paths"] for index in (0, 1) for row in manifest(tmp_path, f"manifest-{index}.jsonl")]
    assert len({path for (path,) in paths}) == 3


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"requests": "{{ params.rows }}"}, "row 2: size is '9*9'"),
        ({"requests": "{{ params.text }}"}, "requests is 'A fox'; it must be a list"),
    ],
)
def test_nothing_is_spent_if_a_request_is_bad(
    api: Sandbox, tmp_path: Path, arguments: dict[str, Any], expected: str
) -> None:
    params = {"rows": '["A fox", {"prompt": "A hare", "size": "9*9"}]', "text": "A fox"}
    end = dag_with_batch(tmp_path, TestDag(params=params), **arguments).run()["draw"]
    assert (end.state, end.tries) == ("failed", 1)
    assert expected in str(end.error)
    assert api.submissions == []


def test_a_file_that_does_not_exist_yet_allows_a_retry(api: Sandbox, tmp_path: Path) -> None:
    end = draw(tmp_path, requests=str(tmp_path / "prompts.csv"))
    assert (end.state, end.tries) == ("failed", 3)
    assert "that file does not exist" in str(end.errors[0])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"requests": "A red fox"}, "requests is 'A red fox'; it must be a list of prompts"),
        ({"requests": ["A fox", ""]}, "requests has a bad row 2: prompt is ''"),
        ({"requests": [{"prompt": "A fox", "sise": "1024*1024"}]}, "'sise' is not a field"),
        ({"max_in_flight": 0}, "max_in_flight is 0; it must be an integer of at least 1"),
        ({"max_failures": -1}, "max_failures is -1; it must be an integer of at least 0"),
        ({"max_failures": True}, "max_failures is True"),
        ({"max_credits": -5}, "max_credits is -5"),
        ({"poll_interval": 0}, "poll_interval is 0"),
        ({"timeout": 0}, "timeout is 0"),
        ({"max_image_bytes": 0}, "max_image_bytes is 0"),
        ({"output_path": "/tmp/a.jpg"}, "looks like an image file"),  # noqa: S108  a path that is never opened
        ({"output_path": ""}, "output_path is ''"),
    ],
)
def test_a_bad_argument_is_refused_while_the_dag_is_parsed(
    tmp_path: Path, arguments: dict[str, Any], expected: str
) -> None:
    with pytest.raises(ValueError, match=expected.replace("(", r"\(")):
        dag_with_batch(tmp_path, **arguments)


def test_an_empty_batch_is_done_at_once(api: Sandbox, tmp_path: Path) -> None:
    end = draw(tmp_path, requests=[])
    assert end.state == "success"
    assert end.returned["images"] == 0
    assert manifest(tmp_path) == []


def test_an_image_that_is_stored_already_is_not_paid_again(api: Sandbox, tmp_path: Path) -> None:
    draw(tmp_path)
    end = draw(tmp_path, requests=["An owl", *FOXES])
    assert (end.returned["reused"], end.returned["consumed_credits"]) == (3, 5)
    assert prompts(api) == ["A fox", "A fox", "A hare", "An owl"]
    assert [row["reused"] for row in manifest(tmp_path)] == [False, True, True, True]
    assert [row["consumed_credits"] for row in manifest(tmp_path)] == [5, 0, 0, 0]


def test_a_batch_reuses_an_image_of_a_single_task(api: Sandbox, tmp_path: Path) -> None:
    dag = TestDag()
    with dag:
        QwenImageGenerateOperator(
            task_id="draw", prompt="A hare", output_path=str(tmp_path), poll_interval=0.01, deferrable=False
        )
    dag.run()
    assert draw(tmp_path).returned["reused"] == 1


def test_overwrite_draws_a_new_image_once_per_task(
    api: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw(tmp_path)
    crash_once(monkeypatch, BatchTask, "_put_manifest")
    end = draw(tmp_path, overwrite=True)
    assert end.state == "success"
    assert len(api.submissions) == 6
    assert end.returned["consumed_credits"] == 15
    assert [row["reused"] for row in manifest(tmp_path)] == [False] * 3


def test_after_a_failure_a_batch_finishes_paid_images_submits_no_more_and_the_retry_continues(
    api: Sandbox, tmp_path: Path
) -> None:
    api.configure(seconds_per_image=3600)
    with run_when(lambda: prompts(api) == ["A fox", "Fog [fail]"], lambda: finish_images(api)):
        end = draw(tmp_path, requests=["A fox", "Fog [fail]", "A hare", "An owl"], max_in_flight=2)
    assert (end.state, end.tries) == ("failed", 3)
    # Each try pays for rows that the previous try did not submit; the failing row fails each time.
    assert Counter(prompts(api))["A fox"] == 1
    assert set(Counter(prompts(api)).values()) <= {1, 3}
    assert statuses(tmp_path)[:2] == ["SUCCESS", "FAILED"]
    row = manifest(tmp_path)[1]
    assert row["error"] == "QwenImageTaskFailedError"
    assert "The image could not be drawn" in row["message"]
    assert "row 2: Image task" in str(end.errors[-1])


def test_a_refused_prompt_is_not_submitted_again_by_a_retry(api: Sandbox, tmp_path: Path) -> None:
    end = draw(tmp_path, requests=["Fog [policy]", "A hare"], max_in_flight=1)
    assert (end.state, end.tries) == ("failed", 1)
    assert prompts(api) == ["Fog [policy]"]
    assert statuses(tmp_path) == ["FAILED", "NOT_SUBMITTED"]
    assert "row 1 failed; row 2 was not started, because 1 failed, and max_failures is 0" in str(end.error)
    assert "Correct row 1, then clear: row 1 is submitted again (5 credits)" in str(end.error)


def test_a_batch_continues_after_as_many_failures_as_allowed(api: Sandbox, tmp_path: Path) -> None:
    end = draw(tmp_path, requests=["Fog [policy]", "A hare", "Fog [fail]"], max_in_flight=1, max_failures=2)
    assert (end.state, end.tries) == ("success", 1)
    assert (end.returned["images"], end.returned["failed"]) == (1, 2)
    assert statuses(tmp_path) == ["FAILED", "SUCCESS", "FAILED"]


def test_max_credits_stops_the_submissions_and_a_cleared_task_continues(api: Sandbox, tmp_path: Path) -> None:
    dag = dag_with_batch(tmp_path, requests=["A", "B", "C", "D"], max_credits=10)
    end = dag.run()["draw"]
    assert (end.state, end.tries) == ("failed", 1)
    assert api.credits_charged == 10
    assert "max_credits is 10, 10 are spent" in str(end.error)
    assert Counter(statuses(tmp_path)) == {"SUCCESS": 2, "NOT_SUBMITTED": 2}
    end = dag.clear("draw")["draw"]
    assert end.state == "success"
    assert api.credits_charged == 20
    assert end.returned["consumed_credits"] == 10


def test_max_credits_counts_credits_that_earlier_tries_spent_on_later_rows(
    api: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crash_once(monkeypatch, BatchTask, "_put_manifest")
    end = draw(tmp_path, requests=["A [fail]", "B", "C"], max_credits=10, max_failures=2)
    assert (end.state, end.tries) == ("failed", 2)
    assert prompts(api) == ["A [fail]", "B", "C"]
    assert statuses(tmp_path) == ["NOT_SUBMITTED", "SUCCESS", "SUCCESS"]
    assert end.xcoms["consumed_credits"] == api.credits_charged == 10


def test_max_credits_holds_if_an_image_costs_more_than_documented(
    api: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    price_images(monkeypatch, 7)
    end = draw(tmp_path, requests=["A", "B", "C", "D", "E"], max_credits=25, max_in_flight=1)
    assert (end.state, end.tries) == ("failed", 1)
    assert len(api.submissions) == 3
    assert end.xcoms["consumed_credits"] == 21
    assert "max_credits is 25, 21 are spent, and an image costs 7 credits (as was last charged)" in str(end.error)


def test_max_credits_holds_if_the_api_reports_no_costs(
    api: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    price_images(monkeypatch, 0)
    end = draw(tmp_path, requests=["A", "B", "C", "D"], max_credits=10)
    assert (end.state, end.tries) == ("failed", 1)
    assert len(api.submissions) == 2
    assert end.xcoms["consumed_credits"] == 0


@pytest.mark.parametrize("charged", [5, 7, 0])
def test_a_batch_is_not_green_while_a_paid_image_can_still_be_fetched(
    api: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick_downloads: None, charged: float
) -> None:
    price_images(monkeypatch, charged)
    # Each download is tried six times.
    api.script("image", ("server_error", 12))
    dag = dag_with_batch(tmp_path, requests=["A", "B"], max_in_flight=1, max_failures=2, retries=0)
    end = dag.run()["draw"]
    assert end.state == "failed"
    assert statuses(tmp_path) == ["UNFINISHED"] * 2
    assert (end.xcoms["consumed_credits"], end.xcoms["progress"]["at_risk"]) == (2 * charged, 0)
    assert [row["consumed_credits"] for row in manifest(tmp_path)] == [charged] * 2
    assert "at_risk" not in end.xcoms
    assert "rows 1 and 2 are paid and their images are not stored yet" in str(end.error)
    end = dag.clear("draw")["draw"]
    assert end.state == "success"
    assert len(api.submissions) == 2
    assert end.returned["consumed_credits"] == 2 * charged
    assert statuses(tmp_path) == ["SUCCESS"] * 2


def test_a_paid_image_whose_price_is_not_known_is_at_risk(api: Sandbox, tmp_path: Path) -> None:
    api.configure(seconds_per_image=3600)
    end = draw(tmp_path, requests=["A", "B"], max_failures=2, timeout=0.2, retries=0)
    assert end.state == "failed"
    assert (end.xcoms["consumed_credits"], end.xcoms["at_risk"]) == (0, 10)


def test_a_callback_that_would_never_be_called_is_refused_before_the_first_credit(api: Sandbox, tmp_path: Path) -> None:
    fox = {"prompt": "A fox", "seed": 7}
    end = draw(tmp_path, requests=[fox | {"callback_url": f"https://a.example/{number}"} for number in range(2)])
    assert (end.state, end.tries) == ("failed", 1)
    assert "row 2: callback_url is not that of row 1" in str(end.error)
    assert api.submissions == []


def test_names_are_listed_in_the_manifest_and_the_api_is_not_told(api: Sandbox, tmp_path: Path) -> None:
    assert draw(tmp_path, requests=[{"prompt": "A fox", "name": "{{ task.task_id }} 1"}, "A hare"]).state == "success"
    assert [row.get("name") for row in manifest(tmp_path)] == ["draw 1", None]
    assert all("name" not in submission.request for submission in api.submissions)


def lose_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have no id of an image task be recorded, as on a full disk."""

    def accept(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Ledger, "accept", accept)


def test_ids_that_could_not_be_recorded_are_reported_and_nothing_hides_them(
    api: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick_downloads: None, task_log: Callable[[], str]
) -> None:
    lose_ids(monkeypatch)
    api.script("image", ("server_error", 100))

    def put_manifest(*_: Any) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(BatchTask, "_put_manifest", put_manifest)
    end = draw(tmp_path, requests=["A", "B", "C"], max_failures=3)
    assert (end.state, end.tries) == ("failed", 1), "a retry would delete the XComs and not find the ids"
    ids = [submission.task_id for submission in api.submissions]
    assert len(ids) == 3
    log = task_log()
    for image_task_id in ids:
        assert f"{image_task_id} (row " in str(end.error)
        assert f"image task {image_task_id} is accepted" in log
    assert "Not all of it could be stored (OSError: [Errno 28] No space left on device)." in str(end.error)
    assert sorted(entry["task_id"] for entry in end.xcoms["unrecorded"]) == sorted(ids)
    assert sorted(entry["row"] for entry in end.xcoms["unrecorded"]) == [1, 2, 3]


def test_ids_that_could_not_be_recorded_are_in_the_manifest(
    api: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick_downloads: None
) -> None:
    lose_ids(monkeypatch)
    api.script("image", ("server_error", 100))
    assert draw(tmp_path, requests=["A", "B"]).state == "failed"
    ids = {submission.task_id for submission in api.submissions}
    assert {row["task_id"] for row in manifest(tmp_path) if row["status"] == "UNFINISHED"} == ids


def test_an_id_that_could_not_be_recorded_does_not_matter_once_the_image_is_stored(
    api: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lose_ids(monkeypatch)
    end = draw(tmp_path)
    assert end.state == "success"
    assert "unrecorded" not in end.xcoms


def test_an_xcom_that_cannot_be_pushed_does_not_hide_the_error_of_the_batch(
    api: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.script("generate", "drop_after")
    push = BatchTask._push

    def refuse(self: BatchTask, key: str, value: Any) -> list[Exception]:
        refusing = SimpleNamespace(xcom_push=lambda **_: (_ for _ in ()).throw(RuntimeError("the API server is away")))
        monkeypatch.setattr(self, "_ti", refusing)
        return push(self, key, value)

    monkeypatch.setattr(BatchTask, "_push", refuse)
    end = draw(tmp_path, requests=["A"])
    assert (end.state, end.tries) == ("failed", 1)
    assert "row 1 may be paid and its id is lost" in str(end.error)
    assert "Not all of it could be stored (RuntimeError: the API server is away)." in str(end.error)


def test_an_error_of_the_whole_batch_does_not_hide_ids_that_could_not_be_recorded(
    api: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lose_ids(monkeypatch)
    api.configure(seconds_per_image=3600)
    wait = batch.Batch.wait

    def wait_and_break(self: batch.Batch, seconds: float) -> bool:
        if self.totals.unrecorded:
            raise OSError(28, "No space left on device")
        return wait(self, 0.05)

    monkeypatch.setattr(batch.Batch, "wait", wait_and_break)
    end = draw(tmp_path, requests=["A"])
    assert (end.state, end.tries) == ("failed", 1)
    assert f"{api.submissions[0].task_id} (row 1)" in str(end.error)
    assert "because the batch was stopped (OSError: [Errno 28] No space left on device)" in str(end.error)
    assert end.xcoms["unrecorded"] == [{"row": 1, "task_id": api.submissions[0].task_id}]


def test_a_wrong_key_ends_the_batch_at_once(api: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connection = json.loads(api.connection_json) | {"password": "sk-wrong"}
    monkeypatch.setenv("AIRFLOW_CONN_QWENIMAGE_DEFAULT", json.dumps(connection))
    end = draw(tmp_path, requests=[f"Fox {number}" for number in range(50)], max_in_flight=2, max_failures=100)
    assert (end.state, end.tries) == ("failed", 1)
    assert len(api.requests) <= 4
    assert "the API refuses this account" in str(end.error)
    assert "Correct the key in connection qwenimage_default, then clear: " in str(end.error)
    assert "orrect row" not in str(end.error)


def test_a_lost_answer_is_reported_and_clearing_the_task_submits_that_row_again(api: Sandbox, tmp_path: Path) -> None:
    api.script("generate", "ok", "drop_after")
    dag = dag_with_batch(tmp_path, requests=["A", "B", "C"], max_in_flight=1, max_failures=0)
    end = dag.run()["draw"]
    assert (end.state, end.tries) == ("failed", 1)
    assert statuses(tmp_path) == ["SUCCESS", "UNKNOWN", "NOT_SUBMITTED"]
    assert "row 2 may be paid and its id is lost; row 3 was not started" in str(end.error)
    assert (
        "Compare your credits, then clear: row 2 is submitted again (5 credits), row 3 is submitted for the first time "
        "(5)." in str(end.error)
    )
    assert (end.xcoms["consumed_credits"], end.xcoms["at_risk"]) == (5, 5)
    assert end.xcoms["progress"]["at_risk"] == 5
    end = dag.clear("draw")["draw"]
    assert end.state == "success"
    assert prompts(api) == ["A", "B", "B", "C"]
    assert statuses(tmp_path) == ["SUCCESS"] * 3
    assert hidden_files(tmp_path) == []


CRASHES = {
    "before the intent": (Ledger, "intend", False),
    "after the intent": (Ledger, "intend", True),
    "after the answer": (Ledger, "accept", False),
    "after the id is recorded": (Ledger, "accept", True),
    "before the image is stored": (ImagePair, "put", False),
    "after the image is stored": (ImagePair, "put", True),
    "before it is recorded as finished": (Ledger, "finish", False),
    "before the manifest": (BatchTask, "_put_manifest", False),
}
UNKNOWN_AFTER = ("after the intent", "after the answer")


@pytest.mark.parametrize("moment", CRASHES)
def test_a_crash_at_any_moment_costs_no_second_image(
    api: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    owner, name, after = CRASHES[moment]
    crash_once(monkeypatch, owner, name, after=after)
    # A real crash ends the process; here it ends only the batch, so no submission may outlive it.
    monkeypatch.setattr(batch, "_LAST_ANSWERS_SECONDS", 0.0)
    dag = dag_with_batch(tmp_path, requests=[*FOXES, "An owl"], max_in_flight=1)
    end = dag.run()["draw"]
    if moment in UNKNOWN_AFTER:
        # The task first draws the other rows, then reports the image that may be paid.
        assert end.state == "failed"
        assert Counter(statuses(tmp_path)) == {"UNKNOWN": 1, "SUCCESS": 3}
        end = dag.clear("draw")["draw"]
    assert end.state == "success"
    assert statuses(tmp_path) == ["SUCCESS"] * 4
    lost = 1 if moment == "after the answer" else 0
    assert len(api.submissions) == 4 + lost
    assert hidden_files(tmp_path) == []
    assert len(stored_files(tmp_path)) == 2 * 4 + 1


def test_a_retry_resumes_paid_images_before_it_submits(
    api: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task_log: Callable[[], str]
) -> None:
    crash_once(monkeypatch, QwenImageAsyncHook, "follow")
    end = draw(tmp_path, requests=["A", "B", "C"], max_in_flight=1)
    assert (end.state, end.tries) == ("success", 2)
    assert [submission.request["prompt"] for submission in api.submissions] == ["A", "B", "C"]
    routes = [(request.route, request.task_id) for request in api.requests if request.route != "image"]
    first = api.submissions[0].task_id
    assert routes[1] == ("status", first), "the image of the first try is polled before another is submitted"


def test_an_execution_timeout_loses_nothing_and_the_next_try_continues(
    api: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patient_end: None
) -> None:
    api.configure(seconds_per_image=3600)
    stop = batch.Batch.stop

    def stop_and_finish(self: batch.Batch, reason: str) -> None:
        stop(self, reason)
        finish_images(api)

    monkeypatch.setattr(batch.Batch, "stop", stop_and_finish)
    with run_when(lambda: len(polled_tasks(api)) == 3, pass_execution_timeout):
        end = draw(tmp_path, execution_timeout=timedelta(hours=1))
    assert end.state == "success"
    assert end.tries == 2
    assert len(api.submissions) == 3
    assert statuses(tmp_path) == ["SUCCESS"] * 3


def test_nothing_more_is_submitted_once_an_execution_timeout_has_passed(
    api: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patient_end: None
) -> None:
    submitted_by_then: list[int] = []
    stop = batch.Batch.stop

    def stop_and_count(self: batch.Batch, reason: str) -> None:
        stop(self, reason)
        submitted_by_then.append(len(api.submissions))

    monkeypatch.setattr(batch.Batch, "stop", stop_and_count)
    with run_when(lambda: len(api.submissions) >= 6, pass_execution_timeout):
        end = draw(
            tmp_path,
            requests=[f"Fox {number}" for number in range(100)],
            max_in_flight=2,
            execution_timeout=timedelta(hours=1),
            retries=0,
        )
    assert end.state == "failed"
    wait_until(has_ended, "the end of the batch")
    submitted = len(api.submissions)
    # Two submissions may have been in progress.
    assert 6 <= submitted <= submitted_by_then[0] + 2 < 100
    stored = len(list(tmp_path.glob("*.jpg")))
    assert stored + len(recorded_ids(tmp_path)) == submitted


def test_an_execution_timeout_waits_for_the_answer_of_a_pending_submission(
    api: Sandbox, tmp_path: Path, answer_when_stopped: None
) -> None:
    api.configure(seconds_per_image=3600, latency_seconds=3600, fault_paths=("generate",))
    with run_when(lambda: api.requests, pass_execution_timeout):
        end = draw(tmp_path, requests=["A", "B"], max_in_flight=1, execution_timeout=timedelta(hours=1), retries=0)
    assert end.state == "failed"
    assert recorded_ids(tmp_path) == {api.submissions[0].task_id}


def test_a_signal_that_does_not_wake_the_waiting_thread_is_handled_within_seconds(
    api: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_task, "_PROGRESS_SECONDS", 3600)
    api.configure(seconds_per_image=3600)

    def alarm_this_thread() -> None:
        # Like a signal just before the main thread blocks: it is pending, but does not wake the thread.
        signal.pthread_kill(threading.get_ident(), signal.SIGALRM)

    with run_when(lambda: len(polled_tasks(api)) == 2, alarm_this_thread):
        end = draw(tmp_path, requests=["A", "B"], execution_timeout=timedelta(hours=1), retries=0)
    assert end.state == "failed"
    assert recorded_ids(tmp_path) == {submission.task_id for submission in api.submissions}


@pytest.fixture
def running(monkeypatch: pytest.MonkeyPatch) -> list[QwenImageBatchOperator]:
    """The operators whose batches run or have run."""
    operators: list[QwenImageBatchOperator] = []
    open_batch = batch_task.opened_batch

    def note(operator: QwenImageBatchOperator, context: Any) -> Any:
        operators.append(operator)
        return open_batch(operator, context)

    monkeypatch.setattr(batch_task, "opened_batch", note)
    return operators


def test_a_killed_batch_stops_within_seconds_and_records_every_paid_image(
    api: Sandbox, tmp_path: Path, running: list[QwenImageBatchOperator]
) -> None:
    api.configure(seconds_per_image=3600)
    requests = [f"Fox {number}" for number in range(20)]
    dag = dag_with_batch(tmp_path, requests=requests, max_in_flight=4, retries=0, contact_sheet=True)
    stopped_at: list[float] = []

    def kill() -> None:
        stopped_at.append(time.monotonic())
        running[0].on_kill()

    with run_when(lambda: len(polled_tasks(api)) == 4, kill):
        end = dag.run()["draw"]
    # Without on_kill, the batch would wait for half an hour.
    assert time.monotonic() - stopped_at[0] < 60
    assert end.state == "failed"
    assert "are paid and their images are not stored yet" in str(end.error)
    assert end.xcoms["at_risk"] == 20
    assert Counter(statuses(tmp_path)) == {"UNFINISHED": 4, "NOT_SUBMITTED": 16}
    accepted = {submission.task_id for submission in api.submissions}
    assert {row["task_id"] for row in manifest(tmp_path) if row["status"] == "UNFINISHED"} == accepted
    # The next try, or a cleared task, resumes them.
    assert recorded_ids(tmp_path) == accepted
    # There is no time for it.
    assert "contact_sheet" not in end.xcoms
    assert not (tmp_path / "contact-sheet.jpg").exists()


def test_a_killed_batch_waits_a_few_seconds_for_the_answer_of_a_pending_submission(
    api: Sandbox, tmp_path: Path, running: list[QwenImageBatchOperator], answer_when_stopped: None
) -> None:
    api.configure(seconds_per_image=3600, latency_seconds=3600, fault_paths=("generate",))

    def kill() -> None:
        running[0].on_kill()

    with run_when(lambda: api.requests, kill):
        end = draw(tmp_path, requests=["A", "B"], max_in_flight=1, retries=0)
    assert end.state == "failed"
    assert statuses(tmp_path) == ["UNFINISHED", "NOT_SUBMITTED"]
    assert recorded_ids(tmp_path) == {api.submissions[0].task_id}


def test_storage_that_cannot_be_written_fails_before_anything_is_paid(api: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    end = draw(tmp_path / "file" / "images")
    assert end.state == "failed"
    assert api.submissions == []


def test_transient_failures_of_every_kind_lose_no_image(api: Sandbox, tmp_path: Path, quick_downloads: None) -> None:
    api.script("status", ("server_error", 2), "html", "drop", "rate_limit")
    api.script("image", "truncate", "server_error", "drop")
    api.configure(retry_after=0)
    end = draw(tmp_path, requests=[f"Fox {number}" for number in range(5)], max_in_flight=3)
    assert end.state == "success"
    assert len(api.submissions) == 5
    assert statuses(tmp_path) == ["SUCCESS"] * 5


def test_images_that_wait_for_slow_storage_do_not_pile_up_in_memory(
    api: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "_MOST_THREADS", 2)
    create_bytes, may_go_on = storage.create_bytes, threading.Event()
    save_image = batch_image.ImagePipeline._save_image
    drawn, fetches, fetched = count(1), count(), list[int]()

    def count_downloads() -> None:
        fetched.append(next(fetches))
        may_go_on.set()

    async def save(*args: Any) -> str:
        if next(drawn) == 6:
            # After the next step of the last image: it waits for a slot, or starts its download.
            asyncio.get_running_loop().call_soon(count_downloads)
        return await save_image(*args)

    async def fetch(*args: Any) -> Any:
        next(fetches)
        return await downloads.fetch_async(*args)

    def put(content: bytes, target: Any, **arguments: str) -> bool:
        assert may_go_on.wait(60)
        return create_bytes(content, target, **arguments)

    monkeypatch.setattr(batch_image.ImagePipeline, "_save_image", save)
    monkeypatch.setattr(batch_image, "fetch_async", fetch)
    monkeypatch.setattr(image_pairs, "create_bytes", put)
    assert draw(tmp_path, requests=[f"Fox {number}" for number in range(6)], max_in_flight=6).state == "success"
    assert fetched == [2]


def test_an_image_that_storage_corrupts_is_not_downloaded_again_in_the_same_try(
    api: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick_downloads: None
) -> None:
    monkeypatch.setattr(image_pairs, "_PUT_PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(image_pairs, "sha256_of", lambda *_: "of other bytes")
    end = draw(tmp_path, requests=["A fox"])
    assert end.state == "failed"
    assert "not the one its sidecar describes" in str(end.errors[0])
    assert [request.route for request in api.requests].count("image") == end.tries
    assert len(api.submissions) == 1


def test_an_image_that_cannot_be_stored_is_stored_by_the_next_try_without_paying(
    api: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_bytes = storage.create_bytes
    broken = iter([True])

    def put(content: bytes, target: Any, **arguments: str) -> bool:
        if target.name.endswith(".jpg") and next(broken, False):
            raise OSError("No space left on device")
        return create_bytes(content, target, **arguments)

    monkeypatch.setattr(image_pairs, "create_bytes", put)
    end = draw(tmp_path, max_in_flight=1)
    assert (end.state, end.tries) == ("success", 2)
    assert "row 1 is paid and its image is not stored yet" in str(end.errors[0])
    assert "The next try, automatic or after a Clear, continues: row 1 is fetched (0 credits)" in str(end.errors[0])
    assert len(api.submissions) == 3


def test_a_crash_of_the_whole_batch_is_retried(api: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crash_once(monkeypatch, batch.Batch, "_find_earlier_work")
    end = draw(tmp_path)
    assert (end.state, end.tries) == ("success", 2)
