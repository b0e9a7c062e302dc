"""The events that Airflow's OpenLineage provider writes about real tasks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_qwenimage import QwenImageBatchOperator, QwenImageChooseOperator, QwenImageGenerateOperator
from airflow_provider_qwenimage.sandbox import Sandbox
from tests.airflows import AIRFLOW
from tests.integration.dag_runs import TestDag

conf = pytest.importorskip("airflow.providers.openlineage.conf")

Event = dict[str, Any]


def _forget_configuration() -> None:
    for each in vars(conf).values():
        if hasattr(each, "cache_clear"):
            each.cache_clear()


@pytest.fixture
def events_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file of OpenLineage's file transport, and its listener, registered as its plugin does."""
    from airflow.providers.openlineage.plugins.listener import OpenLineageListener
    from airflow.sdk.listener import get_listener_manager

    file = tmp_path / "events.jsonl"
    transport = {"type": "file", "log_file_path": str(file), "append": True}
    monkeypatch.setenv("AIRFLOW__OPENLINEAGE__TRANSPORT", json.dumps(transport))
    # A fork would copy the servers of the test.
    monkeypatch.setenv("AIRFLOW__OPENLINEAGE__EXECUTE_IN_THREAD", "True")
    _forget_configuration()
    listener = OpenLineageListener()
    manager = get_listener_manager()
    manager.add_listener(listener)
    yield file
    manager.pm.unregister(listener)
    monkeypatch.undo()
    _forget_configuration()


def events_by_task(file: Path) -> dict[tuple[str, str], Event]:
    """Return the last event of each task and kind."""
    events = [json.loads(line) for line in file.read_text().splitlines()]
    return {(event["job"]["name"].rpartition(".")[2], event["eventType"]): event for event in events}


def names(datasets: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(each["namespace"], each["name"]) for each in datasets]


def facet_of(event: Event) -> dict[str, Any]:
    """Return the package's facet of an event without the fields that every facet has."""
    facet = event["run"]["facets"]["qwenimage_images"]
    assert facet["_schemaURL"].endswith("#/$defs/RunFacet")
    return {name: value for name, value in facet.items() if not name.startswith("_")}


def test_events_name_folder_requests_image_tasks_and_credits(
    connected_api: Sandbox, events_file: Path, tmp_path: Path
) -> None:
    folder, catalogue, requests = tmp_path / "images", tmp_path / "catalogue", tmp_path / "prompts.jsonl"
    requests.write_text('"a hare"\n"an owl"\n')
    connected_api.script("generate", "failure")
    common: dict[str, Any] = {"poll_interval": 0.01, "trigger_rule": "all_done"}
    dag = TestDag()
    with dag:
        fails = QwenImageGenerateOperator(
            task_id="fails", prompt="a wolf", wait_for_completion=True, deferrable=True, retries=0, **common
        )
        draw = QwenImageGenerateOperator(
            task_id="draw", prompt="a secret fox", output_path=str(folder), deferrable=True, **common
        )
        batch = QwenImageBatchOperator(task_id="batch", requests=str(requests), output_path=str(catalogue), **common)
        submit = QwenImageGenerateOperator(task_id="submit", prompt="a crow", **common)
        fails >> draw >> batch >> submit
    run = dag.run()
    assert [run[name].state for name in ("fails", "draw", "batch", "submit")] == ["failed", *["success"] * 3]
    events = events_by_task(events_file)
    failed, drawn, *_ = connected_api.submissions

    start, end = events["draw", "START"], events["draw", "COMPLETE"]
    assert names(start["outputs"]) == names(end["outputs"]) == [("file", str(folder))]
    assert "qwenimage_images" not in start["run"]["facets"]
    assert facet_of(end) == {"taskIds": [drawn.task_id], "consumedCredits": 5, "images": 1, "reused": 0}

    end = events["batch", "COMPLETE"]
    assert names(end["inputs"]) == [("file", str(requests))]
    assert names(end["outputs"]) == [("file", str(catalogue))]
    facet = facet_of(end)
    assert len(facet.pop("taskIds")) == 2
    manifest = run["batch"].returned["manifest"]
    assert facet == {"consumedCredits": 10, "images": 2, "reused": 0, "failed": 0, "manifest": manifest}

    assert facet_of(events["submit", "COMPLETE"]) == {"taskIds": [run["submit"].returned]}
    assert facet_of(events["fails", "FAIL"]) == {"taskIds": [failed.task_id], "consumedCredits": 0}
    written = events_file.read_text()
    assert "secret fox" not in written
    assert "an owl" not in written
    assert connected_api.api_key not in written


@pytest.mark.skipif(AIRFLOW < (3, 1), reason="Airflow 3.1 and later can ask a person")
def test_events_of_a_choice_name_the_folders_of_the_candidates_and_the_chosen_image_tasks(
    connected_api: Sandbox, events_file: Path, tmp_path: Path
) -> None:
    dag = TestDag()
    with dag:
        draw = QwenImageGenerateOperator.partial(task_id="draw", prompt="a fox", poll_interval=0.01).expand(
            output_path=[str(tmp_path / "one"), f"file://{tmp_path}/two", str(tmp_path / "one")]
        )
        QwenImageChooseOperator(task_id="choose", images=draw.output, subject="Which?", defaults=2)
    run = dag.run()
    (chosen,) = run["choose"].returned
    events = events_by_task(events_file)
    assert names(events["choose", "START"]["inputs"]) == []
    end = events["choose", "COMPLETE"]
    assert names(end["inputs"]) == [("file", str(tmp_path / "one")), ("file", str(tmp_path / "two"))]
    assert names(end["outputs"]) == []
    assert facet_of(end) == {"taskIds": [chosen["task_id"]], "images": 1}
