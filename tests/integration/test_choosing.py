"""A person chooses among images: what is offered, what is taken for an answer, and what becomes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_qwenimage import QwenImageBatchOperator, QwenImageChooseOperator, QwenImageGenerateOperator
from airflow_provider_qwenimage.sandbox import Sandbox
from tests.airflows import AIRFLOW
from tests.integration.dag_runs import DagRun, TestDag

pytestmark = pytest.mark.skipif(AIRFLOW < (3, 1), reason="Airflow 3.1 and later can ask a person")

SEEDS = (11, 12, 13, 14)


def run_with_defaults(folder: Path, **arguments: Any) -> DagRun:
    """Draw four images and choose among them, in a dag.test(), where nobody answers."""
    dag = TestDag()
    with dag:
        draw = QwenImageGenerateOperator.partial(
            task_id="draw", prompt="A tin robot", output_path=str(folder), poll_interval=0.01
        ).expand(seed=list(SEEDS))
        QwenImageChooseOperator(
            task_id="choose", **{"images": draw.output, "subject": "Which robot?", "defaults": 2} | arguments
        )
    return dag.run()


def sidecars(folder: Path) -> list[dict[str, Any]]:
    """Return the sidecars of a folder, in the order of their seeds."""
    found = [json.loads(file.read_text()) for file in folder.glob("[!.]*.json")]
    return sorted(found, key=lambda sidecar: sidecar["request"]["seed"])


def test_counts_and_defaults_have_to_fit_the_images(connected_api: Sandbox, tmp_path: Path) -> None:
    drawn = run_with_defaults(tmp_path).mapped("draw")
    results = [end.xcoms["return_value"] for end in drawn]
    for arguments, problem in (
        ({"defaults": 5}, "defaults is [5]; it must be the numbers of candidates: There is no candidate 5"),
        ({"at_least": 5, "at_most": None, "defaults": None}, "at_least is 5; it must be at most the number of stored"),
        ({"images": [None]}, "images has no stored image"),
    ):
        dag = TestDag()
        with dag:
            QwenImageChooseOperator(
                task_id="choose", **{"images": results, "subject": "Which?", "defaults": 1} | arguments
            )
        end = dag.run()["choose"]
        assert end.state == "failed"
        assert end.tries == 1
        assert problem in str(end.error)
        assert problem in end.xcoms["error"]["message"]


def test_images_of_a_batch_and_of_skipped_mapped_tasks(connected_api: Sandbox, tmp_path: Path) -> None:
    dag = TestDag()
    with dag:
        batch = QwenImageBatchOperator(
            task_id="batch",
            requests=[{"prompt": "A tin robot", "seed": seed, "label": f"Robot {seed}"} for seed in SEEDS],
            output_path=str(tmp_path),
            poll_interval=0.01,
        )
        QwenImageChooseOperator(
            task_id="choose",
            images=[batch.output, None],
            subject="Which {{ dag.dag_id }}?",
            at_most=None,
            defaults=[1, 4],
        )
    end = dag.run()["choose"]
    assert [each["seed"] for each in end.xcoms["return_value"]] == [11, 14]
    assert [each["label"] for each in end.xcoms["candidates"]] == [f"Robot {seed}" for seed in SEEDS]
    # What was chosen does not make it another image.
    assert dag.run()["batch"].xcoms["return_value"]["reused"] == 4


def test_the_defaults_are_chosen_in_a_dag_test(connected_api: Sandbox, tmp_path: Path) -> None:
    run = run_with_defaults(tmp_path)

    end = run["choose"]
    assert end.state == "success"
    (chosen,) = end.xcoms["return_value"]
    drawn = run.mapped("draw")[1].xcoms["return_value"]
    assert chosen == drawn
    assert [candidate["seed"] for candidate in end.xcoms["candidates"]] == list(SEEDS)
    verdict = end.xcoms["verdict"]
    assert verdict | {"at": None} == {"chosen": [2], "by": None, "at": None, "timed_out": True}
    entries = [sidecar["verdicts"] for sidecar in sidecars(tmp_path)]
    assert [entry["chosen"] for (entry,) in entries] == [False, True, False, False]
    assert entries[0][0]["task"]["task_id"] == "choose"
