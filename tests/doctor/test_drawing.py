"""``doctor --draw`` pays once, keeps what it paid for, says what it does not know, and records no secret."""

from __future__ import annotations

import base64
import json
import re
import resource
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_qwenimage.cli.doctor.recording_file import RecordingFile
from airflow_provider_qwenimage.contract import SIZES
from airflow_provider_qwenimage.recordings.format import RecordedAnswer, read_recording
from airflow_provider_qwenimage.rules.verification import open_image
from airflow_provider_qwenimage.sandbox import Sandbox
from tests.doctor.running import CONN, Ran, doctor
from tests.events import wait_until
from tests.raw_server import RawServer
from tests.recordings.recording_images import KEY, record


@pytest.fixture
def sandbox(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, airflow_database: None) -> Any:
    monkeypatch.chdir(tmp_path)
    with Sandbox(seconds_per_image=0, api_keys=[KEY]) as running:
        monkeypatch.setenv(CONN, running.connection_json)
        yield running


def draw(capsys: pytest.CaptureFixture[str], **arguments: Any) -> Ran:
    ran = doctor(capsys, **{"draw": None, "yes": True, **arguments})
    assert KEY not in json.dumps(ran.report) + ran.errors
    return ran


def seen(ran: Ran, fact: str) -> tuple[str, str]:
    return next((one["seen"], one["verdict"]) for one in ran.report["contract"] if one["fact"] == fact)


def test_two_images_are_drawn_compared_kept_and_recorded(sandbox: Sandbox, capsys: pytest.CaptureFixture[str]) -> None:
    ran = draw(capsys, draw=2, record="r.jsonl", output_path="images")
    assert ran.code == 0
    assert sandbox.credits_charged == 10
    ids = [submission.task_id for submission in sandbox.submissions]
    assert ran.message("draw") == f"2 of 2 images drawn: {', '.join(ids)}. The answers are in r.jsonl."
    assert seen(ran, "submission: data") == ("task_id (string), status (string)", "as documented")
    assert seen(ran, "image: format and size") == ("jpeg, 1024*1024", "as documented")
    assert seen(ran, "image: equal seed, equal bytes") == ("yes", "not documented")
    for task_id in ids:
        assert open_image(Path(f"images/qwenimage-doctor-{task_id}.jpeg").read_bytes())[0] == "jpeg"
    assert sorted(each.name for each in Path("images").iterdir()) == sorted(
        f"qwenimage-doctor-{task_id}.jpeg" for task_id in ids
    )
    assert stat.S_IMODE(Path("r.jsonl").stat().st_mode) == 0o600
    assert KEY not in Path("r.jsonl").read_text()
    assert len(read_recording(Path("r.jsonl").read_bytes().splitlines(keepends=True))) == 6


def test_without_yes_and_a_terminal_nothing_is_submitted(sandbox: Sandbox, capsys: pytest.CaptureFixture[str]) -> None:
    ran = draw(capsys, yes=False, record="r.jsonl")
    assert (ran.code, ran.state("draw")) == (1, "failed")
    assert "This submits 1 image for 5 credits each" in ran.errors
    assert sandbox.submissions == []
    assert not Path("r.jsonl").exists()


@pytest.mark.parametrize(("typed", "paid"), [("y\n", 5), ("yes\n", 5), ("\n", 0), ("n\n", 0), ("", 0)])
def test_the_question_is_answered_at_a_terminal(
    typed: str, paid: int, sandbox: Sandbox, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal:
        def isatty(self) -> bool:
            return True

        def readline(self) -> str:
            return typed

    monkeypatch.setattr(sys, "stdin", Terminal())
    draw(capsys, yes=False)
    assert sandbox.credits_charged == paid


def test_an_existing_file_is_never_overwritten_and_nothing_is_paid(
    sandbox: Sandbox, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("r.jsonl").write_text("mine")
    Path("link.jsonl").symlink_to("r.jsonl")
    for name in ("r.jsonl", "link.jsonl", "nowhere/r.jsonl", "a\0b", ".", ""):
        ran = draw(capsys, record=name)
        assert (ran.code, "Nothing was submitted: --record is " in ran.message("draw")) == (1, True)
    assert Path("r.jsonl").read_text() == "mine"
    assert sandbox.submissions == []


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Refuse to write more than so many bytes to a file, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_nothing_is_paid_if_the_recording_cannot_be_begun(sandbox: Sandbox, capsys: pytest.CaptureFixture[str]) -> None:
    with files_of_at_most(0):
        ran = draw(capsys, record="r.jsonl")
    assert (ran.code, ran.state("draw")) == (1, "failed")
    assert "Nothing was submitted: --record is 'r.jsonl', which cannot be written" in ran.message("draw")
    assert sandbox.submissions == []
    assert not Path("r.jsonl").exists()


def test_a_disk_that_is_full_ends_the_recording_and_not_the_drawing(
    sandbox: Sandbox, capsys: pytest.CaptureFixture[str]
) -> None:
    draw(capsys, output_path="first")
    (first,) = Path("first").iterdir()
    # Enough for the same image, and too little for a recording of it.
    with files_of_at_most(first.stat().st_size + 100):
        ran = draw(capsys, output_path="second", record="r.jsonl")
    assert (ran.code, ran.state("draw")) == (0, "warning"), ran.report
    assert "1 of 1 images drawn" in ran.message("draw")
    assert "The recording is not complete: File too large." in ran.message("draw")
    (second,) = Path("second").iterdir()
    assert second.read_bytes() == first.read_bytes()


def test_a_disk_that_is_full_at_a_short_answer_ends_the_recording_as_well(
    tmp_path: Path,
) -> None:
    # Unlike a long line, a short one stays in the buffer, which closing the file writes again.
    ended = RecordingFile(str(tmp_path / "r.jsonl"))
    with files_of_at_most((tmp_path / "r.jsonl").stat().st_size + 10), ended:
        ended.add(RecordedAnswer(image=1, kind="submission", at=0.1, seconds=0.1, status=200))
    assert ended.problem == "File too large"


@pytest.mark.parametrize("behaviour", ["drop_after", "html_after", "malformed", "empty"])
def test_a_submission_without_a_clear_answer_is_not_repeated(
    behaviour: str, sandbox: Sandbox, capsys: pytest.CaptureFixture[str]
) -> None:
    sandbox.script("generate", behaviour)
    ran = draw(capsys, draw=2)
    assert (ran.code, ran.state("draw")) == (1, "failed")
    assert "It may have been accepted and paid (5 credits" in ran.message("draw")
    assert len([one for one in sandbox.requests if one.route == "generate"]) == 1


def test_a_failed_check_stops_the_drawing(
    sandbox: Sandbox, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox.script("status", "unauthorized")
    ran = draw(capsys)
    assert ran.message("draw") == "Nothing was submitted, because of: key."
    Path("file").write_text("")
    assert draw(capsys, output_path="file").message("draw") == "Nothing was submitted, because of: storage."
    monkeypatch.delenv(CONN)
    assert draw(capsys).message("draw") == "Nothing was submitted, because of: connection."
    assert sandbox.submissions == []


def test_a_task_that_fails_is_reported_with_its_facts(sandbox: Sandbox, capsys: pytest.CaptureFixture[str]) -> None:
    sandbox.script("generate", "policy")
    ran = draw(capsys, draw=2)
    assert ran.state("draw") == "failed"
    assert "Content policy violation detected. It cost 0 credits" in ran.message("draw")
    assert seen(ran, "status: consumed_credits") == ("FAILED 0", "as documented")
    assert len(sandbox.submissions) == 1
    assert "Paid, but not downloaded" not in ran.message("draw") + ran.errors


def test_an_image_of_another_size_is_kept_and_reported(sandbox: Sandbox, capsys: pytest.CaptureFixture[str]) -> None:
    sandbox.script("image", "wrong_size")
    ran = draw(capsys)
    assert (ran.code, ran.state("draw")) == (0, "warning")
    assert seen(ran, "image: format and size") == ("jpeg, 512*512", "differs")
    assert "Not as documented: image: format and size." in ran.message("draw")
    assert "512*512" not in SIZES
    assert len(list(Path.cwd().glob("qwenimage-doctor-*.jpeg"))) == 1


def test_a_paid_image_is_kept_elsewhere_if_its_folder_cannot_be_used(
    sandbox: Sandbox, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import tempfile

    from airflow_provider_qwenimage.cli.doctor.kept_images import keep_image

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "elsewhere"))
    Path("file").write_text("")
    told = keep_image("../odd\0 id", b"no image", "file")
    assert told.startswith(f"stored as {tmp_path}/elsewhere/qwenimage-doctor-___odd__id.bin. ")
    assert (tmp_path / "elsewhere/qwenimage-doctor-___odd__id.bin").read_bytes() == b"no image"
    Path("qwenimage-doctor-n43.bin").write_bytes(b"mine")
    assert "elsewhere" in keep_image("n43", b"other", None)
    assert Path("qwenimage-doctor-n43.bin").read_bytes() == b"mine"


@pytest.mark.parametrize("arguments", [{"draw": 5}, {"draw": -1}, {"draw": 0, "record": "r"}, {"draw": 0, "yes": True}])
def test_arguments_that_make_no_sense(
    arguments: dict[str, Any], sandbox: Sandbox, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = draw(capsys, **{"yes": False, **arguments})
    assert (ran.code, ran.report) == (2, {})
    assert "--draw" in ran.errors


def test_ctrl_c_names_what_is_paid(sandbox: Sandbox) -> None:
    sandbox.configure(seconds_per_image=60)
    command = [
        sys.executable,
        "-m",
        "airflow_provider_qwenimage.cli",
        "doctor",
        "--draw",
        "--yes",
        "--record",
        "r.jsonl",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        # Not the request at the sandbox: its answer may not be read yet.
        recording = Path("r.jsonl")
        wait_until(
            lambda: recording.exists() and re.search('"kind": *"status"', recording.read_text()), "an answer to a poll"
        )
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    (submission,) = sandbox.submissions
    assert process.returncode == 130
    assert f"Paid, but not downloaded: image task {submission.task_id}." in errors
    assert "status: consumed_credits" in output
    recorded = read_recording(Path("r.jsonl").read_bytes().splitlines(keepends=True))
    assert [answer.kind for answer in recorded][:2] == ["submission", "status"]


def test_ctrl_c_during_a_submission_says_that_it_may_be_paid(sandbox: Sandbox) -> None:
    sandbox.script("generate", "hang_after")
    command = [sys.executable, "-m", "airflow_provider_qwenimage.cli", "doctor", "--draw", "--yes"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        wait_until(lambda: bool(sandbox.submissions), "a submission")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "it may be paid, and its task id is unknown" in errors


SIGNATURE = "c2lnbmF0dXJl"


def test_a_recording_has_no_secret_wherever_the_api_puts_one(tmp_path: Path) -> None:
    """The key is echoed in bodies and headers, as it is and encoded; URLs are signed."""
    secrets = [KEY, base64.b64encode(KEY.encode()).decode(), KEY.replace("-", "%2D"), KEY.replace("-", "\\u002d")]

    def respond(body: bytes, *headers: str) -> bytes:
        head = ["HTTP/1.1 200 OK", f"Set-Cookie: key={KEY}", f"Server: {KEY}", f"Location: /x?key={KEY}", f"X-{KEY}: 1"]
        return "\r\n".join([*head, *headers, f"Content-Length: {len(body)}", "", ""]).encode() + body

    def serve(connection: Any) -> None:
        path = server.requests[-1].split(b" ")[1].decode()
        url = f"{server.url}/image.png?X-Amz-Expires=60&X-Amz-Signature={SIGNATURE}"
        data = {
            "task_id": "n43",
            "status": "SUCCESS",
            "response": [url],
            "request": {"headers": {"Authorization": f"Bearer {KEY}", KEY: secrets}},
            "curl": f"curl -H 'Authorization: Bearer {KEY}' {url}",
            "path": f"/image.png?X-Amz-Signature={SIGNATURE}",
        }
        body = json.dumps({"code": 200, "message": url, "data": data}).replace("\\\\u002d", "\\u002d").encode()
        if path.startswith("/image.png"):
            body = b"\x89PNG" + KEY.encode()
        connection.sendall(respond(body))

    with RawServer(serve) as server:
        answers = record(server.url, tmp_path / "r.jsonl")
    assert [answer.kind for answer in answers] == ["submission", "status", "image"]
    assert (answers[2].url_parameters, answers[2].url_seconds) == (("X-Amz-Expires", "X-Amz-Signature"), 60)
    written = (tmp_path / "r.jsonl").read_text()
    for secret in (*secrets, SIGNATURE, KEY.encode().hex()):
        assert secret not in written
    assert re.search("very.{0,6}secret", written) is None
