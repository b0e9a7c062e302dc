"""The sandbox answers as a recording did: the facts of the contract are the same, with new ids and URLs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from airflow_provider_qwenimage.cli.doctor.drawing import REQUEST
from airflow_provider_qwenimage.recordings.cleaning import BYTES, JSON, TEXT, Body
from airflow_provider_qwenimage.recordings.format import RecordedAnswer, answer_line, end_line, head_line
from airflow_provider_qwenimage.rules.contract_facts import ContractFact, contract_facts
from airflow_provider_qwenimage.sandbox import Sandbox
from airflow_provider_qwenimage.sandbox.access import CONTROL_HEADERS
from airflow_provider_qwenimage.sandbox.pictures import paint_once
from tests.recordings.recording_images import KEY, record

_TIMES = re.compile(r"(at )[0-9.]+( s)|[0-9]+( polls)")
_STATUSES = "status: statuses"


def facts_of(answers: list[RecordedAnswer]) -> list[ContractFact]:
    """Return the facts without what differs from run to run: moments, the numbers of polls, and the statuses seen."""
    facts = [one for one in contract_facts(answers) if one.fact != _STATUSES]
    return [ContractFact(one.fact, one.documented, _TIMES.sub("…", one.seen), one.verdict) for one in facts]


def statuses_of(answers: list[RecordedAnswer]) -> list[str]:
    return next((one.seen.split(", ") for one in contract_facts(answers) if one.fact == _STATUSES), [])


def fact(answers: list[RecordedAnswer], name: str) -> str:
    return next(one.seen for one in contract_facts(answers) if one.fact == name)


def write(path: Path, *answers: RecordedAnswer) -> str:
    path.write_bytes(
        b"".join([head_line("2026-01-31T10:00:00Z", "1.0"), *map(answer_line, answers), end_line(len(answers))])
    )
    return str(path)


def replayed(path: Path, **options: Any) -> Sandbox:
    return Sandbox(replay=str(path), api_keys=[KEY], **options)


# What the sandbox can be told to do that the documentation does not say of the API.
ODD: dict[str, Callable[[Sandbox], None]] = {
    "as documented": lambda sandbox: None,
    "codes in the envelope only": lambda sandbox: sandbox.configure(
        wire_style="envelope", rate_limit_share=0.3, fault_seed=1
    ),
    "reads that fail": lambda sandbox: sandbox.script("status", "rate_limit", "html", "server_error", "ok"),
    "HTTP 201": lambda sandbox: sandbox.script("generate", "created"),
    "a refused submission": lambda sandbox: sandbox.script("generate", "payment"),
    "a failed task": lambda sandbox: sandbox.script("generate", "policy"),
    "another format": lambda sandbox: sandbox.script("image", "wrong_format"),
    "another size": lambda sandbox: sandbox.script("image", "wrong_size"),
    "HTML instead of an image": lambda sandbox: sandbox.script("image", "html"),
    "a proxy's page": lambda sandbox: sandbox.script("generate", "html"),
    "a redirect": lambda sandbox: sandbox.script("generate", "redirect"),
}


@pytest.mark.parametrize("name", ODD)
def test_a_replay_shows_the_same_facts_as_its_recording(name: str, tmp_path: Path) -> None:
    # Two images show whether equal seeds give equal bytes.
    count = 2 if name == "as documented" else 1
    with Sandbox(seconds_per_image=0.4, failed_credits=2, retry_after=0, api_keys=[KEY]) as sandbox:
        ODD[name](sandbox)
        recorded = record(sandbox.url, tmp_path / "first.jsonl", count=count)
    with replayed(tmp_path / "first.jsonl") as sandbox:
        again = record(sandbox.url, tmp_path / "second.jsonl", count=count)
        charged = sandbox.credits_charged
    assert facts_of(again) == facts_of(recorded)
    # A busy machine may miss the statuses between the first and the last.
    assert set(statuses_of(again)) <= set(statuses_of(recorded))
    assert statuses_of(again)[-1:] == statuses_of(recorded)[-1:]
    assert charged == sum(
        2 if name == "a failed task" else 5
        for one in recorded
        if one.data.get("status") == "IN_PROGRESS" and one.kind == "submission"
    )
    images = [[one.body for one in answers if one.kind == "image"] for answers in (recorded, again)]
    assert images[0] == images[1]
    ids = [{one.data["task_id"] for one in answers if one.data} for answers in (recorded, again)]
    assert not ids[0] & ids[1]
    assert KEY not in (tmp_path / "second.jsonl").read_text()


def recorded_answers() -> list[RecordedAnswer]:
    """Answers as no sandbox gives them: an integer as id, more fields, a signed URL, the seconds of a minute."""
    request = REQUEST.payload()
    task: dict[str, Any] = {
        "task_id": 555,
        "status": "PENDING",
        "consumed_credits": 555,
        "progress": 0.5,
        "request": {**request, "seed": 7},
    }
    done = {
        **task,
        "status": "SUCCESS",
        "response": ["https://cdn.example.com/a/555.png"],
        "thumb": {"url": "https://cdn.example.com/t"},
    }

    def answer(kind: str, at: float, data: Any, **fields: Any) -> RecordedAnswer:
        body = Body(JSON, {"code": 200, "message": "ok", "data": data, "trace": "x"})
        return RecordedAnswer(image=1, kind=kind, at=at, seconds=0.0, **{"status": 200, "body": body, **fields})

    return [
        answer(
            "submission",
            0.5,
            {"task_id": 555, "status": "PENDING", "queue": 3},
            status=202,
            request=request,
            headers={"server": "x", "content-type": "application/json"},
        ),
        answer("status", 1.0, task),
        answer("status", 6.0, None, status=429, headers={"retry-after": "7"}, body=Body(TEXT, "slow down")),
        answer("status", 60.0, done),
        answer(
            "image",
            61.0,
            None,
            headers={"content-type": "image/x-odd", "cache-control": "max-age=60"},
            body=Body(BYTES, b"\x89PNG not really"),
            url_parameters=("Expires", "Signature"),
            url_seconds=120.0,
        ),
    ]


class Client:
    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self.headers = {"Authorization": f"Bearer {sandbox.api_key}"}

    def submit(self, **fields: Any) -> requests.Response:
        return requests.post(
            f"{self.sandbox.url}/api/generate", json={**REQUEST.payload(), **fields}, headers=self.headers
        )

    def status(self, task_id: object) -> requests.Response:
        return requests.get(f"{self.sandbox.url}/api/status", params={"task_id": str(task_id)}, headers=self.headers)


@pytest.fixture
def odd_replay(tmp_path: Path) -> Iterator[Client]:
    with replayed(Path(write(tmp_path / "odd.jsonl", *recorded_answers())), replay_speed=60.0) as sandbox:
        yield Client(sandbox)


def test_undocumented_answers_are_replayed_field_by_field(odd_replay: Client) -> None:
    accepted = odd_replay.submit(prompt="a dog")
    assert (accepted.status_code, accepted.headers["Server"]) == (202, "x")
    data = accepted.json()["data"]
    task_id = data.pop("task_id")
    assert data == {"status": "PENDING", "queue": 3}
    assert isinstance(task_id, int)
    assert (len(str(task_id)), accepted.json()["trace"]) == (3, "x")
    seen = [odd_replay.status(task_id)]
    while len(seen) < 200 and seen[-1].text.find("SUCCESS") < 0:
        seen.append(odd_replay.status(task_id))
        time.sleep(0.02)
    failed = [one for one in seen if one.status_code == 429]
    assert [(one.text, one.headers["Retry-After"]) for one in failed] == [("slow down", "7")]
    done = seen[-1].json()["data"]
    # The price stays, the request is this one, and what the API had changed stays changed.
    assert (done["task_id"], done["consumed_credits"], done["progress"]) == (task_id, 555, 0.5)
    assert done["request"] == {**REQUEST.payload(), "prompt": "a dog", "seed": 7}
    (url,) = done["response"]
    assert re.fullmatch(rf"http://127.0.0.1:\d+/cdn/{task_id}\.jpeg\?Expires=\d+&Signature=0", url)
    assert done["thumb"]["url"] == url
    image = requests.get(url)
    assert image.content == b"\x89PNG not really"
    assert (image.headers["Content-Type"], image.headers["Cache-Control"]) == ("image/x-odd", "max-age=60")


def test_another_format_or_size_than_recorded_is_drawn(odd_replay: Client) -> None:
    task_id = odd_replay.submit(output_format="png", seed=3).json()["data"]["task_id"]
    image = requests.get(f"{odd_replay.sandbox.url}/cdn/{task_id}.png")
    while image.status_code == 404:
        image = requests.get(f"{odd_replay.sandbox.url}/cdn/{task_id}.png")
    assert image.content == paint_once(REQUEST.prompt, 3, (1024, 1024), "png")


def test_a_replay_still_checks_key_and_request_and_obeys_scripts(odd_replay: Client) -> None:
    assert requests.post(f"{odd_replay.sandbox.url}/api/generate", json=REQUEST.payload()).status_code == 401
    assert odd_replay.submit(size="1*1").json()["code"] == 400
    assert odd_replay.status("unknown").json()["code"] == 404
    odd_replay.sandbox.script("generate", "server_error", "policy")
    assert odd_replay.submit().status_code == 500
    task_id = odd_replay.submit().json()["data"]["task_id"]
    odd_replay.sandbox.configure(seconds_per_image=0)
    assert odd_replay.status(task_id).json()["message"] == "success"
    assert odd_replay.submit().status_code == 202


def test_a_reset_begins_with_the_first_recorded_image(tmp_path: Path) -> None:
    first, second = (
        RecordedAnswer(image=number, kind="submission", at=0, seconds=0, status=400 + number, body=Body(TEXT, "no"))
        for number in (1, 2)
    )
    with replayed(Path(write(tmp_path / "two.jsonl", first, second))) as sandbox:
        client = Client(sandbox)
        assert [client.submit().status_code for _ in range(3)] == [401, 402, 401]
        requests.post(f"{sandbox.url}/sandbox/reset", headers=CONTROL_HEADERS, json={})
        sandbox.reset()
        assert client.submit().status_code == 401


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "not a recording"),
        (b"{}\n", "not a recording"),
        (b"\x89PNG\r\n" + bytes(1000), "not a recording"),
        (b"x" * 30_000_000, "not a recording"),
        (head_line("now", "1"), "cut off"),
        (head_line("now", "1") + b'{"image": 1,\n', "cut off or broken: its line 2"),
    ],
)
def test_a_file_that_is_no_recording_is_one_clear_error(content: bytes, problem: str, tmp_path: Path) -> None:
    file = tmp_path / "odd.jsonl"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=problem) as raised:
        Sandbox(replay=str(file))
    assert str(raised.value).startswith(f"replay is {str(file)!r}, which ")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"replay": "/dev/zero"}, "is not a file"),
        ({"replay": "/nowhere/odd.jsonl"}, "No such file"),
        ({"replay": "a\0b"}, "null byte"),
        ({"replay_speed": 0}, "it must be a number above 0"),
        ({"replay_speed": float("nan")}, "it must be a number above 0"),
        ({"state_file": "state.jsonl"}, "set only one of them"),
    ],
)
def test_arguments_that_cannot_be_used(
    options: dict[str, Any], problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = write(tmp_path / "odd.jsonl", *recorded_answers())
    with pytest.raises(ValueError, match=problem):
        Sandbox(**{"replay": file, **options})


def test_the_command_line_refuses_a_broken_file_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "odd.jsonl"
    file.write_text(json.dumps({"format": "har"}))
    command = [sys.executable, "-m", "airflow_provider_qwenimage.sandbox", "--port", "0", "--replay", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r".*: error: replay is .*, which is not a recording .*\n", done.stderr)
