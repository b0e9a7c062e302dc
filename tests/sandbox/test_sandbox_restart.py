"""With a state file, a restarted sandbox still knows its tasks."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import requests

from airflow_provider_qwenimage.sandbox import Sandbox
from tests.sandbox.conftest import Api, Clock


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "state.jsonl"


def test_tasks_continue_and_stay_charged_across_a_restart(file: Path) -> None:
    with requests.Session() as session:
        with Sandbox(seconds_per_image=100, state_file=str(file)) as sandbox:
            clock = Clock(sandbox)
            before = Api(sandbox, session)
            drawn = before.submit("a cat", seed=7, size="1024*768", output_format="png")
            refused = before.submit("a celebrity [policy]")
            assert sandbox.credits_charged == 10
            accepted = sandbox.submissions
        with Sandbox(seconds_per_image=5000, state_file=str(file)) as sandbox:
            clock.replace_clock(sandbox)
            after = Api(sandbox, session)
            clock.now += 99
            assert after.status(drawn).json()["data"]["status"] == "IN_PROGRESS"
            clock.now += 1
            data = after.finish(drawn)
            assert (data["status"], data["request"]["prompt"], data["request"]["size"]) == (
                "SUCCESS",
                "a cat",
                "1024*768",
            )
            assert after.image(data["response"][0]).headers["Content-Type"] == "image/png"
            assert after.finish(refused)["status"] == "FAILED"
            assert sandbox.credits_charged == 5
            assert [task.accepted_at for task in sandbox.submissions] == [task.accepted_at for task in accepted]


def test_a_killed_sandbox_still_knows_every_task_whose_id_it_sent(file: Path) -> None:
    command = [sys.executable, "-m", "airflow_provider_qwenimage.sandbox", "--port=0", f"--state-file={file}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    url = next(line.split()[-1] for line in process.stdout if line.strip().startswith("URL"))
    headers = {"Authorization": "Bearer sk-sandbox"}
    answers = [
        requests.post(f"{url}/api/generate", json={"prompt": f"cat {number}"}, headers=headers) for number in range(20)
    ]
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    sandbox = Sandbox(state_file=str(file))
    assert [task.task_id for task in sandbox.submissions] == [answer.json()["data"]["task_id"] for answer in answers]


def test_a_line_that_was_cut_short_is_dropped_and_the_file_is_continued(file: Path, tmp_path: Path) -> None:
    with Sandbox(state_file=str(file)) as sandbox, requests.Session() as session:
        first = Api(sandbox, session).submit()
    file.write_bytes(file.read_bytes() + b'{"task_id": "n43')
    with Sandbox(state_file=str(file)) as sandbox, requests.Session() as session:
        second = Api(sandbox, session).submit()
    assert [task.task_id for task in Sandbox(state_file=str(file)).submissions] == [first, second]


def test_a_reset_empties_the_state_file(file: Path) -> None:
    with Sandbox(state_file=str(file)) as sandbox, requests.Session() as session:
        Api(sandbox, session).submit()
        sandbox.reset()
    assert Sandbox(state_file=str(file)).submissions == []


@pytest.mark.parametrize(
    "content", [b"a shopping list\n", b"[]\n", b'{"task_id": "n43"}\n', b'{"request": {"size": 3}}\n']
)
def test_a_file_that_is_not_a_state_file_is_refused_and_left_unchanged(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    with pytest.raises(ValueError, match="state_file is .*line 1 is not a task of a sandbox.*remove this one"):
        Sandbox(state_file=str(file))
    assert file.read_bytes() == content


def test_a_missing_folder_is_reported_before_anything_starts(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing" / "state.jsonl")
    with pytest.raises(ValueError, match="state_file is .*cannot be written.*a folder that exists"):
        Sandbox(state_file=missing)
    command = [sys.executable, "-m", "airflow_provider_qwenimage.sandbox", "--port=0", f"--state-file={missing}"]
    ended = subprocess.run(command, check=False, capture_output=True, text=True)
    assert ended.returncode == 2
    assert "state_file is" in ended.stderr


def test_without_a_state_file_a_restarted_sandbox_has_no_tasks() -> None:
    with Sandbox() as sandbox, requests.Session() as session:
        Api(sandbox, session).submit()
    assert Sandbox().submissions == []
