"""The provider's metadata is valid, and Airflow uses it."""

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
from airflow_provider_qwenimage.client.connection import CONN_TYPE
from airflow_provider_qwenimage.contract import DEFAULT_BASE_URL
from airflow_provider_qwenimage.decorators import qwenimage_batch_task, qwenimage_task
from airflow_provider_qwenimage.rules.connection_extra import KNOWN_EXTRA
from tests.packaging.conftest import RunScript

NAME = "airflow-provider-qwenimage"
# Prints the form's own fields and its changes to the standard fields, from the API of Airflow 3 or from the providers
# manager of Airflow 2.
FORM = """
import json
from importlib.util import find_spec

if find_spec("airflow.api_fastapi"):
    from airflow.api_fastapi.core_api.services.ui.connections import HookMetaService

    (form,) = [form for form in HookMetaService.hook_meta_data() if form.connection_type == "qwenimage"]
    fields = sorted(form.extra_fields or {})
    standard = form.standard_fields.model_dump(by_alias=True) if form.standard_fields else {}
    shown = {"schema" if name == "url_schema" else name: field for name, field in standard.items() if field}
    behaviour = {
        "hidden": sorted(name for name, field in shown.items() if field["hidden"]),
        "labels": {name: field["title"] for name, field in shown.items() if field["title"]},
        "placeholders": {name: field["placeholder"] for name, field in shown.items() if field["placeholder"]},
    }
else:
    from airflow.providers_manager import ProvidersManager

    manager, start = ProvidersManager(), "extra__qwenimage__"
    fields = sorted(name.removeprefix(start) for name in manager.connection_form_widgets if name.startswith(start))
    known = manager.field_behaviours["qwenimage"]
    behaviour = {
        "hidden": sorted(known["hidden_fields"]),
        "labels": known["relabeling"],
        "placeholders": known["placeholders"],
    }
print(json.dumps({"fields": fields} | behaviour))
"""


def test_the_entry_points_lead_to_the_package() -> None:
    (provider,) = [
        point for point in entry_points(group="apache_airflow_provider") if point.module.startswith("airflow_provider_")
    ]
    assert provider.load() is provider_info.get_provider_info
    for fixture in ("qwenimage_sandbox", "qwenimage_airflow"):
        (plugin,) = entry_points(group="pytest11", name=fixture)
        assert callable(getattr(plugin.load(), fixture))


def test_it_is_valid_according_to_airflows_schema() -> None:
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


def test_every_task_decorator_it_names_exists() -> None:
    decorators = {}
    for decorator in provider_info.get_provider_info()["task-decorators"]:
        module, _, name = decorator["class-name"].rpartition(".")
        decorators[decorator["name"]] = getattr(import_module(module), name)
    assert decorators == {"qwenimage": qwenimage_task, "qwenimage_batch": qwenimage_batch_task}


def test_the_form_has_a_field_for_every_key_of_the_extra() -> None:
    assert set(provider_info.CONN_FIELDS) == set(KNOWN_EXTRA)


def test_the_form_shows_the_default_base_url() -> None:
    assert provider_info.PLACEHOLDERS["host"] == DEFAULT_BASE_URL


def test_callers_cannot_change_it() -> None:
    provider_info.get_provider_info()["connection-types"][0]["conn-fields"].clear()
    assert provider_info.get_provider_info()["connection-types"][0]["conn-fields"]


def test_airflow_lists_the_options_and_knows_their_defaults(fresh_environment: dict[str, str]) -> None:
    def config(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "airflow", "config", *arguments],
            env=fresh_environment,
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    listed = config("list", "--section", "qwenimage", "--defaults", "--include-descriptions", "--include-examples")
    assert "[qwenimage]" in listed
    for name, option in provider_info.CONFIG_OPTIONS.items():
        assert name in listed
        assert option["example"] in listed
    assert config("get-value", "qwenimage", "thumbnails_megabytes").split()[-1] == "256"


@pytest.mark.airflow_feature("connection form", "yes")
def test_airflow_builds_the_connection_form_from_it(run_script: RunScript) -> None:
    """Airflow 3.2 and later use the provider info, older versions the hook's methods."""
    form = run_script(FORM)
    assert form["fields"] == sorted(provider_info.CONN_FIELDS)
    # The port stays visible: without one, the Test button of Airflow 3.3 gets "Bad Request".
    assert form["hidden"] == ["login", "schema"]
    assert form["placeholders"]["port"].startswith("443")
    assert form["labels"] == {"host": "Base URL", "password": "API key"}
    assert form["placeholders"]["host"] == DEFAULT_BASE_URL


@pytest.mark.airflow_feature("connection form", "plain")
def test_a_plain_form_still_has_the_connection_type(run_script: RunScript) -> None:
    assert run_script(FORM) == {"fields": [], "hidden": [], "labels": {}, "placeholders": {}}


@pytest.fixture
def airflow_command(fresh_environment: dict[str, str]) -> Any:
    def say(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "airflow", *arguments],
            env=fresh_environment | {"COLUMNS": "300"},
            capture_output=True,
            text=True,
            timeout=280,
            check=True,
        )
        return done.stdout + done.stderr

    return say


def test_airflow_shows_the_provider_and_its_decorators(airflow_command: Any) -> None:
    shown = airflow_command("providers", "get", NAME, "--full", "--output", "json")
    assert NAME in shown
    assert "airflow_provider_qwenimage.decorators.qwenimage_batch_task" in shown


def test_airflow_lists_the_connection_type_without_a_warning(airflow_command: Any) -> None:
    lines = [line for line in airflow_command("providers", "hooks").splitlines() if "qwen" in line.lower()]
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
