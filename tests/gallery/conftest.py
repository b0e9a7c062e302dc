"""Airflow's API server with the gallery, and DAG runs whose images it shows."""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_qwenimage.airflow_versions import HAS_PLUGIN_PAGES
from airflow_provider_qwenimage.sandbox import Sandbox
from tests.integration.dag_runs import DagRun, TestDag

_HERE = Path(__file__).parent
# Below Airflow 3.1 there is no gallery, and no package to serve it with.
collect_ignore_glob = [] if HAS_PLUGIN_PAGES else ["test_*.py", "auth_manager.py", "airflow_server.py"]

if HAS_PLUGIN_PAGES:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Airflow's own parts warn while they load.
        import airflow.api_fastapi.app  # noqa: F401


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Ignore Airflow's warnings; those of this package are still errors."""
    for item in items:
        if item.path.is_relative_to(_HERE):
            item.add_marker(pytest.mark.filterwarnings("ignore", "error:::airflow_provider_qwenimage"))


@pytest.fixture(scope="session")
def server(airflow_home: Path, airflow_database: None) -> Iterator[Any]:
    """Airflow's API server; see `airflow_server`."""
    from tests.gallery.airflow_server import serving

    with serving(airflow_home) as server:
        yield server


@dataclass
class Shown:
    """A DAG run and its page in the gallery.

    Attributes:
        dag_id: The DAG.
        run_id: The run.
        run: How it ended.
        dag: The DAG itself.
    """

    dag_id: str
    run_id: str
    run: DagRun
    dag: TestDag

    @property
    def path(self) -> str:
        return f"/qwenimage/dags/{self.dag_id}/runs/{self.run_id.replace('+', '%2B')}"


@pytest.fixture(scope="session")
def gallery_api() -> Iterator[Sandbox]:
    """A stand-in of the API for all runs of a session."""
    with Sandbox(seconds_per_image=0.1) as sandbox:
        yield sandbox


@pytest.fixture(scope="session")
def show(gallery_api: Sandbox, server: Any) -> Callable[[TestDag], Shown]:
    """Return a function that runs a DAG."""

    def run(dag: TestDag) -> Shown:
        # Not longer than the run: tests of other folders follow in the same process.
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AIRFLOW_CONN_QWENIMAGE_DEFAULT", gallery_api.connection_json)
            ended = dag.run()
        return Shown(dag.dag.dag_id, dag.run_id, ended, dag)

    return run
