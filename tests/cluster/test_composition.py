"""The services of docker-compose.yaml work when started with its commands, variables and health checks."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import requests
from PIL import Image

from tests.cluster.api import AirflowApi
from tests.cluster.compose_file import FILE
from tests.cluster.composition import Composition, _has_ended, _is_healthy
from tests.cluster.containers import Container
from tests.cluster.metadata import Metadata
from tests.cluster.tokens import WRONG_SECRETS, connection_status
from tests.integration.standalone import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

# Passwords with special characters of URLs, JSON and Redis' settings; the other secrets are created at the start.
SETTINGS = {
    "AIRFLOW_ADMIN_PASSWORD": 'se"cret',
    "AIRFLOW_WORKER_CONCURRENCY": "3",
    "POSTGRES_PASSWORD": "pw/7f%3e@x:y",
    "REDIS_PASSWORD": 'pw/9c"1d%20@x',
    "SANDBOX_SECONDS_PER_IMAGE": "2",
}
EXAMPLES = {
    *("qwenimage_many_prompts", "qwenimage_prompt_to_file", "qwenimage_submit_and_wait"),
    *("qwenimage_batch", "qwenimage_decorated", "qwenimage_on_new_images"),
    *("qwenimage_choose", "qwenimage_publish", "qwenimage_published"),
}
IMAGES = 4


@pytest.fixture(scope="module")
def running() -> Iterator[Composition]:
    with Composition(SETTINGS) as composition:
        composition.start()
        yield composition


@pytest.fixture(scope="module")
def airflow(running: Composition) -> AirflowApi:
    api = AirflowApi(running.url("airflow-apiserver", 8080), "admin", SETTINGS["AIRFLOW_ADMIN_PASSWORD"])
    wait_for("the examples", lambda: api.dag_ids() >= EXAMPLES)
    return api


@pytest.fixture(scope="module")
def run_id(airflow: AirflowApi) -> str:
    run_id = airflow.trigger("qwenimage_many_prompts")
    wait_for(
        "the end of the example",
        lambda: airflow.run_state("qwenimage_many_prompts", run_id) in ("success", "failed"),
    )
    return run_id


def test_an_example_draws_its_images_into_the_volume(running: Composition, airflow: AirflowApi, run_id: str) -> None:
    assert airflow.run_state("qwenimage_many_prompts", run_id) == "success"
    drawn = list(running.volume("images").rglob("*.jpg"))
    assert len(drawn) == IMAGES
    for image in drawn:
        with Image.open(image) as opened:
            opened.load()
    books = requests.get(f"{running.url('sandbox', 8512)}/sandbox/books", timeout=60).json()
    assert books["credits_charged"] == IMAGES * 5


def test_the_gallery_shows_the_images_from_the_volume(airflow: AirflowApi, run_id: str) -> None:
    address = f"{airflow.url}/qwenimage/dags/qwenimage_many_prompts/runs/{run_id}/tasks/draw/images/1?map_index=0"
    answer = airflow.session.get(address, timeout=60)
    assert answer.status_code == 200, answer.text
    assert answer.headers["Content-Type"] == "image/jpeg"


def test_the_log_of_a_task_is_read_through_the_api_server(airflow: AirflowApi, run_id: str) -> None:
    path = f"dags/qwenimage_many_prompts/dagRuns/{run_id}/taskInstances/draw/logs/1?map_index=0"
    assert "Submitted image task" in str(airflow.call("GET", path))


def test_a_wrong_password_is_refused(airflow: AirflowApi) -> None:
    refused = requests.post(f"{airflow.url}/auth/token", json={"username": "admin", "password": "admin"}, timeout=60)
    assert refused.status_code == 401
    assert requests.get(f"{airflow.url}/api/v2/dags", timeout=60).status_code == 401


def test_two_workers_and_two_triggerers_are_running(running: Composition, airflow: AirflowApi) -> None:
    def triggerers() -> set[str]:
        jobs = airflow.call("GET", "jobs?is_alive=true")["jobs"]
        return {job["hostname"] for job in jobs if job["job_type"] == "TriggererJob"}

    wait_for("both triggerers", lambda: triggerers() == {"airflow-triggerer-1", "airflow-triggerer-2"})
    worker = running.containers["airflow-worker"][0]
    celery = ["celery", "--app", "airflow.providers.celery.executors.celery_executor.app", "inspect", "stats"]
    # With the names, Celery waits for both answers; without them, only for a second.
    celery += ["--timeout", "60", "--destination", "celery@airflow-worker-1,celery@airflow-worker-2"]
    output = subprocess.run(celery, env=dict(worker.environment), capture_output=True, text=True, check=True).stdout
    assert {f"celery@airflow-worker-{number}: OK" in output for number in (1, 2)} == {True}
    assert output.count('"max-concurrency": 3') == 2


def test_a_token_signed_with_a_published_secret_cannot_read_a_connection(running: Composition) -> None:
    url = running.url("airflow-apiserver", 8080)
    assert connection_status(url, running.secret("jwt_secret")) == 200
    assert {connection_status(url, secret) for secret in WRONG_SECRETS} == {403}


def test_a_second_start_keeps_the_secrets_and_the_runs(running: Composition, airflow: AirflowApi, run_id: str) -> None:
    before = {file.name: file.read_bytes() for file in running.volume("secrets").iterdir()}
    for name in ("secrets-init", "airflow-init"):
        (init,) = running.containers[name]
        init.start()
        wait_for(f"the end of {name}", partial(_has_ended, init))
        assert init.exit_code() == 0, init.last_output()
    assert {file.name: file.read_bytes() for file in running.volume("secrets").iterdir()} == before
    assert airflow.run_state("qwenimage_many_prompts", run_id) == "success"


def test_no_secret_is_in_an_environment_or_a_command(running: Composition) -> None:
    secrets = [running.secret(file.name).strip() for file in running.volume("secrets").iterdir()]
    for container in (each for each in running.long_running() if each.name != "secrets-init-1"):
        seen = [
            *container.environment.values(),
            *(word for process in container.processes() for word in process.cmdline()),
        ]
        assert not [word for word in seen for secret in secrets if secret in word], container.name


def test_everything_stays_healthy_and_uses_its_own_ports(running: Composition) -> None:
    running.wait_until_healthy()
    metadata = Metadata(running.secret("sql_alchemy_conn"))
    assert metadata.unfinished() == 0
    metadata.close()
    assert ":5432" not in running.secret("sql_alchemy_conn")


@pytest.mark.parametrize(
    ("mistake", "culprit", "sign"),
    [
        (("command: [airflow, dag-processor]", "command: [airflow, dag-processer]"), "airflow-dag-processor", None),
        (("  AIRFLOW__CELERY__BROKER_URL_CMD: ", "  AIRFLOW__CELERY__BROKER_CMD: "), "airflow-worker", None),
        (
            ('"http://localhost:8512/sandbox/settings"', '"http://localhost:8080/sandbox/settings"'),
            "sandbox",
            "http://127.0.0.1:",
        ),
        (
            ("cat /opt/airflow/secrets/sql_alchemy_conn", "cat /opt/airflow/secrets/sql_alchemy_con"),
            "airflow-init",
            None,
        ),
        (
            ("POSTGRES_PASSWORD: ${POSTGRES_PASSWORD:-}", 'AIRFLOW_FERNET_KEY: "mine"'),
            "secrets-init",
            None,
        ),
    ],
    ids=["command", "variable", "health check", "database", "secret"],
)
def test_a_mistake_in_the_file_is_detected_at_the_start(
    mistake: tuple[str, str], culprit: str, sign: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_up(container: Container) -> bool:
        """Check the culprit once only, as soon as its output contains the sign that it has started."""
        if sign is None or not container.name.startswith(culprit):
            return _is_healthy(container)
        if sign not in container.last_output():
            assert container.exit_code() is None, container.last_output()
            return False
        assert _is_healthy(container), f"{container.name} is not healthy"
        return True

    monkeypatch.setattr("tests.cluster.composition._is_healthy", is_up)
    right, wrong = mistake
    text = FILE.read_text()
    assert right in text
    file = tmp_path / "docker-compose.yaml"
    file.write_text(text.replace(right, wrong, 1))
    end = rf"^{culprit}-\d ({'ended with exit code' if sign is None else 'is not healthy'})"
    with Composition(file=file) as composition, pytest.raises(AssertionError, match=end):
        composition.start()
