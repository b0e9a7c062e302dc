"""The connection's file of certificate authorities applies to both the API and the image host."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_provider_qwenimage import QwenImageBatchOperator
from airflow_provider_qwenimage.sandbox import Sandbox
from tests.integration.dag_runs import TestDag, dag_that_draws, stored_files


@pytest.fixture
def https_api(airflow_database: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=localhost"
    files = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*command.split(), *files], check=True, capture_output=True)
    with Sandbox(ssl_certfile=str(certificate), ssl_keyfile=str(key), seconds_per_image=0) as sandbox:
        connection = {
            "conn_type": "qwenimage",
            "host": sandbox.url,
            "password": json.loads(sandbox.connection_json)["password"],
        }
        monkeypatch.setenv(
            "AIRFLOW_CONN_QWENIMAGE_DEFAULT", json.dumps(connection | {"extra": {"verify": str(certificate)}})
        )
        yield sandbox


@pytest.mark.parametrize("deferrable", [False, True], ids=["in the worker", "deferred"])
def test_an_operator_stores_its_image(https_api: Sandbox, tmp_path: Path, deferrable: bool) -> None:
    folder = tmp_path / "images"
    end = dag_that_draws(
        wait_for_completion=True, deferrable=deferrable, output_path=str(folder), poll_interval=0.01
    ).run()["draw"]
    assert end.state == "success"
    assert end.returned["image_urls"][0].startswith("https://")
    assert len(stored_files(folder)) == 2


def test_a_batch_stores_its_images(https_api: Sandbox, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    dag = TestDag()
    with dag:
        QwenImageBatchOperator(
            task_id="draw", requests=["A fox", "A hare"], output_path=str(folder), poll_interval=0.01
        )
    assert dag.run()["draw"].state == "success"
    assert len(list(folder.glob("*.jpg"))) == 2
