"""`airflow` knows the commands, on versions that ask providers for them, and starts no slower for it."""

import subprocess
import sys
from importlib import import_module

import pytest

from airflow_provider_qwenimage.cli import definition
from airflow_provider_qwenimage.provider_info import get_provider_info
from tests.packaging.conftest import ROOT, RunScript

# What Airflow has imported when it asks for the commands stays out of account.
IMPORTED = """
import json, sys
import airflow, airflow.cli.cli_config
from airflow_provider_qwenimage import provider_info

before = set(sys.modules)
from airflow_provider_qwenimage.cli.definition import get_qwenimage_cli_commands

get_qwenimage_cli_commands()
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def _run(arguments: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def test_the_provider_info_names_the_function_that_returns_the_commands() -> None:
    (name,) = get_provider_info()["cli"]
    module, _, function = name.rpartition(".")
    assert getattr(import_module(module), function) is definition.get_qwenimage_cli_commands


def test_asking_for_the_commands_imports_nothing_but_their_description(run_script: RunScript) -> None:
    assert run_script(IMPORTED) == ["airflow_provider_qwenimage.cli", "airflow_provider_qwenimage.cli.definition"]


@pytest.mark.airflow_feature("command line", "`airflow qwenimage`")
def test_airflow_has_the_commands(fresh_environment: dict[str, str]) -> None:
    shown = _run(["airflow", "qwenimage", "--help"], fresh_environment)
    assert shown.returncode == 0, shown.stderr
    assert "Usage: airflow qwenimage" in shown.stdout
    assert [command.name for command in definition.COMMANDS if command.name not in shown.stdout] == []


@pytest.mark.airflow_feature("command line", "`python -m`")
def test_below_airflow_3_2_airflow_ignores_them(fresh_environment: dict[str, str]) -> None:
    shown = _run(["airflow", "qwenimage", "--help"], fresh_environment)
    assert shown.returncode == 2
    assert "qwenimage" in shown.stderr


def test_every_airflow_runs_them_as_a_module(fresh_environment: dict[str, str]) -> None:
    shown = _run(["airflow_provider_qwenimage.cli", "--help"], fresh_environment)
    assert shown.returncode == 0, shown.stderr
    assert "usage: python -m airflow_provider_qwenimage.cli" in shown.stdout
    assert [command.name for command in definition.COMMANDS if command.name not in shown.stdout] == []
