"""A connection stored in the metadata database, as most are, and not in the environment."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import airflow_provider_qwenimage
from airflow_provider_qwenimage import QwenImageGenerateOperator, QwenImageStatusSensor
from airflow_provider_qwenimage.sandbox import Sandbox
from tests.airflows import AIRFLOW
from tests.integration.dag_runs import WAITS, TestDag

_DAG_FILE = """
import pendulum
from airflow.providers.common.compat.sdk import DAG

from airflow_provider_qwenimage import QwenImageGenerateOperator, QwenImageStatusSensor

with DAG("from_the_command_line", schedule=None, start_date=pendulum.datetime(2024, 1, 1)):
    submit = QwenImageGenerateOperator(task_id="submit", prompt="A boat")
    QwenImageStatusSensor(task_id="sense", image_task_id=submit.output, poke_interval=0.01)
    QwenImageGenerateOperator(task_id="draw", prompt="A kite", output_path={folder!r}, poll_interval=0.01)
"""


@pytest.fixture
def stored_connection(api: Sandbox, airflow_database: None) -> Iterator[None]:
    """Store the default connection in the metadata database, and nowhere else."""
    from airflow.models.connection import Connection
    from airflow.utils.session import create_session

    assert "AIRFLOW_CONN_QWENIMAGE_DEFAULT" not in os.environ
    with create_session() as session:
        connection = Connection("qwenimage_default", conn_type="qwenimage", host=api.url, password=api.api_key)
        session.add(connection)
    yield
    with create_session() as session:
        session.delete(session.merge(connection))


def test_dag_test_finds_the_connection_in_every_way_of_waiting(
    api: Sandbox, stored_connection: None, tmp_path: Path
) -> None:
    dag = TestDag()
    with dag:
        for name, wait in WAITS.items():
            submit = QwenImageGenerateOperator(task_id=f"submit_{name}", prompt=name)
            QwenImageStatusSensor(task_id=f"sense_{name}", image_task_id=submit.output, poke_interval=0.01, **wait)
        for deferrable in (False, True):
            QwenImageGenerateOperator(
                task_id=f"draw_{deferrable}",
                prompt=f"A kite, {deferrable}",
                output_path=str(tmp_path),
                deferrable=deferrable,
                poll_interval=0.01,
            )
    run = dag.run()

    assert {task_id: end.state for (task_id, _), end in run.tasks.items() if end.state != "success"} == {}
    assert len(api.submissions) == 5
    assert len(list(tmp_path.iterdir())) == 4


def test_airflow_dags_test_finds_the_connection(
    api: Sandbox, stored_connection: None, airflow_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(airflow_provider_qwenimage.__file__).parents[1]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")])))
    dag_file = airflow_home / "dags" / "from_the_command_line.py"
    dag_file.write_text(_DAG_FILE.format(folder=str(tmp_path)))
    try:
        done = subprocess.run(
            [sys.executable, "-m", "airflow", "dags", "test", "from_the_command_line"],
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )
    finally:
        dag_file.unlink()

    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    assert api.credits_charged == 10, output
    assert len(list(tmp_path.iterdir())) == 2, output
    if AIRFLOW == (3, 0):
        # In Airflow 3.0, this command logs each password at debug level when it starts to mask it.
        output = "".join(line for line in output.splitlines() if "MaskSecret(" not in line)
    assert api.api_key not in output
