"""Values that tasks push for the Airflow UI: links, the request, the error, the rows of a batch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import BaseOperatorLink

from airflow_provider_qwenimage import QwenImageGenerateOperator, QwenImageStatusSensor
from airflow_provider_qwenimage.batch import manifest as batch_manifest
from airflow_provider_qwenimage.batch import task as batch_task
from airflow_provider_qwenimage.batch.task import BatchTask
from airflow_provider_qwenimage.hooks import QwenImageHook
from airflow_provider_qwenimage.links import GENERATED_IMAGES, IMAGE
from airflow_provider_qwenimage.sandbox import Sandbox
from airflow_provider_qwenimage.storage import files as storage
from tests.events import finish_image, finish_images, run_when
from tests.integration.dag_runs import WAITS, TestDag, crash_once, dag_that_draws
from tests.integration.test_batch import dag_with_batch

with_gallery = pytest.mark.airflow_feature("gallery", "yes")


@pytest.fixture
def pushed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """The key and value of each push, in order."""
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

    seen: list[tuple[str, Any]] = []
    push = RuntimeTaskInstance.xcom_push

    def watch(self: Any, key: str, value: Any) -> None:
        seen.append((key, value))
        push(self, key, value)

    monkeypatch.setattr(RuntimeTaskInstance, "xcom_push", watch)
    watch_links(monkeypatch, seen)
    return seen


def watch_links(monkeypatch: pytest.MonkeyPatch, seen: list[tuple[str, Any]]) -> None:
    """Record the links that a task stores itself, bypassing any XCom backend."""
    from airflow.sdk.bases.xcom import BaseXCom

    store = BaseXCom.set

    def watch(key: str, value: Any, **place: Any) -> None:
        if key.startswith("_link_"):
            seen.append((key, value))
        store(key, value, **place)

    monkeypatch.setattr(BaseXCom, "set", watch)


@with_gallery
def test_the_request_is_pushed_before_it_is_submitted(
    connected_api: Sandbox, monkeypatch: pytest.MonkeyPatch, pushed: list[tuple[str, Any]]
) -> None:
    submit = QwenImageHook.submit_once
    before: list[list[str]] = []

    def note(self: Any, request: Any) -> str:
        before.append([key for key, _ in pushed])
        return submit(self, request)

    monkeypatch.setattr(QwenImageHook, "submit_once", note)
    dag_that_draws(prompt="A fox").run()
    assert before == [["request"]]
    assert pushed[0] == ("request", {"prompt": "A fox", "size": "1024*1024", "seed": -1, "output_format": "jpeg"})


@with_gallery
def test_the_link_to_the_gallery_is_stored_before_the_worker_waits(
    connected_api: Sandbox, pushed: list[tuple[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    wait = QwenImageHook.wait_for_completion
    before: list[list[str]] = []

    def note(self: Any, *args: Any, **kwargs: Any) -> Any:
        before.append([key for key, _ in pushed])
        return wait(self, *args, **kwargs)

    monkeypatch.setattr(QwenImageHook, "wait_for_completion", note)
    dag_that_draws(wait_for_completion=True).run()
    assert before == [["request", "task_id", GENERATED_IMAGES.xcom_key]]


@with_gallery
@pytest.mark.parametrize("defer_after", [0, 60])
def test_the_link_to_the_gallery_is_stored_before_a_task_that_is_deferred_later_waits(
    connected_api: Sandbox,
    pushed: list[tuple[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    defer_after: float,
) -> None:
    last = GENERATED_IMAGES.xcom_key if defer_after else "task_id"
    wait = QwenImageHook.follow
    before: list[str] = []

    def note(self: Any, *args: Any, **kwargs: Any) -> Any:
        before.append(pushed[-1][0])
        return wait(self, *args, **kwargs)

    monkeypatch.setattr(QwenImageHook, "follow", note)
    dag_that_draws(wait_for_completion=True, deferrable=True, defer_after=defer_after).run()
    dag = TestDag()
    with dag:
        draw = QwenImageGenerateOperator(task_id="draw", prompt="A fox")
        QwenImageStatusSensor(task_id="wait", image_task_id=draw.output, poke_interval=0.01, defer_after=defer_after)
    dag.run()
    assert before == [last, last]


@pytest.fixture
def stored_links(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """The links that a task stores itself, or that Airflow stores when a process defers or ends, in order."""
    from airflow.sdk.execution_time import task_runner

    seen: list[tuple[str, str]] = []

    def watched(push: Callable[..., None]) -> Callable[..., None]:
        def watch(ti: Any, key: str, value: Any) -> None:
            if key.startswith("_link_"):
                seen.append((key, value))
            push(ti, key, value)

        return watch

    monkeypatch.setattr(task_runner, "_xcom_push_to_db", watched(task_runner._xcom_push_to_db))
    watch_links(monkeypatch, seen)
    return seen


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, ["gallery"]),
        ({"wait_for_completion": True}, ["gallery", "image"]),
        ({"wait_for_completion": True, "deferrable": True}, ["gallery", "image"]),
        ({"wait_for_completion": True, "deferrable": True, "defer_after": 60}, ["gallery", "image"]),
        ({"wait_for_completion": True, "deferrable": True, "defer_after": 0.001}, ["gallery", "image"]),
        ({"wait_for_completion": True, "deferrable": True, "prompt": "Fog [policy]"}, ["gallery"]),
        ({"wait_for_completion": True, "prompt": "Fog [policy]"}, ["gallery"]),
    ],
)
@with_gallery
def test_each_link_is_stored_once_as_soon_as_it_leads_somewhere(
    connected_api: Sandbox, stored_links: list[tuple[str, str]], arguments: dict[str, Any], expected: list[str]
) -> None:
    dag_that_draws(**arguments).run()
    keys = {GENERATED_IMAGES.xcom_key: "gallery", IMAGE.xcom_key: "image"}
    assert [keys[key] for key, _ in stored_links] == expected
    assert all(value for _, value in stored_links)


class ReviewLink(BaseOperatorLink):
    """A link that a user adds to an operator of this package."""

    name = "Review"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        return f"https://review.example/{ti_key.task_id}"


class ReviewedOperator(QwenImageGenerateOperator):
    operator_extra_links = (*QwenImageGenerateOperator.operator_extra_links, ReviewLink())


class ReviewedSensor(QwenImageStatusSensor):
    operator_extra_links = (*QwenImageStatusSensor.operator_extra_links, ReviewLink())


@with_gallery
@pytest.mark.parametrize(
    "arguments", [{}, {"wait_for_completion": True}, {"wait_for_completion": True, "deferrable": True}]
)
def test_a_link_that_a_subclass_adds_is_stored_beside_ours(
    connected_api: Sandbox, stored_links: list[tuple[str, str]], arguments: dict[str, Any]
) -> None:
    dag = TestDag()
    with dag:
        draw = ReviewedOperator(task_id="draw", prompt="A fox", **arguments)
        if not arguments:
            ReviewedSensor(task_id="wait", image_task_id=draw.output, poke_interval=0.01)
    dag.run()
    links = dict(stored_links)
    assert links[ReviewLink().xcom_key] == f"https://review.example/{'draw' if arguments else 'wait'}"
    assert {GENERATED_IMAGES.xcom_key, IMAGE.xcom_key} < links.keys()


@with_gallery
@pytest.mark.parametrize("wait", WAITS.values(), ids=list(WAITS))
def test_a_sensor_stores_its_links(
    connected_api: Sandbox, stored_links: list[tuple[str, str]], wait: dict[str, Any]
) -> None:
    image_task_id = QwenImageHook().generate("A fox")
    dag = TestDag()
    with dag:
        QwenImageStatusSensor(task_id="wait", image_task_id=image_task_id, **{"poke_interval": 0.01} | wait)
    (url,) = dag.run()["wait"].returned
    assert stored_links[-1] == (IMAGE.xcom_key, url)
    assert stored_links[0][0] == GENERATED_IMAGES.xcom_key


@pytest.mark.parametrize(
    ("prompt", "arguments", "error"),
    [
        ("Fog [policy]", {"wait_for_completion": True}, "QwenImageContentPolicyError"),
        ("{{ 'x' * 3000 }}", {}, "ValueError"),
        ("A fox", {"max_credits": 1}, "ValueError"),
    ],
)
def test_a_failure_is_pushed_with_its_reason(
    connected_api: Sandbox, prompt: str, arguments: dict[str, Any], error: str
) -> None:
    end = dag_that_draws(prompt=prompt, **arguments).run()["draw"]
    assert end.state == "failed"
    assert end.xcoms["error"]["error"] == error
    assert end.xcoms["error"]["message"] == str(end.error).removeprefix(f"{error}: ")


def test_the_error_of_a_try_is_removed_when_the_next_try_succeeds(
    connected_api: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connected_api.script("generate", "failure")
    end = dag_that_draws(output_path=str(tmp_path)).run()["draw"]
    assert (end.state, end.tries) == ("success", 2)
    assert "error" not in end.xcoms


def test_a_failure_to_record_the_error_does_not_hide_the_error(
    connected_api: Sandbox, monkeypatch: pytest.MonkeyPatch, task_log: Callable[[], str]
) -> None:
    from airflow_provider_qwenimage.tasks import failures

    def fail(*_: Any) -> Any:
        raise RuntimeError("no XComs today")

    monkeypatch.setattr(failures, "_shown", fail)
    end = dag_that_draws(prompt="Fog [policy]", wait_for_completion=True).run()["draw"]
    assert "Content policy" in str(end.error)
    assert "error" not in end.xcoms
    assert "Could not record the XCom error" in task_log()


def test_a_sensor_pushes_its_image_task_id_before_it_waits(connected_api: Sandbox) -> None:
    dag = TestDag()
    with dag:
        QwenImageStatusSensor(task_id="wait", image_task_id="n43nobodyknows", poke_interval=0.01)
    end = dag.run()["wait"]
    assert end.state == "failed"
    assert end.xcoms["task_id"] == "n43nobodyknows"
    assert end.xcoms["error"]["error"] == "QwenImageNotFoundError"


def rows_of(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_a_batch_lists_its_rows_while_it_runs_and_leaves_no_list_behind(
    connected_api: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connected_api.configure(seconds_per_image=3600)
    monkeypatch.setattr(batch_task, "_PROGRESS_SECONDS", 0.02)
    monkeypatch.setattr(batch_manifest, "_LISTING_INTERVAL_SECONDS", 0.0)
    monkeypatch.setattr(batch_manifest, "_MOST_LISTING_TIME", 1.0)
    listed: list[list[dict[str, Any]]] = []
    report = BatchTask._report

    def watch(self: BatchTask, rows: str | None = None) -> None:
        if rows is not None:
            listed.append(rows_of(rows))
            # Finish each image once it is listed as the only one in progress.
            in_progress = {row["task_id"] for row in listed[-1] if row["status"] == "IN_PROGRESS"} - {None}
            if len(in_progress) == 1:
                finish_image(connected_api, *in_progress)
        report(self, rows)

    monkeypatch.setattr(BatchTask, "_report", watch)
    requests = ["A fox", "A hare", {"prompt": "An owl", "seed": 1}, {"prompt": "An owl", "seed": 1}]
    end = dag_with_batch(tmp_path, requests=requests, max_in_flight=1).run()["draw"]
    assert end.state == "success"
    seen = [[row["status"] for row in rows] for rows in listed]
    assert ["IN_PROGRESS", "NOT_SUBMITTED", "NOT_SUBMITTED", "NOT_SUBMITTED"] in seen
    assert ["SUCCESS", "IN_PROGRESS", "NOT_SUBMITTED", "NOT_SUBMITTED"] in seen
    assert ["SUCCESS", "SUCCESS", "IN_PROGRESS", "IN_PROGRESS"] in seen
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith(".")] == []
    manifest = rows_of(end.xcoms["manifest"])
    assert [row["status"] for row in manifest] == ["SUCCESS"] * 4
    assert {row["writer"] for row in manifest} == {row["writer"] for rows in listed for row in rows}
    assert all(row["stored_at"] for row in manifest)


def test_the_next_try_removes_the_list_of_rows_of_a_killed_batch(
    connected_api: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connected_api.configure(seconds_per_image=3600)
    monkeypatch.setattr(batch_task, "_PROGRESS_SECONDS", 0.02)
    crash_once(monkeypatch, BatchTask, "_put_manifest")
    with run_when(lambda: list(tmp_path.glob(".rows-*")), lambda: finish_images(connected_api)):
        end = dag_with_batch(tmp_path).run()["draw"]
    assert (end.state, end.tries) == ("success", 2)
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith(".")] == []


def test_a_list_of_rows_that_cannot_be_written_does_not_stop_a_batch(
    connected_api: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connected_api.configure(seconds_per_image=3600)
    monkeypatch.setattr(batch_task, "_PROGRESS_SECONDS", 0.02)
    put_file = storage.put_file

    def fail_for_rows(local: Path, target: Any, **kwargs: Any) -> None:
        if target.name.startswith(".rows-"):
            finish_images(connected_api)
            raise OSError(28, "No space left on device")
        put_file(local, target, **kwargs)

    monkeypatch.setattr(batch_manifest, "put_file", fail_for_rows)
    end = dag_with_batch(tmp_path).run()["draw"]
    assert end.state == "success"
    assert "rows" not in end.xcoms["progress"]
