"""Bad files of requests: whatever they contain, nothing is paid and no secret is quoted."""

import json
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_qwenimage import QwenImageBatchOperator
from airflow_provider_qwenimage.sandbox import Sandbox
from tests.integration.dag_runs import TaskEnd, TestDag

SECRET = "hunter2-5d0c"


def draw(folder: Path, requests: Any) -> TaskEnd:
    dag = TestDag(params={"requests": "to be replaced"})
    with dag:
        QwenImageBatchOperator(
            task_id="draw", requests="{{ params.requests }}", output_path=str(folder), poll_interval=0.01
        )
    return dag.run(run_conf={"requests": requests})["draw"]


def refused(api: Sandbox, end: TaskEnd) -> str:
    assert (end.state, end.tries) == ("failed", 1)
    assert api.requests == []
    assert "manifest" not in end.xcoms
    message: str = end.xcoms["error"]["message"]
    return message


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("passwords.json", f'{{"db": "{SECRET}"}}'),
        ("passwords.json", f'["{SECRET}"'),
        ("passwords.jsonl", f"db={SECRET}\n"),
        ("passwords.csv", f"{SECRET},root\n{SECRET},root\n"),
        ("passwords.jsonl", f'{{"prompt": "a", "size": "{SECRET}"}}'),
        ("passwords.json", f"{SECRET}\xff"),
    ],
)
def test_a_file_without_requests_is_never_quoted(
    connected_api: Sandbox, tmp_path: Path, task_log: Callable[[], str], name: str, content: str
) -> None:
    file = tmp_path / name
    file.write_bytes(content.encode("latin-1"))
    end = draw(tmp_path / "images", f"file://{file}")

    assert refused(connected_api, end)
    link: BaseException | None = end.error
    while link is not None:
        assert SECRET not in f"{link!r} {vars(link)} {getattr(link, 'object', '')}"
        link = link.__cause__ or link.__context__
    assert SECRET not in "".join(traceback.format_exception(end.error))
    assert SECRET not in json.dumps(end.xcoms)
    assert SECRET not in task_log()


@pytest.mark.parametrize(
    "url",
    [f"s3://me:{SECRET}@bucket/requests.jsonl", f"file://me:{SECRET}@/tmp/requests.csv", f"s3://:{SECRET}@b/r.json"],
)
def test_a_url_with_a_password_is_refused_without_being_shown(
    connected_api: Sandbox, tmp_path: Path, task_log: Callable[[], str], url: str
) -> None:
    # Airflow would read the password as a connection id, and log that this connection does not exist.
    end = draw(tmp_path / "images", url)
    assert "with credentials before the @" in refused(connected_api, end)
    assert SECRET not in "".join(traceback.format_exception(end.error))
    assert SECRET not in json.dumps(end.xcoms)
    assert SECRET not in task_log()


@pytest.mark.parametrize("row", [r'{"prompt": "a fox \ud83d"}', r'{"prompt": "a fox \u0000"}', '"a \\udc00"'])
def test_half_an_emoji_in_a_row_is_refused_before_anything_is_paid(
    connected_api: Sandbox, tmp_path: Path, row: str
) -> None:
    file = tmp_path / "requests.jsonl"
    file.write_text(f'"a hare"\n{row}\n')

    assert "row 2 (line 2): prompt is a text of" in refused(connected_api, draw(tmp_path / "images", str(file)))
    assert "prompt is " in refused(connected_api, draw(tmp_path / "images", f"[{row}]"))


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
@pytest.mark.parametrize("scheme", ["", "file://"])
def test_anything_but_a_regular_file_is_refused_at_once(
    connected_api: Sandbox, tmp_path: Path, kind: str, scheme: str
) -> None:
    file = tmp_path / "requests.jsonl"
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "device":
        file.symlink_to("/dev/zero")
    else:
        file.mkdir()

    assert "which is not a regular file" in refused(connected_api, draw(tmp_path / "images", f"{scheme}{file}"))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("unknown://bucket/requests.csv", "which Airflow cannot open ("),
        ("s3://[bucket/requests.csv", "which Airflow cannot open ("),
        ("{folder}/file.csv/requests.csv", "which is not a regular file"),
        ("{folder}/" + "x" * 300 + ".csv", "which is not a regular file"),
    ],
    ids=lambda value: value[:25],
)
def test_a_path_that_can_never_be_opened_is_reported_in_one_try(
    connected_api: Sandbox, tmp_path: Path, source: str, expected: str
) -> None:
    (tmp_path / "file.csv").write_text("prompt\nA fox\n")

    message = refused(connected_api, draw(tmp_path / "images", source.format(folder=tmp_path)))
    assert message.startswith("requests is ")
    assert expected in message


def test_a_link_to_a_file_of_requests_is_read(connected_api: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "mounted").write_text('"a hare"\n')
    (tmp_path / "requests.jsonl").symlink_to(tmp_path / "mounted")

    assert draw(tmp_path / "images", str(tmp_path / "requests.jsonl")).state == "success"


def test_many_bad_rows_make_an_error_that_every_log_and_xcom_can_hold(connected_api: Sandbox, tmp_path: Path) -> None:
    file = tmp_path / "requests.jsonl"
    file.write_text('{"prompt": "' + "x" * 3000 + '"}\n' + '{"prompt": 1, "size": []}\n' * 20_000)
    message = refused(connected_api, draw(tmp_path / "images", str(file)))

    assert message.startswith("requests has 20001 bad row(s) of 20001; nothing was submitted. row 1 (line 1): prompt")
    assert len(message) < 10_000
