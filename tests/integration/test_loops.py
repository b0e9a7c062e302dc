"""Tasks in a loop, since Airflow 3.4: each iteration is a task instance of its own, with its own image and record."""

from pathlib import Path
from typing import Any

import pytest

from airflow_provider_qwenimage import QwenImageBatchOperator, QwenImageGenerateOperator
from airflow_provider_qwenimage.sandbox import Sandbox
from tests.airflows import AIRFLOW
from tests.integration.dag_runs import dag_with_a_loop, stored_files

pytestmark = pytest.mark.skipif(AIRFLOW < (3, 4), reason="Airflow has loops since 3.4.")


_ARGUMENTS: dict[str, Any] = {"task_id": "draw", "poll_interval": 0.01}


@pytest.mark.parametrize("deferrable", [False, True])
def test_each_iteration_of_a_loop_draws_an_image(connected_api: Sandbox, tmp_path: Path, deferrable: bool) -> None:
    dag = dag_with_a_loop(
        lambda: QwenImageGenerateOperator(
            prompt="A red kite", output_path=str(tmp_path), deferrable=deferrable, **_ARGUMENTS
        ),
        iterations=3,
    )
    assert dag.run().state == "success"
    assert len(connected_api.submissions) == 3
    assert len(stored_files(tmp_path)) == 2 * 3


def test_each_iteration_of_a_loop_draws_the_images_of_its_mapped_tasks(connected_api: Sandbox, tmp_path: Path) -> None:
    dag = dag_with_a_loop(
        lambda: QwenImageGenerateOperator.partial(output_path=str(tmp_path), **_ARGUMENTS).expand(
            prompt=["A red kite", "A red kite"]
        ),
        iterations=2,
    )
    assert dag.run().state == "success"
    assert len(connected_api.submissions) == 4
    assert len(stored_files(tmp_path)) == 2 * 4


def test_each_iteration_of_a_loop_draws_the_images_of_its_batch(connected_api: Sandbox, tmp_path: Path) -> None:
    dag = dag_with_a_loop(
        lambda: QwenImageBatchOperator(requests=["A red kite", "A red kite"], output_path=str(tmp_path), **_ARGUMENTS),
        iterations=2,
    )
    assert dag.run().state == "success"
    assert len(connected_api.submissions) == 4
    manifests = sorted(file.name for file in tmp_path.glob("manifest*"))
    assert manifests == ["manifest-i0.jsonl", "manifest-i1.jsonl"]
