"""Run the tests with their own Airflow: a home in a temporary directory and none of the user's settings.

Airflow reads its environment at its first import, so this module sets it before any test module is imported.
"""

import atexit
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from tests.s3_server import Bucket, S3Server

_FEATURES_SHOWN = pytest.StashKey[set[tuple[str, str]]]()

if "airflow.configuration" in sys.modules:
    raise RuntimeError("Airflow was imported before tests/conftest.py could set AIRFLOW_HOME.")

for _name in [name for name in os.environ if name.startswith(("AIRFLOW_", "_AIRFLOW_"))]:
    del os.environ[_name]

_HOME = Path(tempfile.mkdtemp(prefix="qwenimage-airflow-"))
(_HOME / "dags").mkdir()
atexit.register(shutil.rmtree, _HOME, ignore_errors=True)

# A slow machine must not fail a property. Everything else is Hypothesis' default: in CI, nearly the same examples.
settings.register_profile(
    "newest Airflow", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.register_profile("older Airflow", settings.get_profile("newest Airflow"), max_examples=20)
settings.load_profile("newest Airflow")

os.environ |= {
    "AIRFLOW_HOME": str(_HOME),
    "AIRFLOW__CORE__DAGS_FOLDER": str(_HOME / "dags"),
    "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    "AIRFLOW__DATABASE__LOAD_DEFAULT_CONNECTIONS": "False",
    "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{_HOME}/airflow.db",
    "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
}

# A shell has what runs in its background ignore Ctrl-C, and every process of a test would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int | None:
    """Return two processes for each core, up to eight: half of a test's time is waiting. xdist's variable wins."""
    if os.environ.get("PYTEST_XDIST_AUTO_NUM_WORKERS"):
        return None
    return min(8, 2 * (os.cpu_count() or 1))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip tests of features that this Airflow does not have, and mark those that need not run on this one."""
    from airflow import __version__

    from tests.airflow_features import features_of
    from tests.airflows import runs_elsewhere

    cells = features_of(__version__)
    shown = config.stash[_FEATURES_SHOWN] = set()
    for item in items:
        if runs_elsewhere(item.path):
            item.add_marker("runs_on_another_airflow")
        for mark in item.iter_markers("airflow_feature"):
            feature, cell = mark.args
            shown.add((feature, cell))
            if cells[feature] != cell:
                reason = f"Airflow {__version__}, {feature}: {cells[feature]}"
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def features_shown(request: pytest.FixtureRequest) -> set[tuple[str, str]]:
    """Return the features and cells that the collected tests show, on this Airflow or on another one."""
    return request.config.stash[_FEATURES_SHOWN]


@pytest.fixture(scope="session")
def airflow_home() -> Path:
    """Return the AIRFLOW_HOME of this test session; its metadata database may not exist yet."""
    return _HOME


@pytest.fixture(scope="session")
def airflow_database(airflow_home: Path) -> Iterator[None]:
    """Create the metadata database, once, for the tests that run tasks."""
    from airflow import settings
    from airflow.utils.db import initdb

    initdb()
    yield
    settings.dispose_orm()


@pytest.fixture(scope="session")
def s3_server() -> Iterator["S3Server"]:
    """An S3 server, shared by all tests that need one."""
    from tests.s3_server import S3Server

    with S3Server() as server:
        yield server


@pytest.fixture
def bucket(s3_server: "S3Server", monkeypatch: pytest.MonkeyPatch) -> "Bucket":
    """A bucket, and Airflow connections to it: `s3` has all rights, `s3_without_list` and so on have fewer."""
    from itertools import combinations

    from tests.s3_server import Bucket

    rights = ("list", "read", "write", "delete")
    for number in range(len(rights) + 1):
        for taken in combinations(rights, number):
            name = "_".join(["s3", *(["without", *taken] if taken else [])])
            monkeypatch.setenv(f"AIRFLOW_CONN_{name.upper()}", s3_server.connection(*taken))
    made = Bucket(s3_server)
    made.url = f"s3://s3@{made.name}"
    s3_server.client().create_bucket(Bucket=made.name)
    return made
