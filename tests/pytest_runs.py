"""Runs pytest as a user does: in a folder and with a home of its own, without Airflow's variables."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run_pytest(
    command: str, folder: Path, home: Path, *options: str, variables: Mapping[str, str] | None = None
) -> str:
    """Run pytest and return its output.

    Args:
        command: The command for bash.
        folder: Where the command runs.
        home: The user's home.
        options: Further options for pytest.
        variables: Further environment variables.
    """
    names = ("sandbox", "testing")
    plugins = [] if _is_installed() else [f"-p airflow_provider_qwenimage.{name}.pytest_plugin" for name in names]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "XDG_"))}
    done = subprocess.run(
        ["bash", "-e", "-c", command],
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment
        | {
            "HOME": str(home),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "PYTEST_ADDOPTS": " ".join([*map(shlex.quote, options), *plugins]),
        }
        | dict(variables or {}),
        timeout=550,
        check=False,
    )
    return done.stdout + done.stderr


def _is_installed() -> bool:
    return any(point.name == "qwenimage_airflow" for point in entry_points(group="pytest11"))
