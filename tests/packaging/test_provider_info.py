"""What Airflow is told about the package is true and of the right shape."""

import json
import subprocess
import sys
from importlib import import_module
from importlib.metadata import entry_points
from importlib.resources import files
from typing import Any

import jsonschema
import pytest

from airflow_provider_qwenimage import provider_info
from airflow_provider_qwenimage.connection import _KNOWN_EXTRA, CONN_TYPE
from airflow_provider_qwenimage.contract import DEFAULT_BASE_URL
from tests.packaging.conftest import RunScript

NAME = "airflow-provider-qwenimage"


def test_the_entry_points_lead_to_the_package() -> None:
    (provider,) = [
        point for point in entry_points(group="apache_airflow_provider") if point.module.startswith("airflow_provider_")
    ]
    assert provider.load() is provider_info.get_provider_info
    (plugin,) = entry_points(group="pytest11", name="qwenimage_sandbox")
    assert callable(plugin.load().qwenimage_sandbox)


def test_it_is_valid_by_airflows_schema() -> None:
    schema = json.loads(files("airflow").joinpath("provider_info.schema.json").read_text())
    jsonschema.validate(provider_info.get_provider_info(), schema)


def test_every_module_and_class_it_names_exists() -> None:
    info = provider_info.get_provider_info()
    for kind in ("hooks", "operators", "sensors", "triggers"):
        for entry in info[kind]:
            for module in entry["python-modules"]:
                import_module(module)
    (connection,) = info["connection-types"]
    module, _, name = connection["hook-class-name"].rpartition(".")
    hook = getattr(import_module(module), name)
    assert hook.conn_type == connection["connection-type"] == CONN_TYPE
    assert hook.hook_name == connection["hook-name"]


def test_the_form_has_a_field_for_everything_that_is_read_from_extra() -> None:
    assert set(provider_info.CONN_FIELDS) == set(_KNOWN_EXTRA)


def test_the_form_shows_the_default_base_url() -> None:
    assert provider_info.PLACEHOLDERS["host"] == DEFAULT_BASE_URL


def test_callers_cannot_change_it() -> None:
    provider_info.get_provider_info()["connection-types"][0]["conn-fields"].clear()
    assert provider_info.get_provider_info()["connection-types"][0]["conn-fields"]


def test_airflow_draws_the_connection_form_from_it(run_script: RunScript) -> None:
    """Airflow 3.2 and later from provider info, older ones from the hook's methods."""
    form = run_script(
        "import json\n"
        "from airflow.providers_manager import ProvidersManager\n"
        "manager = ProvidersManager()\n"
        "fields = sorted(name for name in manager.connection_form_widgets if '__qwenimage__' in name)\n"
        "print(json.dumps({'fields': fields, 'behaviour': manager.field_behaviours.get('qwenimage')}))"
    )
    assert form["fields"] == sorted(f"extra__qwenimage__{name}" for name in provider_info.CONN_FIELDS)
    # The port stays: without one, the Test button of Airflow 3.3 answers "Bad Request".
    assert form["behaviour"]["hidden_fields"] == ["login", "schema"]
    assert form["behaviour"]["placeholders"]["port"].startswith("443")
    assert form["behaviour"]["relabeling"] == {"host": "Base URL", "password": "API key"}
    assert form["behaviour"]["placeholders"]["host"] == DEFAULT_BASE_URL


@pytest.fixture
def airflow_says(fresh_environment: dict[str, str]) -> Any:
    def say(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "airflow", *arguments],
            env=fresh_environment | {"COLUMNS": "300"},
            capture_output=True,
            text=True,
            timeout=100,
            check=True,
        )
        return done.stdout + done.stderr

    return say


def test_airflow_shows_the_provider(airflow_says: Any) -> None:
    assert NAME in airflow_says("providers", "get", NAME)


def test_airflow_lists_the_connection_type_without_a_warning(airflow_says: Any) -> None:
    lines = [line for line in airflow_says("providers", "hooks").splitlines() if "qwen" in line.lower()]
    (line,) = lines
    for expected in (
        CONN_TYPE,
        "airflow_provider_qwenimage.hooks.QwenImageHook",
        "qwenimage_conn_id",
        NAME,
        "Qwen Image",
    ):
        assert expected in line
    assert "error" not in line.lower()
