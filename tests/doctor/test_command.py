"""The command as users run it, with the documented commands for a recording and its replay."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from airflow_provider_qwenimage.sandbox import Sandbox
from tests.doctor.running import CONN, doctor

CLI = [sys.executable, "-m", "airflow_provider_qwenimage.cli"]
AIRFLOW = [str(Path(sys.executable).with_name("airflow")), "qwenimage"]


def run(command: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def test_each_check_is_one_line(tmp_path: Path, airflow_database: None) -> None:
    done = run([*CLI, "doctor", "--conn-id", "missing", "--output-path", "."], tmp_path, PYTHONIOENCODING="ascii")
    assert done.returncode == 1, done.stderr
    lines = [line.split(maxsplit=2) for line in done.stdout.splitlines()]
    assert [(line[1], line[0]) for line in lines[:6]] == [
        ("versions", "ok"),
        ("connection", "failed"),
        ("key", "skipped"),
        ("TLS", "skipped"),
        ("proxy", "skipped"),
        ("storage", "ok"),
    ]
    assert [line[1] for line in lines[6:]] == ["books", "triggerer", "gallery", "callbacks"]
    assert lines[1][2].startswith("Connection 'missing' isn't defined. Create it")


@pytest.mark.airflow_feature("command line", "`airflow qwenimage`")
def test_a_recording_is_made_and_replayed_by_the_commands_shown(tmp_path: Path, airflow_database: None) -> None:
    record = [*AIRFLOW, "doctor", "--draw", "2", "--record", "answers.jsonl"]
    with Sandbox(seconds_per_image=0) as sandbox:
        refused = run(record, tmp_path, **{CONN: sandbox.connection_json})
        assert (refused.returncode, sandbox.submissions) == (1, [])
        done = run([*record, "--yes", "-o", "json"], tmp_path, **{CONN: sandbox.connection_json})
        assert done.returncode == 0, done.stdout + done.stderr
        assert sandbox.credits_charged == 10
    replay = [sys.executable, "-m", "airflow_provider_qwenimage.sandbox", "--port", "0"]
    replay += ["--replay", "answers.jsonl", "--replay-speed", "10"]
    with subprocess.Popen(replay, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            banner = iter(process.stdout.readline, "")
            connection = next(filter(None, (re.search(f"export {CONN}='(.*)'", line) for line in banner)))[1]
            again = run([*record[:-1], "again.jsonl", "--yes", "-o", "json"], tmp_path, **{CONN: connection})
        finally:
            process.terminate()
    assert again.returncode == 0, again.stdout + again.stderr
    facts = [
        {one["fact"]: one["seen"] for one in json.loads(each.stdout.splitlines()[-1])["contract"]}
        for each in (done, again)
    ]
    times = [found.pop("polling times") for found in facts]
    assert facts[0] == facts[1]
    assert all("SUCCESS at " in each for each in times)


@pytest.mark.parametrize("output", ["table", "plain", "json", "yaml"])
def test_the_formats_say_the_same(output: str, capsys: pytest.CaptureFixture[str], airflow_database: None) -> None:
    from argparse import Namespace

    from airflow_provider_qwenimage.cli.doctor.command import run as run_here

    options = {"conn_id": "missing", "output_path": None, "draw": 0, "yes": False, "record": None, "verbose": False}
    with pytest.raises(SystemExit, match="1"):
        run_here(Namespace(**options, output=output))
    printed = capsys.readouterr().out
    if output in ("json", "yaml"):
        names = [check["name"] for check in yaml.safe_load(printed)["checks"]]
    else:
        names = [line.split()[1] for line in printed.splitlines()]
    assert names == [
        *("versions", "connection", "key", "TLS", "proxy", "storage", "books", "triggerer", "gallery", "callbacks"),
    ]


def test_a_failed_check_is_exit_code_1_and_warnings_are_not(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, airflow_database: None
) -> None:
    with Sandbox() as sandbox:
        monkeypatch.setenv(CONN, sandbox.connection_json)
        fine = doctor(capsys)
        sandbox.script("status", "forbidden")
        refused = doctor(capsys)
    assert (fine.code, fine.state("key"), fine.state("triggerer")) == (0, "ok", "warning")
    assert (refused.code, refused.state("key")) == (1, "failed")


def test_the_process_keeps_its_environment(capsys: pytest.CaptureFixture[str], airflow_database: None) -> None:
    before = dict(os.environ)
    doctor(capsys, conn_id="missing")
    assert dict(os.environ) == before
