"""Runs code in new interpreters, in which nothing of the package is imported yet."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest

ROOT = Path(__file__).parent.parent.parent

RunScript: TypeAlias = Callable[[str], Any]


@pytest.fixture(scope="session")
def fresh_environment(airflow_home: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a new interpreter, with an Airflow home that is not that of the tests."""
    home = tmp_path_factory.mktemp("airflow")
    return os.environ | {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "example_dags"),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home}/airflow.db",
        "PYTHONWARNINGS": "",
    }


@pytest.fixture(scope="session")
def run_script(fresh_environment: dict[str, str]) -> RunScript:
    """Run a script in a new interpreter and return the JSON in its last line."""

    def run(script: str) -> Any:
        done = subprocess.run(
            [sys.executable, "-c", script],
            cwd=ROOT,
            env=fresh_environment,
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )
        assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        return json.loads(done.stdout.splitlines()[-1])

    return run
