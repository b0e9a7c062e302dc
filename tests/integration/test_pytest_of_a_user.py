"""`qwenimage_airflow` in the pytest of a user who has an Airflow: neither has an effect on the other."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.airflows import AIRFLOW_3, IS_NEWEST
from tests.pytest_runs import run_pytest

pytestmark = pytest.mark.timeout(600)

# Each test starts a pytest with an Airflow of its own, which takes long.
on_oldest_and_newest = pytest.mark.skipif(AIRFLOW_3 and not IS_NEWEST, reason="the oldest and the newest are enough")

# Importing or using any of it fails.
UNUSABLE = """
[core]
executor = NoSuchExecutor
xcom_backend = no_such_module.XCom
hostname_callable = no_such_module.hostname
[database]
sql_alchemy_conn = postgresql+no_such_driver://user@localhost:1/airflow
sql_alchemy_connect_args = no_such_module.arguments
sql_alchemy_connect_args_async = no_such_module.arguments
sql_alchemy_engine_args = {"no_such_argument": 1}
sql_alchemy_session_maker = no_such_module.maker
sql_alchemy_schema = airflow
[logging]
base_log_folder = HOME/elsewhere
remote_logging = True
remote_base_log_folder = s3://no-such-bucket/logs
logging_config_class = no_such_module.LOGGING
[secrets]
backend = no_such_module.Secrets
[workers]
secrets_backend = no_such_module.Secrets
"""

# Airflow can be imported with it, as Airflow can with PostgreSQL, but SQLite cannot use it.
USABLE = """
[core]
executor = CeleryExecutor
[database]
sql_alchemy_conn = sqlite:////HOME/of_the_user.db
sql_alchemy_connect_args = of_the_user.arguments
sql_alchemy_connect_args_async = of_the_user.arguments
sql_alchemy_schema = airflow
[secrets]
backend = of_the_user.Secrets
[workers]
secrets_backend = of_the_user.Secrets
"""

OF_THE_USER = """
from airflow.secrets.base_secrets import BaseSecretsBackend

arguments = {}

class Secrets(BaseSecretsBackend):
    def get_conn_value(self, conn_id, **other):
        return None

    def get_variable(self, key, **other):
        return "the user" if key == "place" else None
"""

TESTS = """
def test_a_dag(qwenimage_sandbox, qwenimage_airflow, tmp_path):
    from datetime import datetime, timezone

    from airflow import __version__
    from airflow.configuration import conf
    from airflow.providers.common.compat.sdk import DAG, Variable, task
    from airflow_provider_qwenimage import QwenImageGenerateOperator

    with DAG("pictures", schedule=None) as dag:
        QwenImageGenerateOperator(task_id="draw", prompt="A fox", output_path=str(tmp_path), deferrable=True)

        @task
        def look():
            return {"place": Variable.get("place", "nowhere"), "days": [datetime(2024, 5, 17, tzinfo=timezone.utc)]}

        look()

    run = qwenimage_airflow.run(dag)
    assert run.state == "success"
    assert len(run.images) == 1
    assert run["look"].returned == {"place": "nowhere", "days": [datetime(2024, 5, 17, tzinfo=timezone.utc)]}
    # Airflow 3.0 looks for unknown variables in tasks only.
    assert __version__.startswith("3.0.") or Variable.get("place", "nowhere") == "nowhere"
    assert conf.get("core", "executor") not in ("NoSuchExecutor", "CeleryExecutor")
"""

IMPORTED = "import airflow.settings\n"

USED = """
from airflow.models.dagrun import DagRun
from airflow.providers.common.compat.sdk import Variable

# The task SDK keeps the secrets backends that it has used.
assert Variable.get("place") == "the user"
"""

TEST_AFTER = """
def test_of_something_else():
    import importlib.util

    from airflow import settings
    from airflow.configuration import conf
    from airflow.models.base import metadata
    from airflow.providers.common.compat.sdk import Variable

    assert metadata.schema == "airflow"
    assert conf.get("core", "executor") == "CeleryExecutor"
    assert conf.get("database", "sql_alchemy_schema") == "airflow"
    assert str(settings.engine.url).endswith("of_the_user.db")
    assert Variable.get("place") == "the user"
    if importlib.util.find_spec("airflow.sdk") and importlib.util.find_spec("airflow.sdk.configuration"):
        from airflow.sdk.configuration import conf as sdk_conf

        assert sdk_conf.get("core", "executor") == "CeleryExecutor"
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "home" / "airflow").mkdir(parents=True)
    return tmp_path / "home"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "test_first.py").write_text(TESTS)
    return tmp_path / "folder"


def _files(home: Path) -> set[str]:
    return {str(path.relative_to(home)) for path in home.rglob("*") if ".cache" not in path.parts}


def test_an_airflow_cfg_has_no_effect_and_its_home_stays_as_it_is(folder: Path, home: Path) -> None:
    (home / "airflow" / "airflow.cfg").write_text(UNUSABLE.replace("HOME", str(home)))
    (home / "airflow" / "config").mkdir()
    (home / "airflow" / "config" / "airflow_local_settings.py").write_text("raise RuntimeError")
    before = _files(home)
    done = run_pytest("python -m pytest", folder, home, "-q", "-p", "no:cacheprovider")
    assert "1 passed" in done, done
    assert _files(home) == before


@pytest.mark.parametrize(
    "conftest", [pytest.param(IMPORTED, id="imported", marks=on_oldest_and_newest), pytest.param(USED, id="used")]
)
def test_airflow_that_a_conftest_has_imported_with_its_airflow_cfg_is_itself_again_afterwards(
    conftest: str, folder: Path, home: Path
) -> None:
    (home / "airflow" / "airflow.cfg").write_text(USABLE.replace("/HOME", str(home)))
    (folder / "of_the_user.py").write_text(OF_THE_USER)
    (folder / "conftest.py").write_text(conftest)
    (folder / "test_later.py").write_text(TEST_AFTER)
    done = run_pytest("python -m pytest", folder, home, "-q", "-p", "no:cacheprovider")
    assert "2 passed" in done, done
    assert not (home / "of_the_user.db").exists()


@on_oldest_and_newest
def test_xcoms_in_object_storage_are_decoded_and_stored_elsewhere(folder: Path, home: Path) -> None:
    variables = {
        "AIRFLOW__CORE__XCOM_BACKEND": "airflow.providers.common.io.xcom.backend.XComObjectStorageBackend",
        "AIRFLOW__COMMON_IO__XCOM_OBJECTSTORAGE_PATH": f"file://{home}/xcoms",
        "AIRFLOW__COMMON_IO__XCOM_OBJECTSTORAGE_THRESHOLD": "0",
    }
    done = run_pytest("python -m pytest", folder, home, "-q", "-p", "no:cacheprovider", variables=variables)
    assert "1 passed" in done, done
    assert _files(home) == {"airflow"}


@on_oldest_and_newest
def test_the_unit_test_mode_of_airflow_can_be_on(folder: Path, home: Path) -> None:
    variables = {"AIRFLOW__CORE__UNIT_TEST_MODE": "True", "AIRFLOW_HOME": str(home / "airflow")}
    done = run_pytest("python -m pytest", folder, home, "-q", "-p", "no:cacheprovider", variables=variables)
    assert "1 passed" in done, done
    assert _files(home) == {"airflow"}
