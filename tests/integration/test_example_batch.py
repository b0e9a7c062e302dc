"""The batch example reads request files from its own folder, and no other file that its parameter could name."""

import shutil
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import ParamValidationError

from airflow_provider_qwenimage.sandbox import Sandbox
from tests.integration.dag_runs import TestDag

EXAMPLE = Path(__file__).parents[2] / "example_dags" / "batch.py"


def _parse(folder: Path) -> TestDag:
    spec = spec_from_file_location("example_batch", folder / EXAMPLE.name)
    assert spec is not None
    assert spec.loader is not None
    example = module_from_spec(spec)
    spec.loader.exec_module(example)
    example.draw.retries = 0
    example.draw.poll_interval = 0.01
    dag = TestDag()
    dag.dag = example.draw.dag
    return dag


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A DAG folder with the example and files of requests, and files that it must not read."""
    folder = tmp_path / "dags"
    folder.mkdir()
    shutil.copy(EXAMPLE, folder)
    (folder / "batch_requests.jsonl").write_text('"a fox"\n')
    (folder / "more_requests.jsonl").write_text('"a hare"\n')
    (tmp_path / "other_requests.jsonl").write_text('"not yours"\n')
    (folder / "linked_requests.jsonl").symlink_to(tmp_path / "other_requests.jsonl")
    # As Kubernetes mounts a ConfigMap.
    (folder / "..data").mkdir()
    (folder / "..data" / "mounted_requests.jsonl").write_text('"an owl"\n')
    (folder / "mounted_requests.jsonl").symlink_to(folder / "..data" / "mounted_requests.jsonl")
    return folder


def test_the_request_files_beside_the_dag_are_the_choices(airflow_database: None, folder: Path) -> None:
    assert _parse(folder).dag.params.get_param("requests").schema["enum"] == [
        "batch_requests.jsonl",
        "more_requests.jsonl",
        "mounted_requests.jsonl",
    ]


@pytest.mark.parametrize(
    "name",
    [
        "{folder}/../other_requests.jsonl",
        "../other_requests.jsonl",
        "./../other_requests.jsonl",
        "linked_requests.jsonl",
        "file://{folder}/batch_requests.jsonl",
        "s3://bucket/batch_requests.jsonl",
        "batch_requests.jsonl\n",
        "",
        None,
        ["a prompt"],
    ],
)
def test_any_other_file_is_refused(
    connected_api: Sandbox, airflow_database: None, folder: Path, tmp_path: Path, name: Any
) -> None:
    dag = _parse(folder)
    conf = {"requests": name.format(folder=folder) if isinstance(name, str) else name, "folder": str(tmp_path / "out")}
    # The exception class depends on the Airflow version.
    with pytest.raises((ParamValidationError, ValueError), match="Invalid input for param requests"):
        dag.run(run_conf=conf)
    assert connected_api.requests == []


def test_the_prompts_of_the_chosen_file_are_drawn(
    connected_api: Sandbox, airflow_database: None, folder: Path, tmp_path: Path
) -> None:
    dag = _parse(folder)
    conf = {"requests": "more_requests.jsonl", "folder": str(tmp_path / "out")}
    assert dag.run(run_conf=conf).state == "success"
    assert [submission.request["prompt"] for submission in connected_api.submissions] == ["a hare"]
