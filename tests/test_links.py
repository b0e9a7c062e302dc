"""The links on a task: always one to the gallery, and one to the image once it exists."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pendulum
import pytest

from airflow_provider_qwenimage import QwenImageBatchOperator, QwenImageGenerateOperator, QwenImageStatusSensor
from airflow_provider_qwenimage.links import GENERATED_IMAGES, IMAGE, GeneratedImagesLink, ImageLink
from tests.airflows import AIRFLOW_3
from tests.integration.dag_runs import dag_serialization

with_gallery = pytest.mark.airflow_feature("gallery", "yes")
without_gallery = pytest.mark.airflow_feature("gallery", "no")

RUN = "manual__2026-11-25T08:00:00+00:00"
QUOTED = "manual__2026-11-25T08%3A00%3A00%2B00%3A00"
URL = "https://cdn.example/1.jpeg?signature=abc"


@dataclass
class TaskInstanceKey:
    """The fields by which Airflow identifies a task instance."""

    map_index: int = -1
    dag_id: str = "my foxes"
    run_id: str = RUN
    task_id: str = "group.draw"


@dataclass
class TaskInstanceInALoop(TaskInstanceKey):
    """A task instance of Airflow 3.4 in the third iteration of a loop."""

    region_id: str = "01a219b5-ca04-7ef3-85a0-98ebc21f7774"
    region_index: int = 2


def with_outcome(**outcome: Any) -> Any:
    return SimpleNamespace(outcome=outcome or None)


def operators() -> list[Any]:
    return [
        QwenImageGenerateOperator(task_id="draw", prompt="A fox"),
        QwenImageStatusSensor(task_id="wait", image_task_id="n43"),
        QwenImageBatchOperator(task_id="batch", requests=["A fox"], output_path="/tmp/images"),  # noqa: S108
    ]


def test_each_operator_has_its_links() -> None:
    generate, sensor, batch = operators()
    both = ["Generated images", "Image"]
    assert [[link.name for link in operator.operator_extra_links] for operator in (generate, sensor)] == [both, both]
    assert [link.name for link in batch.operator_extra_links] == ["Generated images"]


@with_gallery
def test_the_gallery_is_linked_in_every_state_of_the_task() -> None:
    for operator in operators():
        link = GENERATED_IMAGES.get_link(operator, ti_key=TaskInstanceKey())
        assert link == f"/dags/my%20foxes/runs/{QUOTED}/tasks/group.draw/plugin/qwenimage_task_images"


@with_gallery
def test_a_mapped_task_links_its_own_images() -> None:
    assert "/tasks/group.draw/mapped/3/plugin/" in GENERATED_IMAGES.get_link(None, ti_key=TaskInstanceKey(3))
    link = IMAGE.get_link(with_outcome(paths=["/a.jpg"], image_urls=[URL]), ti_key=TaskInstanceKey(3))
    assert link == f"/qwenimage/dags/my%20foxes/runs/{QUOTED}/tasks/group.draw/images/1?map_index=3"


@with_gallery
def test_a_task_in_a_loop_links_the_images_of_its_iteration() -> None:
    ti = TaskInstanceInALoop()
    query = "region_id=01a219b5-ca04-7ef3-85a0-98ebc21f7774&region_index=2"
    assert GENERATED_IMAGES.get_link(None, ti_key=ti).endswith(f"/group.draw/plugin/qwenimage_task_images?{query}")
    link = IMAGE.get_link(with_outcome(paths=["/a.jpg"], image_urls=[URL]), ti_key=ti)
    assert link.endswith(f"/tasks/group.draw/images/1?map_index=-1&{query}")


@pytest.mark.parametrize("base_url", ["https://airflow.example", "https://example.com/airflow/"])
@with_gallery
def test_links_begin_with_airflows_base_url(monkeypatch: pytest.MonkeyPatch, base_url: str) -> None:
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", base_url)
    assert GENERATED_IMAGES.get_link(None, ti_key=TaskInstanceKey()).startswith(
        f"{base_url.rstrip('/')}/dags/my%20foxes/"
    )


def test_an_image_that_is_not_stored_is_linked_at_the_api() -> None:
    assert IMAGE.get_link(with_outcome(paths=[], image_urls=[URL]), ti_key=TaskInstanceKey()) == URL


@without_gallery
def test_without_a_gallery_an_image_is_linked_at_the_api() -> None:
    assert IMAGE.get_link(with_outcome(paths=["/a.jpg"], image_urls=[URL]), ti_key=TaskInstanceKey()) == URL
    assert GENERATED_IMAGES.get_link(None, ti_key=TaskInstanceKey()) == ""


@pytest.mark.parametrize("link", [IMAGE])
def test_nothing_is_linked_before_an_image_exists(link: ImageLink) -> None:
    for operator in operators()[:2]:
        assert link.get_link(operator, ti_key=TaskInstanceKey()) == ""
    assert link.get_link(with_outcome(paths=[], image_urls=[]), ti_key=TaskInstanceKey()) == ""


def test_a_serialized_dag_has_the_links_of_its_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow.providers.common.compat.sdk import DAG

    serialization = dag_serialization()
    # Airflow's API, which other tests use, turns off the loading of links for the rest of the process.
    monkeypatch.setattr(serialization, "_load_operator_extra_links", True, raising=False)
    with DAG("foxes", schedule=None, start_date=pendulum.datetime(2024, 1, 1)) as dag:
        operators()
    stored = serialization.from_dict(serialization.to_dict(dag))
    assert set(stored.get_task("draw").extra_links) == {"Generated images", "Image"}
    assert set(stored.get_task("wait").extra_links) == {"Generated images", "Image"}
    assert set(stored.get_task("batch").extra_links) == {"Generated images"}


@pytest.mark.skipif(AIRFLOW_3, reason="Airflow 3 gets links from the task itself, in the worker")
def test_airflow_2_reads_the_link_from_the_return_value_of_the_task(monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow.models import XCom

    returned: dict[str, Any] = {}
    monkeypatch.setattr(XCom, "get_value", lambda *, ti_key, key: returned.get(key))
    stored = SimpleNamespace()
    assert IMAGE.get_link(stored, ti_key=TaskInstanceKey()) == ""
    returned["return_value"] = {"image_urls": [URL], "paths": ["/a.jpg"]}
    assert IMAGE.get_link(stored, ti_key=TaskInstanceKey()) == URL
    returned["return_value"] = [URL]
    assert IMAGE.get_link(stored, ti_key=TaskInstanceKey()) == URL
    returned["return_value"] = "n43"
    assert IMAGE.get_link(stored, ti_key=TaskInstanceKey()) == ""


@pytest.mark.parametrize(
    "value",
    [
        ["javascript:alert(1)"],
        ["JavaScript://cdn.example/%0Aalert(1)"],
        ["java\tscript:alert(1)"],
        ["data:text/html,<script>alert(1)</script>"],
        ["//cdn.example/1.png"],
        ["/api/v2/auth/logout"],
        [["javascript:alert(1)"]],
        [None],
        "javascript:alert(1)",
        {"0": "javascript:alert(1)"},
        7,
    ],
    ids=str,
)
def test_a_value_that_is_not_an_image_url_is_not_linked(value: Any) -> None:
    assert IMAGE.get_link(with_outcome(image_urls=value), ti_key=TaskInstanceKey()) == ""


def test_each_link_has_its_own_xcom_key() -> None:
    if hasattr(GENERATED_IMAGES, "xcom_key"):
        assert GeneratedImagesLink().xcom_key != ImageLink().xcom_key
