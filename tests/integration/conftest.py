"""Fixtures: a sandbox for each test, and a connection to it."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_qwenimage.batch import task as batch_task
from airflow_provider_qwenimage.client import downloads
from airflow_provider_qwenimage.rules import retries
from airflow_provider_qwenimage.sandbox import Sandbox
from airflow_provider_qwenimage.tasks import generating
from tests.airflows import AIRFLOW
from tests.events import UNTIL_SECOND_POLL, draw_at_second_poll
from tests.integration.dag_runs import AIMS
from tests.ports import free_ports

API_KEY = "sk-integration-5f0c2a"
_HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Ignore Airflow's own warnings, which would fail tasks as errors. This package's warnings still fail them."""
    for item in items:
        if item.path.is_relative_to(_HERE):
            item.add_marker(pytest.mark.filterwarnings("ignore", "error:::airflow_provider_qwenimage"))


@pytest.fixture
def api() -> Iterator[Sandbox]:
    """A sandbox API that finishes each image at its second poll."""
    with Sandbox(seconds_per_image=UNTIL_SECOND_POLL, api_keys=(API_KEY,)) as sandbox:
        draw_at_second_poll(sandbox)
        yield sandbox


@pytest.fixture
def connected_api(api: Sandbox, airflow_database: None, monkeypatch: pytest.MonkeyPatch) -> Sandbox:
    """The sandbox API, with the default connection in the environment."""
    monkeypatch.setenv("AIRFLOW_CONN_QWENIMAGE_DEFAULT", api.connection_json)
    return api


@pytest.fixture(autouse=True)
def short_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the answer to a submission take two seconds at most: so long others wait for it, a minute by default."""
    for module in (generating, batch_task):
        monkeypatch.setattr(module, "answer_seconds", lambda *_: 2.0)


@pytest.fixture
def aim(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    """The arguments of a task from `AIMS`, with the test's folder as the output folder."""
    arguments = AIMS[request.param]
    return arguments | ({"output_path": str(tmp_path)} if "output_path" in arguments else {})


@pytest.fixture
def task_log(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """Return a function that returns the text that tasks have logged since its last call."""
    caplog.set_level(logging.INFO)

    def read() -> str:
        # Airflow 3.1 and later print the log of an operator. Older versions use Python's logging and print as well.
        printed = capfd.readouterr().out if AIRFLOW >= (3, 1) else ""
        text = printed + caplog.text
        caplog.clear()
        return text

    return read


@pytest.fixture
def closed_port() -> int:
    """A port on which nothing listens."""
    (port,) = free_ports(1)
    return port


@pytest.fixture
def quick_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the pauses between the attempts of a download."""
    monkeypatch.setattr(downloads, "_RETRIES", retries.RequestRetries(limit=5, delay_seconds=0.01))


@pytest.fixture
def quick_resends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the pauses between the attempts of a request."""
    monkeypatch.setattr(retries, "MAX_DELAY_SECONDS", 0.01)


@pytest.fixture
def changes_seen_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make Airflow store a changed DAG without its pause of 30 seconds."""
    from airflow import settings

    monkeypatch.setenv("AIRFLOW__CORE__MIN_SERIALIZED_DAG_UPDATE_INTERVAL", "0")
    # Up to Airflow 3.1.
    monkeypatch.setattr(settings, "MIN_SERIALIZED_DAG_UPDATE_INTERVAL", 0, raising=False)
