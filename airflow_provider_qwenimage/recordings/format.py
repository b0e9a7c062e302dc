"""The format of a recording: JSON Lines with a head, a line for each answer and an end. No I/O.

::

    {"format": "airflow-provider-qwenimage recording", "version": 1, "recorded_at": "2026-01-31T10:00:00Z"}
    {"image": 1, "kind": "submission", "at": 0.0, "seconds": 0.4, "status": 200, "headers": {…}, "json": {…}, …}
    {"image": 1, "kind": "status", "at": 5.1, "seconds": 0.1, "status": 200, "headers": {…}, "json": {…}, …}
    {"image": 1, "kind": "image", "at": 9.8, "seconds": 0.3, "status": 200, "headers": {…}, "base64": "…", …}
    {"end": 3}
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from airflow_provider_qwenimage.recordings.cleaning import BYTES, JSON, LEFT_OUT, SAFE_HEADERS, TEXT, Body
from airflow_provider_qwenimage.text.messages import shorten, shown

FORMAT = "airflow-provider-qwenimage recording"
VERSION = 1
SUBMISSION, STATUS, IMAGE = KINDS = ("submission", "status", "image")
MAX_RECORDING_BYTES = 256 * 1024 * 1024
# The longest image in base64, and the rest of its line.
MAX_LINE_BYTES = 24 * 1024 * 1024

_FORMS = (JSON, TEXT, BYTES, LEFT_OUT)
_MOST_ANSWERS = 10_000
_MOST_SECONDS = 7 * 86_400.0
_MOST_NAMES = 100
_MOST_TEXT = 1000


@dataclass(frozen=True, kw_only=True)
class RecordedAnswer:
    """One answer of the API or of the image host.

    Attributes:
        image: The number of the image that it belongs to, from 1 on.
        kind: `SUBMISSION`, `STATUS` or `IMAGE`.
        at: When the answer was complete, in seconds since the submission of its image was sent.
        seconds: How long it took.
        status: The HTTP status.
        headers: The headers that may be recorded, with lower-case names.
        body: The body.
        other_headers: The names of the other headers.
        request: The fields of the request, for a submission.
        url_parameters: The names of the query parameters of the image's URL.
        url_seconds: For how long that URL says that it is valid.
    """

    image: int
    kind: str
    at: float
    seconds: float
    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Body = field(default_factory=lambda: Body(TEXT, ""))
    other_headers: tuple[str, ...] = ()
    request: Mapping[str, Any] = field(default_factory=dict)
    url_parameters: tuple[str, ...] = ()
    url_seconds: float | None = None

    @property
    def envelope(self) -> Mapping[str, Any]:
        """The JSON object of the body; an empty one if the body is anything else."""
        return self.body.content if self.body.form == JSON and isinstance(self.body.content, dict) else {}

    @property
    def data(self) -> Mapping[str, Any]:
        """The object ``data`` of the envelope; an empty one if that is anything else."""
        data = self.envelope.get("data")
        return data if isinstance(data, dict) else {}


def head_line(recorded_at: str, package_version: str) -> bytes:
    """Return the first line of a recording."""
    return _line({"format": FORMAT, "version": VERSION, "recorded_at": recorded_at, "package": package_version})


def answer_line(answer: RecordedAnswer) -> bytes:
    """Return the line of an answer."""
    content = answer.body.content
    fields = {
        "image": answer.image,
        "kind": answer.kind,
        "at": round(answer.at, 3),
        "seconds": round(answer.seconds, 3),
        "status": answer.status,
        "headers": dict(answer.headers),
        "other_headers": list(answer.other_headers),
        answer.body.form: base64.b64encode(content).decode() if answer.body.form == BYTES else content,
    }
    if answer.kind == SUBMISSION:
        fields["request"] = dict(answer.request)
    if answer.kind == IMAGE:
        fields |= {"url_parameters": list(answer.url_parameters), "url_seconds": answer.url_seconds}
    return _line(fields)


def end_line(answers: int) -> bytes:
    """Return the last line of a recording, with the number of its answers."""
    return _line({"end": answers})


def _line(fields: Mapping[str, Any]) -> bytes:
    return json.dumps(fields).encode("ascii") + b"\n"


def read_recording(lines: Iterable[bytes]) -> list[RecordedAnswer]:
    """Read the lines of a recording.

    Raises:
        ValueError: If they are not a whole recording; the message continues a sentence about the file.
    """
    answers: list[RecordedAnswer] = []
    numbered = enumerate(lines, start=1)
    _check_head(next(numbered, (1, b""))[1])
    for number, line in numbered:
        fields = _read_object(number, line)
        if "end" in fields:
            _check_end(fields, answers, numbered)
            return answers
        try:
            answer = _read_answer(fields)
            _check_order(answer, answers)
        except ValueError as error:
            raise ValueError(f"has no answer of a recording in line {number}: {error}") from None
        answers.append(answer)
        if len(answers) > _MOST_ANSWERS:
            raise ValueError(f"has more than {_MOST_ANSWERS} answers")
    raise ValueError("is cut off: its last line is not the end of a recording")


def _check_head(line: bytes) -> None:
    try:
        head = _read_object(1, line)
    except ValueError:
        head = {}
    if head.get("format") != FORMAT:
        raise ValueError("is not a recording of `doctor --record`")
    if head.get("version") != VERSION or isinstance(head["version"], bool):
        raise ValueError(
            f"has version {shown(head.get('version'))} of the format, and this package reads version {VERSION}"
        )


def _check_end(fields: Mapping[str, Any], answers: list[RecordedAnswer], rest: Iterator[tuple[int, bytes]]) -> None:
    if fields["end"] != len(answers) or next(rest, None) is not None:
        raise ValueError(
            f"is not whole: it has {len(answers)} answers, its end says {shown(fields['end'])}, or more lines follow"
        )
    if not answers:
        raise ValueError("has no answer")


def _check_order(answer: RecordedAnswer, before: list[RecordedAnswer]) -> None:
    last = before[-1].image if before else 0
    expected = last + 1 if answer.kind == SUBMISSION else last
    if answer.image != expected or not expected:
        raise ValueError(f"image is {answer.image}; it must be {max(expected, 1)}, after the submission of that image")


def _read_object(number: int, line: bytes) -> dict[str, Any]:
    if len(line) > MAX_LINE_BYTES:
        raise ValueError(f"has more than {MAX_LINE_BYTES} bytes in line {number}")
    try:
        fields = json.loads(line, parse_constant=_refuse)
    # RecursionError: a line may consist of brackets only.
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise ValueError(f"is cut off or broken: its line {number} is not a JSON object")
    return fields


def _refuse(name: str) -> float:
    raise ValueError(name)


def _read_answer(fields: Mapping[str, Any]) -> RecordedAnswer:
    forms = [form for form in _FORMS if form in fields]
    if len(forms) != 1:
        raise ValueError(f"it must have one of {', '.join(_FORMS)}")
    if fields.get("kind") not in KINDS:
        raise ValueError(f"kind is {shown(fields.get('kind'))}; it must be one of {', '.join(KINDS)}")
    url_seconds = fields.get("url_seconds")
    return RecordedAnswer(
        image=_integer(fields, "image", 1, _MOST_ANSWERS),
        kind=fields["kind"],
        at=_seconds(fields, "at"),
        seconds=_seconds(fields, "seconds"),
        # Below are interim answers.
        status=_integer(fields, "status", 200, 999),
        headers=_read_headers(fields.get("headers", {})),
        body=Body(forms[0], _read_content(forms[0], fields[forms[0]])),
        other_headers=_names(fields, "other_headers"),
        request=_object(fields, "request"),
        url_parameters=_names(fields, "url_parameters"),
        url_seconds=None if url_seconds is None else _seconds(fields, "url_seconds", math.inf),
    )


def _integer(fields: Mapping[str, Any], name: str, least: int, most: int) -> int:
    value = fields.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ValueError(f"{name} is {shown(value)}; it must be an integer from {least} to {most}")
    return value


def _seconds(fields: Mapping[str, Any], name: str, most: float = _MOST_SECONDS) -> float:
    value = fields.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most or value > 1e12:  # noqa: PLR2004  no clock counts so far
        raise ValueError(f"{name} is {shown(value)}; it must be a number of seconds from 0 on")
    return float(value)


def _read_headers(value: object) -> dict[str, str]:
    if not isinstance(value, dict):
        raise ValueError(f"headers is {shown(value)}; it must be an object")
    for name, text in value.items():
        if not isinstance(text, str) or len(text) > _MOST_TEXT or not text.isascii() or not text.isprintable():
            raise ValueError(f"the header {shorten(name)!a} is {shown(text)}; it must be a line of printable ASCII")
    # Somebody may have added others to the file.
    return {name: text for name, text in value.items() if name in SAFE_HEADERS}


def _read_content(form: str, value: object) -> Any:
    if form == JSON:
        return value
    if not isinstance(value, str):
        raise ValueError(f"{form} is {shown(value)}; it must be a string")
    if form != BYTES:
        return value
    try:
        return base64.b64decode(value, validate=True)
    except ValueError:
        raise ValueError("base64 is not in base64") from None


def _names(fields: Mapping[str, Any], name: str) -> tuple[str, ...]:
    value = fields.get(name, [])
    if not isinstance(value, list) or len(value) > _MOST_NAMES:
        raise ValueError(f"{name} is {shown(value)}; it must be a list of at most {_MOST_NAMES} names")
    if not all(isinstance(each, str) and len(each) <= _MOST_TEXT and each.isprintable() for each in value):
        raise ValueError(f"{name} is {shown(value)}; each must be a printable string")
    return tuple(value)


def _object(fields: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = fields.get(name, {})
    if not isinstance(value, dict):
        raise ValueError(f"{name} is {shown(value)}; it must be an object")
    return value
