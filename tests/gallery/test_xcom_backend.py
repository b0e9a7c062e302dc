"""The gallery reads the values of an object storage XCom backend, and reports values that it cannot read."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import BaseOperatorLink

from airflow_provider_qwenimage import QwenImageBatchOperator, QwenImageGenerateOperator, QwenImageStatusSensor
from airflow_provider_qwenimage.links import GENERATED_IMAGES, IMAGE
from airflow_provider_qwenimage.plugin import runs, xcom_values
from tests.gallery.airflow_server import Server
from tests.gallery.conftest import Shown
from tests.integration.dag_runs import TestDag, dag_that_draws

BACKEND = "airflow.providers.common.io.xcom.backend.XComObjectStorageBackend"

Show = Callable[[TestDag], Shown]


def resolve_backend() -> None:
    """Make Airflow and the gallery read the configuration again, as at the start of a process."""
    from airflow.sdk.execution_time import task_runner, xcom

    backend = xcom.resolve_xcom_backend()
    for module in (xcom, task_runner):
        vars(module)["XCom"] = backend
    xcom_values._backend.cache_clear()
    xcom_values._cache.clear()


@pytest.fixture(params=[0, 100])
def store_xcoms(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Store values from so many bytes on as files; return the folder."""
    from airflow.providers.common.io.xcom import backend

    folder = tmp_path / "xcoms"
    with monkeypatch.context() as patch:
        patch.setenv("AIRFLOW__CORE__XCOM_BACKEND", BACKEND)
        patch.setenv("AIRFLOW__COMMON_IO__XCOM_OBJECTSTORAGE_PATH", f"file://{folder}")
        patch.setenv("AIRFLOW__COMMON_IO__XCOM_OBJECTSTORAGE_THRESHOLD", str(request.param))
        for setting in (backend._get_base_path, backend._get_compression, backend._get_threshold):
            setting.cache_clear()
        resolve_backend()
        yield folder
    for setting in (backend._get_base_path, backend._get_compression, backend._get_threshold):
        setting.cache_clear()
    resolve_backend()


def listing(server: Server, shown: Shown) -> dict[str, Any]:
    answer = server.get(f"{shown.path}/data")
    assert answer.status_code == 200, answer.text
    page: dict[str, Any] = answer.json()
    return page


def stored_link(shown: Shown, link: BaseOperatorLink, task_id: str = "draw") -> Any:
    from airflow.models.xcom import XComModel
    from airflow.utils.session import create_session
    from sqlalchemy import select

    with create_session() as session:
        query = select(XComModel.value).where(
            XComModel.dag_id == shown.dag_id, XComModel.task_id == task_id, XComModel.key == link.xcom_key
        )
        return session.scalar(query)


def forget() -> None:
    from airflow_provider_qwenimage.plugin.runs import RUNS

    RUNS._cache.clear()
    xcom_values._cache.clear()


def test_a_stored_image_is_shown_with_its_cost_and_its_links_lead_to_it(
    server: Server, show: Show, store_xcoms: Path, tmp_path: Path
) -> None:
    shown = show(dag_that_draws(output_path=str(tmp_path / "images"), prompt="A fox", seed=1))
    assert list(store_xcoms.rglob("*")), "the backend stored nothing"
    page = listing(server, shown)
    (item,) = page["items"]
    assert (item["status"], item["prompt"], item["credits"]) == ("done", "A fox", 5)
    assert (page["totals"]["images"], page["totals"]["credits"], page["is_active"]) == (1, 5, False)
    assert server.get(item["thumbnail"]).status_code == 200
    assert "/plugin/qwenimage_task_images" in stored_link(shown, GENERATED_IMAGES)
    assert "/images/1" in stored_link(shown, IMAGE)


def test_a_submission_and_its_sensor_show_one_image(server: Server, show: Show, store_xcoms: Path) -> None:
    dag = TestDag()
    with dag:
        submit = QwenImageGenerateOperator(task_id="submit", prompt="A lighthouse", seed=5)
        QwenImageStatusSensor(task_id="wait", image_task_id=submit.output, poke_interval=0.05)
    shown = show(dag)
    page = listing(server, shown)
    (item,) = page["items"]
    assert (item["status"], item["prompt"], item["credits"]) == ("done", "A lighthouse", 5)
    assert "/plugin/qwenimage_task_images" in stored_link(shown, GENERATED_IMAGES, "wait")


def test_a_batch_shows_its_rows(server: Server, show: Show, store_xcoms: Path, tmp_path: Path) -> None:
    dag = TestDag()
    with dag:
        folder = str(tmp_path / "images")
        QwenImageBatchOperator(task_id="draw", requests=["A", "B"], output_path=folder, poll_interval=0.05)
    page = listing(server, show(dag))
    assert [item["status"] for item in page["items"]] == ["done", "done"]
    assert (page["totals"]["images"], page["totals"]["credits"]) == (2, 10)
    assert page["batches"][0]["problem"] is None


def test_a_value_that_the_backend_lost_is_reported(
    server: Server, show: Show, store_xcoms: Path, tmp_path: Path
) -> None:
    shown = show(dag_that_draws(output_path=str(tmp_path / "images"), prompt="A fox", seed=1))
    for file in store_xcoms.rglob("*"):
        if file.is_file():
            file.unlink()
    forget()
    (item,) = listing(server, shown)["items"]
    assert item["status"] == "done"
    assert "no longer exists" in item["message"]


def test_a_missing_return_value_is_reported(server: Server, show: Show, tmp_path: Path) -> None:
    for arguments in ({"output_path": str(tmp_path)}, {"wait_for_completion": True}):
        shown = show(dag_that_draws(prompt="A fox", seed=1, do_xcom_push=False, **arguments))
        page = listing(server, shown)
        (item,) = page["items"]
        assert (item["status"], item["prompt"]) == ("done", "A fox")
        assert "do_xcom_push=False" in item["message"]
        assert page["totals"]["counts"]["drawing"] == 0


def test_an_image_without_a_sensor_does_not_stay_drawing(server: Server, show: Show) -> None:
    page = listing(server, show(dag_that_draws(prompt="A fox", seed=1)))
    (item,) = page["items"]
    assert (item["status"], item["state"]) == ("unknown", "submitted")
    assert "No sensor of this run waited" in item["message"]


def values_of(base: Path, pushed: str, monkeypatch: pytest.MonkeyPatch, **task: Any) -> dict[str, Any]:
    """Return how the gallery reads a text that a task of the DAG "foxes" pushed as its return value."""
    from airflow_provider_qwenimage.plugin.image_records import TaskInstance

    known: dict[str, Any] = {"dag_id": "foxes", "run_id": "manual", "task_id": "draw", "map_index": -1}
    known |= {"state": "success", "operator": None, "try_number": 1, "changed_at": None}
    monkeypatch.setattr(xcom_values, "_backend", lambda: f"file://{base}")
    return xcom_values.read_values(TaskInstance(**known | task), {"return_value": json.dumps(pushed)}, runs.READS)


def put(base: Path, name: str, content: bytes) -> str:
    file = base / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return f"file://{file}"


def test_only_a_tasks_own_values_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = put(tmp_path, "foxes/manual/draw/1.json", b'{"a": 1}')
    assert values_of(tmp_path, own, monkeypatch) == {"return_value": {"a": 1}}
    for name in ("hares/manual/draw/1.json", "hares/foxes/manual/draw/1.json", "foxes/other/draw/1.json", "1.json"):
        other = put(tmp_path, name, b'{"secret": 1}')
        assert values_of(tmp_path, other, monkeypatch) == {"return_value": other}
    outside = put(tmp_path.parent, "foxes/manual/draw/1.json", b'{"secret": 1}')
    assert values_of(tmp_path, outside, monkeypatch) == {"return_value": outside}
    forged = f"file://{tmp_path}/foxes/manual/draw/../../../hares/manual/draw/1.json"
    assert "secret" not in repr(values_of(tmp_path, forged, monkeypatch))


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("1.json", b"[" * 200_000, "not JSON"),
        ("1.json", b'"' + 300_000 * b"x" + b'"', "larger than 256 KiB"),
        ("1.json.gz", gzip.compress(b'"' + 300_000 * b"x" + b'"'), "larger than 256 KiB"),
        ("1.json.gz", b"no gzip", "cannot be read"),
        ("1.json", b"1" * 5000, "not JSON"),
    ],
    # The bytes of gzip hold the time.
    ids=["nested", "long", "long when unpacked", "not packed", "number"],
)
def test_values_of_a_backend_are_read_within_limits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes, reason: str
) -> None:
    own = put(tmp_path, f"foxes/manual/draw/{name}", content)
    xcom_values._cache.clear()
    assert reason in values_of(tmp_path, own, monkeypatch)["return_value"].reason


def test_a_compressed_value_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = put(tmp_path, "foxes/manual/draw/1.json.gz", gzip.compress(b'{"paths": ["/a.jpg"]}'))
    assert values_of(tmp_path, own, monkeypatch) == {"return_value": {"paths": ["/a.jpg"]}}


def test_another_backend_is_reported_as_unreadable(monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow_provider_qwenimage.plugin.image_records import Status, TaskInstance
    from airflow_provider_qwenimage.plugin.task_records import records_of_task

    task = TaskInstance(
        dag_id="foxes",
        run_id="manual",
        task_id="draw",
        map_index=-1,
        state="success",
        operator="QwenImageGenerateOperator",
        try_number=1,
        changed_at=None,
    )
    monkeypatch.setattr(xcom_values, "_backend", lambda: None)
    stored = dict.fromkeys(("request", "task_id", "consumed_credits", "return_value"), '"company://1"')
    (record,) = records_of_task(task, xcom_values.read_values(task, stored, runs.READS))
    assert record.status is Status.DONE
    assert "XCom backend" in str(record.message)
    assert (
        records_of_task(
            TaskInstance(**vars(task) | {"operator": "QwenImageStatusSensor"}),
            xcom_values.read_values(task, stored, runs.READS),
        )
        == []
    )
