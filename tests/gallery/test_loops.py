"""Tasks in a loop, since Airflow 3.4: each iteration has its own images, links and manifest."""

from pathlib import Path
from typing import Any

import pytest

from airflow_provider_qwenimage import QwenImageBatchOperator, QwenImageChooseOperator, QwenImageGenerateOperator
from airflow_provider_qwenimage.links import GENERATED_IMAGES, IMAGE
from airflow_provider_qwenimage.rules.gallery_urls import TASK_ROUTE
from tests.airflows import AIRFLOW
from tests.gallery.airflow_server import Server
from tests.gallery.conftest import Shown
from tests.gallery.test_listing import Show, listing, prompts
from tests.integration.dag_runs import dag_that_draws, dag_with_a_loop

pytestmark = pytest.mark.skipif(AIRFLOW < (3, 4), reason="Airflow has loops since 3.4.")

DRAW: dict[str, Any] = {"task_id": "draw", "poll_interval": 0.01}


def query_of(item: dict[str, Any]) -> dict[str, str]:
    """Return the query of Airflow's page of an item's task instance."""
    return dict(part.split("=") for part in item["task_url"].partition("?")[2].split("&"))


def stored_links(shown: Shown, link: Any) -> set[str]:
    """Return where a link on the tasks of a run leads."""
    from airflow.models.xcom import XComModel
    from airflow.utils.session import create_session
    from sqlalchemy import select

    mine = select(XComModel).where(XComModel.dag_id == shown.dag_id, XComModel.key == link.xcom_key)
    with create_session() as session:
        return {XComModel.deserialize_value(row) for row in session.scalars(mine)}


def test_each_iteration_shows_the_images_of_its_mapped_tasks(server: Server, show: Show, tmp_path: Path) -> None:
    dag = dag_with_a_loop(
        lambda: QwenImageGenerateOperator.partial(output_path=str(tmp_path), **DRAW).expand(prompt=["A fox", "A hen"]),
        iterations=2,
    )
    shown = show(dag)
    items = listing(server, shown.path)["items"]
    places = [(item["iteration"], item["map_index"], item["prompt"]) for item in items]
    assert sorted(places) == [(0, 0, "A fox"), (0, 1, "A hen"), (1, 0, "A fox"), (1, 1, "A hen")]
    assert len({server.get(item["image"]).content for item in items}) == 4
    for item in items:
        assert f"/tasks/again.draw/mapped/{item['map_index']}?region_id=" in item["task_url"]
        own = listing(server, f"{shown.path}/tasks/again.draw", map_index=item["map_index"], **query_of(item))
        assert [each["image"] for each in own["items"]] == [item["image"]]


def test_each_iteration_shows_the_rows_of_its_batch(server: Server, show: Show, tmp_path: Path) -> None:
    dag = dag_with_a_loop(
        lambda: QwenImageBatchOperator(requests=["A fox", "A hen"], output_path=str(tmp_path), **DRAW), iterations=2
    )
    shown = show(dag)
    page = listing(server, shown.path)
    assert prompts(page) == ["A fox", "A hen", "A fox", "A hen"]
    assert [item["iteration"] for item in page["items"]] == [0, 0, 1, 1]
    assert [batch["problem"] for batch in page["batches"]] == [None, None]
    last = page["items"][-1]
    own = listing(server, f"{shown.path}/tasks/again.draw", **query_of(last))
    assert [item["iteration"] for item in own["items"]] == [1, 1]


def test_each_iteration_of_a_task_shows_its_image(server: Server, show: Show, tmp_path: Path) -> None:
    dag = dag_with_a_loop(lambda: QwenImageGenerateOperator(prompt="A fox", output_path=str(tmp_path), **DRAW), 2)
    shown = show(dag)
    items = listing(server, shown.path)["items"]
    assert [(item["iteration"], item["map_index"]) for item in items] == [(0, -1), (1, -1)]
    assert all("/tasks/again.draw?region_id=" in item["task_url"] for item in items)
    tabs = {item["task_url"].replace("?", f"/plugin/{TASK_ROUTE}?") for item in items}
    assert stored_links(shown, GENERATED_IMAGES) == tabs
    assert stored_links(shown, IMAGE) == {item["image"].partition("&drawn=")[0] for item in items}


def test_each_iteration_of_a_choosing_task_has_its_candidates(server: Server, show: Show, tmp_path: Path) -> None:
    drawn = show(dag_that_draws(output_path=str(tmp_path), prompts=["A fox", "A hen"], seed=1))
    images = [end.returned for end in drawn.run.mapped("draw")]
    dag = dag_with_a_loop(
        lambda: QwenImageChooseOperator(
            task_id="pick", images=images, subject="Which one?", defaults=2, response_timeout=60
        ),
        iterations=2,
    )
    shown = show(dag)
    choices = listing(server, shown.path)["choices"]
    assert [choice["iteration"] for choice in choices] == [0, 1]
    assert all(choice["verdict"]["chosen"] == 1 for choice in choices)
    for choice in choices:
        region = query_of(choice)
        assert choice["answer_url"].partition("?")[2] == choice["task_url"].partition("?")[2]
        own = listing(server, f"{shown.path}/tasks/again.pick", **region)
        assert [(item["number"], item["mark"]["outcome"]) for item in own["items"]] == [
            (1, "not_chosen"),
            (2, "chosen"),
        ]
        assert [item["iteration"] for item in own["items"]] == [choice["iteration"]] * 2
        candidate = server.get(f"{shown.path}/tasks/again.pick/candidates/2", params={"map_index": -1, **region})
        assert "ETag" in candidate.headers
        assert all(server.get(item["image"]).status_code == 200 for item in own["items"])
