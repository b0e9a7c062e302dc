"""A sweep in real DAGs: as the requests of a batch, and mapped over, with the labels that people then see."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from airflow_provider_qwenimage import QwenImageBatchOperator, QwenImageGenerateOperator, sweep
from airflow_provider_qwenimage.decorators import qwenimage_task
from airflow_provider_qwenimage.sandbox import Sandbox
from tests.integration.dag_runs import TestDag, dag_serialization, labels_in_the_ui


def dag_with_sweeps(folder: Path) -> TestDag:
    dag = TestDag()
    with dag:
        QwenImageBatchOperator(
            task_id="batch",
            requests=sweep("a {red|blue} fox in {{ dag.dag_id }}", seed=range(2)),
            output_path=str(folder / "batch"),
            poll_interval=0.01,
        )
        QwenImageGenerateOperator.partial(task_id="mapped", output_path=str(folder), poll_interval=0.01).expand_kwargs(
            sweep("a {red|blue} fox", seed=7)
        )
    return dag


def test_a_sweep_in_a_dag_is_serialized_as_a_list_and_the_same_each_time(tmp_path: Path) -> None:
    serialization = dag_serialization()
    parsed = [dag_with_sweeps(tmp_path).dag for _ in range(2)]
    first, second = (serialization.serialize_dag(dag) for dag in parsed)
    text = json.dumps(first, sort_keys=True)
    same_id = json.dumps(second, sort_keys=True).replace(parsed[1].dag_id, parsed[0].dag_id)
    assert text == same_id, "each parse is the same version of the DAG"
    assert "Sweep" not in text
    tasks = serialization.deserialize_dag(first).task_dict
    assert list(tasks["batch"].requests) == sweep("a {red|blue} fox in {{ dag.dag_id }}", seed=range(2))
    assert list(tasks["mapped"].expand_input.value) == sweep("a {red|blue} fox", seed=7)


def test_sweeps_are_drawn_and_their_labels_are_shown(connected_api: Sandbox, tmp_path: Path) -> None:
    dag = dag_with_sweeps(tmp_path)
    with dag:
        # Without records it resumes with the request that it has pushed.
        @qwenimage_task(output_path=str(tmp_path / "decorated"), deferrable=True, durable=False, poll_interval=0.01)
        def decorated(animal: str) -> dict[str, Any]:
            return {"prompt": f"a {animal}", "label": animal.upper()}

        decorated.expand(animal=["fox", "cat"])
    run = dag.run()
    assert run.state == "success"
    rows = [json.loads(line) for line in (tmp_path / "batch" / "manifest.jsonl").read_text().splitlines()]
    assert [(row["prompt"], row["seed"], row["label"]) for row in rows] == [
        (f"a {colour} fox in {dag.dag.dag_id}", seed, f"{colour} · seed {seed}")
        for colour in ("red", "blue")
        for seed in (0, 1)
    ]
    assert labels_in_the_ui(dag, "mapped") == ["red", "blue"]
    assert labels_in_the_ui(dag, "decorated") == ["FOX", "CAT"], "also if the task was deferred in between"
    assert [end.xcoms["request"]["label"] for end in run.mapped("mapped")] == ["red", "blue"]
    assert all("label" not in submission.request for submission in connected_api.submissions)
    for sidecar in tmp_path.glob("*.json"):
        assert "label" not in sidecar.read_text(), "other tasks may share the image"
