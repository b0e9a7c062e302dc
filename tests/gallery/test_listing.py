"""What the pages are page of real DAG runs: each image once, in its key_fields, with its cost."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import ObjectStoragePath

from airflow_provider_qwenimage import QwenImageBatchOperator, QwenImageGenerateOperator, QwenImageStatusSensor
from airflow_provider_qwenimage.plugin import manifests, metadata_db
from airflow_provider_qwenimage.plugin import runs as runs_module
from airflow_provider_qwenimage.plugin.runs import RUNS
from airflow_provider_qwenimage.sandbox import Sandbox
from tests.gallery.airflow_server import Server
from tests.gallery.conftest import Shown
from tests.integration.dag_runs import TestDag, dag_that_draws
from tests.stores import MemoryStore, WatchedStore, attach

Show = Callable[[TestDag], Shown]


def listing(server: Server, path: str, **params: Any) -> dict[str, Any]:
    answer = server.get(f"{path}/data", params=params)
    assert answer.status_code == 200, answer.text
    page: dict[str, Any] = answer.json()
    return page


def prompts(page: dict[str, Any]) -> list[str]:
    return [item["prompt"] for item in page["items"]]


@pytest.fixture(scope="module")
def mapped(show: Show, tmp_path_factory: pytest.TempPathFactory) -> Shown:
    return show(
        dag_that_draws(
            output_path=str(tmp_path_factory.mktemp("mapped")), prompts=["A fox", "Fog [policy]", "A hare"], seed=1
        )
    )


def test_a_mapped_task_shows_each_image_in_its_place(server: Server, mapped: Shown) -> None:
    page = listing(server, mapped.path)
    assert prompts(page) == ["A fox", "Fog [policy]", "A hare"]
    assert [item["status"] for item in page["items"]] == ["done", "failed", "done"]
    assert [item["map_index"] for item in page["items"]] == [0, 1, 2]
    assert page["totals"]["credits"] == 10
    assert page["totals"]["counts"] == {"done": 2, "drawing": 0, "waiting": 0, "failed": 1, "unknown": 0}
    assert page["is_active"] is False
    fox = page["items"][0]
    assert (fox["size"], fox["seed"], fox["output_format"], fox["credits"]) == ("1024*1024", 1, "jpeg", 5)
    assert server.get(fox["thumbnail"]).headers["Content-Type"] == "image/webp"
    details = server.get(fox["details"]).json()
    assert details["task_id"] == fox["image_task_id"]
    assert details["path"] == mapped.run.tasks["draw", 0].returned["paths"][0]
    assert "Content policy violation" in page["items"][1]["message"]


def test_a_task_instance_shows_its_own_images(server: Server, mapped: Shown) -> None:
    assert prompts(listing(server, f"{mapped.path}/tasks/draw", map_index=2)) == ["A hare"]
    assert len(prompts(listing(server, f"{mapped.path}/tasks/draw"))) == 3
    assert prompts(listing(server, f"{mapped.path}/tasks/another")) == []


def test_the_page_of_a_task_accepts_airflows_placeholder_instead_of_a_map_index(server: Server, mapped: Shown) -> None:
    page = server.get(f"{mapped.path}/tasks/draw?map_index=%7BMAP_INDEX%7D").text
    assert 'tasks/draw/data"' in page
    page = server.get(f"{mapped.path}/tasks/draw?map_index=2").text
    assert 'tasks/draw/data?map_index=2"' in page


def test_the_page_of_a_dag_shows_its_runs_newest_first(server: Server, show: Show, tmp_path: Path) -> None:
    dag = dag_that_draws(output_path=str(tmp_path), prompt="A {{ run_id }}")
    first, second = show(dag), show(dag)
    page = listing(server, first.path.rpartition("/runs/")[0])
    assert prompts(page) == [f"A {second.run_id}", f"A {first.run_id}"]
    assert page["totals"]["credits"] == 10
    assert page["note"] is None


def test_pages_of_a_list_are_parts_of_it(server: Server, mapped: Shown) -> None:
    assert prompts(listing(server, mapped.path, offset=1, limit=1)) == ["Fog [policy]"]
    assert prompts(listing(server, mapped.path, offset=9)) == []
    page = listing(server, mapped.path, limit=0)
    assert (page["items"], page["found"]) == ([], 3)


def test_a_filter_leaves_the_totals_as_they_are(server: Server, mapped: Shown) -> None:
    page = listing(server, mapped.path, status="failed")
    assert (prompts(page), page["found"], page["totals"]["images"]) == (["Fog [policy]"], 1, 3)
    assert prompts(listing(server, mapped.path, text="HARE")) == ["A hare"]
    assert prompts(listing(server, mapped.path, text="fox", status="failed")) == []


@pytest.mark.parametrize(
    "params", [{"status": "lost"}, {"offset": -1}, {"limit": 201}, {"limit": "x"}, {"text": "x" * 201}]
)
def test_invalid_parameters_of_a_list_are_refused(server: Server, mapped: Shown, params: dict[str, Any]) -> None:
    assert server.get(f"{mapped.path}/data", params=params).status_code == 422


def test_a_submission_and_its_sensor_show_one_image(server: Server, show: Show) -> None:
    dag = TestDag()
    with dag:
        submit = QwenImageGenerateOperator(task_id="submit", prompt="A lighthouse", seed=5)
        QwenImageStatusSensor(task_id="wait", image_task_id=submit.output, poke_interval=0.05)
    shown = show(dag)
    (item,) = listing(server, shown.path)["items"]
    assert (item["prompt"], item["status"], item["credits"], item["task_id"]) == ("A lighthouse", "done", 5, "submit")
    assert item["waited_for_by"] == "wait"
    # The sandbox is on the host of Airflow itself.
    assert (item["image"], item["thumbnail"], item["address"]) == (None, None, None)
    assert "Airflow's own host" in item["message"]
    for task_id in ("submit", "wait"):
        assert prompts(listing(server, f"{shown.path}/tasks/{task_id}")) == ["A lighthouse"]


def batch_dag(folder: str, requests: Any) -> TestDag:
    dag = TestDag()
    with dag:
        QwenImageBatchOperator(
            task_id="draw", requests=requests, output_path=folder, poll_interval=0.05, max_failures=9
        )
    return dag


def test_a_batch_shows_its_rows(server: Server, show: Show, tmp_path: Path) -> None:
    shown = show(batch_dag(str(tmp_path), ["A fox", "Fog [policy]", {"prompt": "An owl", "seed": 1, "label": "owl"}]))
    page = listing(server, shown.path)
    assert [item["label"] for item in page["items"]] == [None, None, "owl"]
    assert [item["status"] for item in page["items"]] == ["done", "failed", "done"]
    assert page["totals"]["credits"] == 10
    assert server.get(page["items"][2]["thumbnail"]).status_code == 200
    assert server.get(page["items"][2]["image"]).headers["Content-Type"] == "image/jpeg"
    assert all(item["time"] for item in page["items"])
    # Again in the same folder: the images are shown as used again, and the first run says why it has none left.
    again = show(shown.dag)
    assert [item["state"] for item in listing(server, again.path)["items"]] == ["reused", "failed", "reused"]
    forget_manifests()
    page = listing(server, shown.path)
    assert page["items"] == []
    assert "A later batch replaced the manifest of this one" in page["batches"][0]["problem"]
    assert page["totals"]["credits"] == 10


class StudioBatchOperator(QwenImageBatchOperator):
    """What a company makes of the operator."""


def test_a_batch_of_a_derived_operator_is_shown(server: Server, show: Show, tmp_path: Path) -> None:
    dag = TestDag()
    with dag:
        StudioBatchOperator(task_id="draw", requests=["A fox"], output_path=str(tmp_path), poll_interval=0.05)
    assert prompts(listing(server, show(dag).path)) == ["A fox"]


def forget_manifests() -> None:
    manifests._cache.clear()
    RUNS._cache.clear()


def test_a_missing_manifest_is_reported(server: Server, show: Show, tmp_path: Path) -> None:
    shown = show(batch_dag(str(tmp_path), ["A fox"]))
    shutil.rmtree(tmp_path)
    forget_manifests()
    page = listing(server, shown.path)
    assert "manifest.jsonl no longer exists" in page["batches"][0]["problem"]
    assert page["totals"]["counts"]["done"] == 1


def test_a_batch_that_could_not_start_shows_why(server: Server, show: Show, tmp_path: Path) -> None:
    shown = show(batch_dag(str(tmp_path), "{{ ['A fox', ''] | tojson }}"))
    (item,) = listing(server, shown.path)["items"]
    assert item["status"] == "failed"
    assert "prompt" in item["message"]


@pytest.mark.parametrize("protocol", ["s3", "gs", "abfs", "sftp"])
def test_images_in_any_storage_are_shown(server: Server, show: Show, protocol: str) -> None:
    folder = f"{attach(MemoryStore(protocol), protocol)}bucket/images"
    shown = show(dag_that_draws(output_path=folder, prompt="A fox", seed=1))
    (item,) = listing(server, shown.path)["items"]
    (path,) = shown.run["draw"].returned["paths"]
    assert path.startswith(f"{protocol}://")
    assert server.get(item["image"]).content == ObjectStoragePath(path).read_bytes()
    assert server.get(item["thumbnail"]).status_code == 200
    shown = show(batch_dag(folder, ["A hare"]))
    (item,) = listing(server, shown.path)["items"]
    assert server.get(item["thumbnail"]).status_code == 200


class BrokenStore(WatchedStore):
    """Fails when it has an error to raise, as storage libraries do without credentials."""

    error: Exception | None = None

    def before_a_read(self) -> None:
        if self.error is not None:
            raise self.error


@pytest.mark.parametrize(
    "error", [RuntimeError("no credentials"), KeyError("region"), PermissionError("no"), RecursionError()], ids=repr
)
def test_storage_that_fails_hides_no_other_run(server: Server, show: Show, mapped: Shown, error: Exception) -> None:
    store = BrokenStore("s3")
    folder = f"{attach(store, 's3')}bucket/images"
    drawn, listed = (
        show(dag_that_draws(output_path=folder, prompt="A fox", seed=1)),
        show(batch_dag(folder, ["A hare"])),
    )
    store.error = error
    forget_manifests()
    (item,) = listing(server, drawn.path)["items"]
    for kind in ("image", "thumbnail", "details"):
        answer = server.get(item[kind])
        assert answer.status_code == 404
        assert "The API server cannot read" in answer.text
    page = listing(server, listed.path)
    assert "The API server cannot read" in page["batches"][0]["problem"]
    assert "A hare" not in prompts(page)
    assert "A fox" in prompts(listing(server, "/qwenimage"))


def test_a_run_that_continues_is_read_again(
    server: Server, show: Show, tmp_path: Path, gallery_api: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_QWENIMAGE_DEFAULT", gallery_api.connection_json)
    gallery_api.script("generate", "drop_after")
    shown = show(dag_that_draws(output_path=str(tmp_path), prompt="A fox", seed=1))
    page = listing(server, shown.path)
    (item,) = page["items"]
    assert (item["status"], item["at_risk"], page["totals"]["at_risk"]) == ("unknown", 5, 5)
    shown.dag.clear("draw")
    RUNS.get(shown.dag_id, shown.run_id, float("inf"))._read_at = float("-inf")
    page = listing(server, shown.path)
    (item,) = page["items"]
    assert (item["status"], item["at_risk"], page["totals"]["credits"]) == ("done", 0, 5)


def test_a_running_task_is_read_again_although_its_database_row_is_unchanged(
    server: Server, show: Show, tmp_path: Path
) -> None:
    from airflow.models.taskinstance import TaskInstance
    from airflow.models.xcom import XComModel
    from airflow.utils.session import create_session
    from sqlalchemy import update

    shown = show(batch_dag(str(tmp_path), ["A fox"]))
    key_fields = {"dag_id": shown.dag_id, "run_id": shown.run_id, "task_id": "draw"}

    def push(key: str, value: Any) -> None:
        with create_session() as session:
            XComModel.set(key=key, value=value, map_index=-1, session=session, **key_fields)

    with create_session() as session:
        mine = update(TaskInstance).where(TaskInstance.dag_id == shown.dag_id)
        session.execute(mine.values(state="running"))
    seen = []
    for done in (1, 2, 3):
        push("progress", {"requests": 3, "done": done})
        if done > 1:
            RUNS.get(shown.dag_id, shown.run_id, float("inf"))._read_at = float("-inf")
        seen.append(listing(server, shown.path)["batches"][0]["progress"]["done"])
    assert seen == [1, 2, 3]
    assert listing(server, shown.path)["is_active"]


def test_a_run_whose_reading_failed_is_read_again(
    server: Server, show: Show, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = show(dag_that_draws(output_path=str(tmp_path), prompt="A fox", seed=1))

    def fail(*_: Any) -> Any:
        raise RuntimeError("the database is away")

    with monkeypatch.context() as patch:
        patch.setattr(metadata_db, "xcoms_of", fail)
        assert server.get(f"{shown.path}/data").status_code == 500
    assert prompts(listing(server, shown.path)) == ["A fox"]


def test_a_run_that_does_not_exist_has_no_images(server: Server, mapped: Shown) -> None:
    page = listing(server, mapped.path.rpartition("/")[0] + "/manual__never")
    assert (page["items"], page["totals"]["images"], page["is_active"]) == ([], 0, False)


def test_the_cache_of_runs_is_limited(server: Server, mapped: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RUNS._cache, "most_weight", 2)
    listing(server, mapped.path)
    assert RUNS._cache.keys() == [(mapped.dag_id, mapped.run_id)]
    monkeypatch.setattr(RUNS._cache, "most_weight", 10**9)
    monkeypatch.setattr(RUNS._cache, "most_values", 20)
    for number in range(30):
        listing(server, mapped.path.rpartition("/")[0] + f"/manual__{number}")
    assert len(RUNS._cache.keys()) <= 20


def test_of_a_run_that_does_not_fit_into_memory_the_first_images_are_shown(
    server: Server, mapped: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert listing(server, mapped.path)["note"] is None
    forget_manifests()
    with monkeypatch.context() as patch:
        patch.setattr(runs_module, "_MOST_BYTES", 2500)
        page = listing(server, mapped.path)
    forget_manifests()
    assert prompts(page) == ["A fox"]
    assert "more images than the gallery can show" in page["note"]


def test_xcoms_beyond_the_limit_of_a_run_are_not_read(
    server: Server, mapped: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget_manifests()
    with monkeypatch.context() as patch:
        patch.setattr(metadata_db, "_MOST_CHARACTERS", 1)
        page = listing(server, mapped.path)
    forget_manifests()
    assert [item["status"] for item in page["items"]] == ["done", "failed", "done"]
    assert sum(item["prompt"] is not None for item in page["items"]) <= 1
    assert "the limit of the gallery" in (page["items"][0]["message"] or page["items"][2]["message"])
    assert prompts(listing(server, mapped.path)) == ["A fox", "Fog [policy]", "A hare"]


def test_only_the_newest_runs_are_shown_together(
    server: Server, show: Show, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dag = dag_that_draws(output_path=str(tmp_path), prompt="A {{ run_id }}")
    ran = [show(dag) for _ in range(3)]
    monkeypatch.setattr(runs_module, "MOST_RUNS", 2)
    page = listing(server, ran[0].path.rpartition("/runs/")[0])
    assert prompts(page) == [f"A {shown.run_id}" for shown in reversed(ran[1:])]
    assert "newest 2 runs" in page["note"]
    monkeypatch.setattr(runs_module, "MOST_IMAGES", 1)
    assert len(prompts(listing(server, ran[0].path.rpartition("/runs/")[0]))) == 1
