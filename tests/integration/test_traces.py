"""The spans of whole tasks, in the threads, event loops and triggers in which Airflow runs them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from opentelemetry.trace import StatusCode

from airflow_provider_qwenimage import QwenImageBatchOperator, QwenImageGenerateOperator, QwenImageStatusSensor
from airflow_provider_qwenimage.sandbox import Sandbox
from tests.integration.dag_runs import WAITS, TestDag
from tests.traces import Traces

_LIFE = ("submit", "wait", "download", "verify", "store")


def test_the_spans_of_every_kind_of_task_are_below_that_of_the_task(
    connected_api: Sandbox, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    traces = Traces(monkeypatch)
    dag = TestDag()
    with dag:
        batch = QwenImageBatchOperator(
            task_id="batch",
            requests=["A tin robot", "A paper moon"],
            output_path=str(tmp_path / "batch"),
            poll_interval=0.01,
        )
        deferred = QwenImageGenerateOperator(
            task_id="deferred",
            prompt="A red kite",
            output_path=str(tmp_path / "deferred"),
            deferrable=True,
            poll_interval=0.01,
        )
        submitted = QwenImageGenerateOperator(task_id="submitted", prompt="A red kite")
        batch >> deferred >> submitted
        sensors = {
            mode: QwenImageStatusSensor(
                task_id=mode, image_task_id=str(submitted.output), poke_interval=0.01, **arguments
            )
            for mode, arguments in WAITS.items()
        }
        submitted >> list(sensors.values())
    with traces.parent() as parent:
        assert dag.run().state == "success"
    assert all(each.parent is not None and each.parent.span_id == parent for each in traces.ended)
    assert all(each.status.status_code is StatusCode.UNSET for each in traces.ended)
    names = Counter(traces.names)
    # One image that is deferred is waited for in the worker and in the trigger; so is the one that a sensor finds.
    assert {name: names[name] for name in _LIFE if name != "wait"} == {
        "submit": 4,
        "download": 3,
        "verify": 3,
        "store": 3,
    }
    costs = [(each.attributes or {}).get("qwenimage.credits") for each in traces.ended if each.name == "qwenimage.wait"]
    assert costs.count(5) == 2 + 1 + len(WAITS)
    drawn = {each.attributes["qwenimage.task_id"] for each in traces.ended if each.attributes}
    assert drawn == {submission.task_id for submission in connected_api.submissions}
