"""A sandbox for each test, and a connection to it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_provider_qwenimage.sandbox import Sandbox

API_KEY = "sk-integration-5f0c2a"
_HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let Airflow warn as it likes: made errors, its own warnings would end tasks. Ours still fail."""
    for item in items:
        if item.path.is_relative_to(_HERE):
            item.add_marker(pytest.mark.filterwarnings("ignore", "error:::airflow_provider_qwenimage"))


@pytest.fixture
def api() -> Iterator[Sandbox]:
    """A stand-in of the API that draws an image in a fraction of a second."""
    with Sandbox(seconds_per_image=0.25, api_keys=(API_KEY,)) as sandbox:
        yield sandbox


@pytest.fixture
def connected_api(api: Sandbox, airflow_database: None, monkeypatch: pytest.MonkeyPatch) -> Sandbox:
    """The stand-in, with the default connection in the environment."""
    monkeypatch.setenv("AIRFLOW_CONN_QWENIMAGE_DEFAULT", api.connection_json)
    return api
