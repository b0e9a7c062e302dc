"""A real API server with an object storage that accepts connections and never responds."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from airflow_provider_qwenimage import QwenImageBatchOperator
from tests.events import wait_until
from tests.gallery.airflow_server import Server
from tests.gallery.conftest import Shown
from tests.gallery.test_access import image, push
from tests.integration.dag_runs import TestDag, dag_that_draws
from tests.ports import free_ports

_ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture
def silent_store() -> Iterator[tuple[str, list[Any]]]:
    """Yield an Airflow connection to a server that never responds, and the list of its open connections."""
    asked: list[Any] = []
    with socket.create_server(("127.0.0.1", 0), backlog=100) as bound:

        def take() -> None:
            while True:
                try:
                    asked.append(bound.accept())
                except OSError:
                    return

        threading.Thread(target=take, daemon=True).start()
        extra = {"endpoint_url": f"http://127.0.0.1:{bound.getsockname()[1]}", "region_name": "us-east-1"}
        yield json.dumps({"conn_type": "aws", "login": "key", "password": "secret", "extra": extra}), asked
    for connection, _ in asked:
        connection.close()


@pytest.fixture
def process(server: Server, silent_store: tuple[str, list[Any]], tmp_path: Path) -> Iterator[tuple[Server, Any]]:
    """Yield an API server in its own process, on the database of the tests."""
    (port,) = free_ports(1)
    environment = os.environ | {"AIRFLOW_CONN_SILENT": silent_store[0], "PYTHONPATH": str(_ROOT)}
    command = [sys.executable, "-m", "airflow", "api-server", "--host", "127.0.0.1", "--port", str(port)]
    with (tmp_path / "server.out").open("wb") as output:
        started = subprocess.Popen(command, env=environment, stdout=output, stderr=output, cwd=_ROOT)
    here = Server(f"http://127.0.0.1:{port}")

    def answers() -> bool:
        assert started.poll() is None, (tmp_path / "server.out").read_text()[-3000:]
        try:
            return here.get("/api/v2/monitor/health", user=None).status_code == 200
        except requests.ConnectionError:
            return False

    try:
        wait_until(answers, "the API server", seconds=300)
        yield here, started
    finally:
        started.kill()
        started.wait()


def test_other_dags_keep_responding_and_sigterm_stops_the_server(
    process: tuple[Server, Any],
    silent_store: tuple[str, list[Any]],
    show: Callable[[TestDag], Shown],
    tmp_path: Path,
) -> None:
    here, started = process
    foxes = show(dag_that_draws(output_path=str(tmp_path / "foxes"), prompt="A fox", seed=1))
    hares = show(dag_that_draws(output_path=str(tmp_path / "hares"), prompt="A hare", seed=1))
    dag = TestDag()
    with dag:
        folder = str(tmp_path / "owls")
        QwenImageBatchOperator(task_id="draw", requests=["An owl"], output_path=folder, poll_interval=0.05)
    owls = show(dag)
    push(owls, "manifest", "s3://silent@bucket/manifest.jsonl")
    push(hares, "return_value", hares.run["draw"].returned | {"paths": ["s3://silent@bucket/a-hare.jpg"]})
    ended: list[Any] = []

    def ask(path: str) -> None:
        try:
            ended.append(here.get(path).status_code)
        except requests.RequestException as error:
            ended.append(error)

    paths = [f"{owls.path}/data"] * 2 + [f"{image(hares, '/thumbnail')}"] * 4
    for path in paths:
        threading.Thread(target=ask, args=(path,), daemon=True).start()
    wait_until(lambda: silent_store[1], "a read of the store")
    for _ in range(3):
        assert here.get("/api/v2/monitor/health", user=None).status_code == 200
        (item,) = here.get(f"{foxes.path}/data").json()["items"]
        assert item["status"] == "done"
        for kind in ("image", "thumbnail", "details"):
            assert here.get(item[kind]).status_code == 200
    # The reads end by themselves, with a sentence.
    wait_until(lambda: len(ended) == len(paths), "the end of all reads")
    assert set(ended) == {200, 404}
    (batch,) = here.get(f"{owls.path}/data").json()["batches"]
    assert "respon" in batch["problem"]
    # Threads still wait for the store.
    started.send_signal(signal.SIGTERM)
    started.wait(60)
