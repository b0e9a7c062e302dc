"""The example DAGs parse on a machine without network and without an Airflow connection."""

import json
from typing import Any

import pytest

from tests.packaging.conftest import ROOT, RunScript

EXAMPLES = sorted((ROOT / "example_dags").glob("*.py"))

# Any lookup of a name and any opened connection ends the import.
PARSE_WITHOUT_NETWORK = """
import json, sys
import airflow

if airflow.__version__.startswith("2."):
    # Airflow 2 looks an asset alias of a schedule up in its database when the file is parsed.
    from airflow.utils.db import initdb
    initdb()

def cut(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        raise RuntimeError(f"the network was used: {event} {arguments[1:]}")

sys.addaudithook(cut)

try:
    from airflow.dag_processing.dagbag import DagBag
except ImportError:
    from airflow.models.dagbag import DagBag

bag = DagBag(dag_folder=FOLDER)
dags = {
    dag.dag_id: {
        "file": dag.fileloc,
        "doc": dag.doc_md or "",
        "tasks": {task.task_id: task.task_type for task in dag.tasks},
        "retries": min(task.retries for task in dag.tasks),
    }
    for dag in bag.dags.values()
}
print(json.dumps({"errors": bag.import_errors, "dags": dags}))
"""


@pytest.fixture(scope="module")
def parsed(run_script: RunScript) -> dict[str, Any]:
    result: dict[str, Any] = run_script(f"FOLDER = {str(ROOT / 'example_dags')!r}\n{PARSE_WITHOUT_NETWORK}")
    return result


def test_every_example_parses_without_network(parsed: dict[str, Any]) -> None:
    assert parsed["errors"] == {}
    assert sorted({dag["file"] for dag in parsed["dags"].values()}) == [str(file) for file in EXAMPLES]


def test_using_the_network_is_noticed(run_script: RunScript) -> None:
    script = PARSE_WITHOUT_NETWORK.split("try:", maxsplit=1)[0] + (
        "import socket\n"
        "try:\n"
        "    socket.create_connection(('127.0.0.1', 9))\n"
        "except RuntimeError as error:\n"
        "    print(json.dumps(str(error)))\n"
    )
    assert "the network was used" in run_script(script)


def test_the_tasks_of_every_example_are_retried(parsed: dict[str, Any]) -> None:
    assert all(dag["retries"] > 0 for dag in parsed["dags"].values())


def test_the_examples_use_every_operator_sensor_and_decorator(parsed: dict[str, Any]) -> None:
    used = {kind for dag in parsed["dags"].values() for kind in dag["tasks"].values()}
    assert used >= {
        "QwenImageGenerateOperator",
        "QwenImageStatusSensor",
        "QwenImageBatchOperator",
        "_QwenImageDecoratedOperator",
        "_QwenImageBatchDecoratedOperator",
    }


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda file: file.stem)
def test_every_example_is_documented(parsed: dict[str, Any], example: Any) -> None:
    for dag in (dag for dag in parsed["dags"].values() if dag["file"] == str(example)):
        assert "credits" in dag["doc"], "the documentation does not say what a run costs"
        assert "qwenimage_default" in dag["doc"]


def test_no_example_contains_a_key() -> None:
    text = json.dumps([file.read_text() for file in EXAMPLES])
    assert "sk-" not in text
