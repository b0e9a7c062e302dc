"""A person chooses among images: what is offered, what is taken for an answer, and what becomes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_qwenimage import QwenImageChooseOperator, QwenImageGenerateOperator
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
