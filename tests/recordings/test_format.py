"""A recording is read as it was written; a file that is broken, cut off, foreign or huge is one clear error."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_qwenimage.recordings import format as recording
from airflow_provider_qwenimage.recordings.cleaning import BYTES, JSON, LEFT_OUT, TEXT, Body
from airflow_provider_qwenimage.recordings.format import (
    RecordedAnswer,
    answer_line,
    end_line,
    head_line,
    read_recording,
)

REQUEST = {"prompt": "a cat", "size": "1024*1024", "seed": 1, "output_format": "png"}
SUBMISSION = RecordedAnswer(
    image=1,
    kind="submission",
    at=0.1,
    seconds=0.1,
    status=200,
    headers={"content-type": "application/json"},
    other_headers=("set-cookie",),
    body=Body(JSON, {"code": 200, "message": "success", "data": {"task_id": "n43", "status": "IN_PROGRESS"}}),
    request=REQUEST,
)
STATUS = RecordedAnswer(image=1, kind="status", at=5.25, seconds=0.05, status=502, body=Body(TEXT, "<html>"))
IMAGE = RecordedAnswer(
    image=1,
    kind="image",
    at=6.5,
    seconds=1.0,
    status=200,
    body=Body(BYTES, b"\x89PNG\x00"),
    url_parameters=("Expires", "Signature"),
    url_seconds=3600.0,
)
AGAIN = RecordedAnswer(image=2, kind="submission", at=0.1, seconds=0.1, status=402, body=Body(LEFT_OUT, "too long"))
ANSWERS = [SUBMISSION, STATUS, IMAGE, AGAIN]


def lines_of(answers: Sequence[RecordedAnswer]) -> list[bytes]:
    return [head_line("2026-01-31T10:00:00Z", "1.0"), *map(answer_line, answers), end_line(len(answers))]


LINES = lines_of(ANSWERS)


def changed(**fields: Any) -> bytes:
    return json.dumps(json.loads(LINES[1]) | fields).encode() + b"\n"


def test_it_is_read_as_it_was_written() -> None:
    assert read_recording(LINES) == ANSWERS


@pytest.mark.parametrize("cut", range(len(LINES)))
def test_one_that_is_cut_off_is_refused(cut: int) -> None:
    with pytest.raises(ValueError, match="cut off|not a recording|not whole|no answer"):
        read_recording(LINES[:cut])
    with pytest.raises(ValueError, match="cut off|not a recording|not whole|no answer"):
        read_recording([*LINES[:cut], LINES[cut][:-5]])


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ([b"PK\x03\x04\xff"], "not a recording"),
        ([b'{"log": {"version": "1.2"}}\n'], "not a recording"),
        ([b"[" * 100_000], "not a recording"),
        ([LINES[0].replace(b'"version": 1', b'"version": 2'), *LINES[1:]], "has version 2 .* reads version 1"),
        ([LINES[0], *LINES[2:]], "line 2: image is 1; it must be 1, after the submission"),
        ([LINES[0], LINES[1], LINES[1], LINES[-1]], "line 3: image is 1; it must be 2"),
        ([*LINES[:-1], end_line(7)], "not whole"),
        ([*LINES, LINES[1]], "not whole"),
        ([LINES[0], end_line(0)], "has no answer"),
        ([LINES[0], changed(status=99)], "line 2: status is 99; it must be an integer from 200"),
        ([LINES[0], changed(status=True)], "status is True"),
        ([LINES[0], changed(at="soon")], "at is 'soon'"),
        ([LINES[0], changed(at=-1)], "at is -1"),
        ([LINES[0], changed(at=1e300)], "at is 1e"),
        ([LINES[0], LINES[1].replace(b'"at": 0.1', b'"at": NaN')], "line 2 is not a JSON object"),
        ([LINES[0], changed(kind="callback")], "kind is 'callback'"),
        ([LINES[0], changed(kind=["status"])], "kind is"),
        ([LINES[0], changed(image=10**30)], "image is"),
        ([LINES[0], changed(headers={"server": "x\r\nSet-Cookie: a=b"})], "header 'server'"),
        ([LINES[0], changed(headers=[])], "headers is"),
        ([LINES[0], changed(text="x")], "one of json, text"),
        ([LINES[0], changed(request=[])], "request is"),
        ([LINES[0], answer_line(IMAGE).replace(b'"base64": "', b'"base64": "*')], "base64"),
        ([LINES[0], b'{"x": "' + b"x" * recording.MAX_LINE_BYTES], "has more than"),
    ],
)
def test_anything_else_is_refused_in_one_sentence(lines: list[bytes], problem: str) -> None:
    with pytest.raises(ValueError, match=problem) as raised:
        read_recording(lines)
    assert len(str(raised.value)) < 500
    assert str(raised.value).isprintable()


def test_headers_that_somebody_has_added_are_not_replayed() -> None:
    lines = [LINES[0], changed(headers={"set-cookie": "a=b", "server": "x"}), end_line(1)]
    assert read_recording(lines)[0].headers == {"server": "x"}


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(JSON_VALUES)
def test_any_json_is_a_body_or_an_error(value: Any) -> None:
    answer = RecordedAnswer(image=1, kind="submission", at=0, seconds=0, status=200, body=Body(JSON, value))
    assert read_recording(lines_of([answer])) == [answer]
    for line in (json.dumps(value).encode(), changed(at=value, json=value)):
        try:
            read_recording([LINES[0], line, end_line(1)])
        except ValueError:
            continue
