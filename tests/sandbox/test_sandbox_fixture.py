"""The pytest fixture gives each test a sandbox and points Airflow's default connection at it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TEST = """
import json, os, urllib.request

seen = []

def submit(sandbox):
    connection = json.loads(os.environ["AIRFLOW_CONN_QWENIMAGE_DEFAULT"])
    assert connection == json.loads(sandbox.connection_json)
    request = urllib.request.Request(connection["host"] + "/api/generate", data=b'{"prompt": "a cat"}')
    request.add_header("Authorization", "Bearer " + connection["password"])
    with urllib.request.urlopen(request) as answer:
        assert json.load(answer)["code"] == 200

def test_one(qwenimage_sandbox):
    assert qwenimage_sandbox.settings.seconds_per_image == 0.1
    submit(qwenimage_sandbox)
    assert len(qwenimage_sandbox.submissions) == 1

def test_another_begins_with_empty_books(qwenimage_sandbox):
    submit(qwenimage_sandbox)
    assert len(qwenimage_sandbox.submissions) == 1

def test_the_connection_is_gone_afterwards():
    assert "AIRFLOW_CONN_QWENIMAGE_DEFAULT" not in os.environ
"""


def test_the_fixture_points_airflow_at_a_fresh_sandbox(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(TEST)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW_CONN")}
    environment |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": ":".join(path for path in sys.path if path)}
    plugin = "airflow_provider_qwenimage.sandbox.pytest_plugin"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "pytest", "-q", "-p", plugin, "-p", "no:cacheprovider", str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout
