"""The command line starts a sandbox, prints how to use it, and stops it cleanly."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
from dataclasses import fields

import pytest
import requests

from airflow_provider_qwenimage.sandbox import Sandbox, SandboxSettings
from airflow_provider_qwenimage.sandbox.__main__ import main
from airflow_provider_qwenimage.sandbox.access import CONTROL_HEADERS

COMMAND = [sys.executable, "-m", "airflow_provider_qwenimage.sandbox"]


def run(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *options], capture_output=True, text=True, check=False)


def read_banner(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    lines: list[str] = []
    while not lines or "Ctrl-C" not in lines[-1]:
        line = process.stdout.readline()
        assert line, "".join(lines)
        lines.append(line)
    return "".join(lines)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_starts_prints_answers_and_stops(number: signal.Signals) -> None:
    options = ["--port", "0", "--seconds-per-image", "0", "--api-keys", "sk-a,sk-b", "--script", "status=rate_limit*2"]
    with subprocess.Popen([*COMMAND, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        banner = read_banner(process)
        export = re.search(r"export (.*)", banner)
        assert export is not None
        name, _, value = shlex.split(export[1])[0].partition("=")
        assert name == "AIRFLOW_CONN_QWENIMAGE_DEFAULT"
        connection = json.loads(value)
        assert (connection["conn_type"], connection["password"]) == ("qwenimage", "sk-a")
        (change,) = (line for line in banner.splitlines() if f"-X PATCH {connection['host']}/sandbox/settings" in line)
        changed = subprocess.run([*shlex.split(change), "--silent"], capture_output=True, text=True, check=True).stdout
        assert json.loads(changed)["server_error_share"] == 0.2
        reset = {"seconds_per_image": 0, "server_error_share": 0}
        answer = requests.patch(f"{connection['host']}/sandbox/settings", json=reset, headers=CONTROL_HEADERS)
        assert answer.status_code == 200
        headers = {"Authorization": "Bearer sk-b"}
        url = f"{connection['host']}/api/generate"
        assert requests.post(url, json={"prompt": "a cat"}, headers=headers).status_code == 200
        status = f"{connection['host']}/api/status?task_id=x"
        assert [requests.get(status, headers=headers).status_code for _ in range(3)] == [429, 429, 404]
        process.send_signal(number)
        output, errors = process.communicate(timeout=60)
        assert (process.returncode, output.strip(), errors) == (0, "Stopped.", "")


def test_a_port_in_use_is_reported_in_one_line() -> None:
    with Sandbox() as sandbox:
        port = sandbox.url.rpartition(":")[2]
        done = run("--port", port)
    assert done.returncode == 2
    assert done.stdout == ""
    assert re.fullmatch(rf".*: error: Cannot listen on 127.0.0.1 port {port}: .* Choose another .*\n", done.stderr)


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (["--drop-share", "2"], "from 0 to 1"),
        (["--drop-share", "often"], "from 0 to 1"),
        (["--drop-share", "0.6", "--hang-share", "0.6"], "sum must be at most 1"),
        (["--wire-style", "soap"], "http or envelope"),
        (["--script", "status=explode"], "server_error"),
        (["--script", "status=hang*often"], "ROUTE=BEHAVIOUR"),
        (["--port", "70000"], "65535"),
        (["--ssl-certfile", "/nonexistent"], "ssl_certfile"),
    ],
)
def test_a_wrong_option_is_reported_with_the_allowed_values(
    options: list[str], names: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code: object = main(options)
    except SystemExit as error:
        code = error.code
    assert code == 2
    assert names in " ".join(capsys.readouterr().err.split())


def test_help_explains_every_option() -> None:
    done = run("--help")
    assert done.returncode == 0
    for setting in fields(SandboxSettings):
        assert f"--{setting.name.replace('_', '-')}" in done.stdout
    assert "[policy]" in done.stdout
    assert "wrong_shape" in done.stdout
