"""Compares recorded answers with what the API documents, fact by fact. No I/O."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from airflow_provider_qwenimage.contract import GenerateRequest, TaskStatus
from airflow_provider_qwenimage.exceptions import QwenImageImageError
from airflow_provider_qwenimage.recordings.cleaning import BYTES, JSON
from airflow_provider_qwenimage.recordings.format import IMAGE, STATUS, SUBMISSION, RecordedAnswer
from airflow_provider_qwenimage.rules.verification import OtherImage, examine_image
from airflow_provider_qwenimage.text.messages import printable, safe_repr, shorten
from airflow_provider_qwenimage.text.urls import is_http_url

SAME, DIFFERENT, UNDOCUMENTED = "as documented", "differs", "not documented"

_OK = 200
_ENVELOPE = {"code": ("number",), "message": ("string",), "data": ("object",)}
_SUBMISSION_DATA = {"task_id": ("string",), "status": ("string",)}
_STATUS_DATA = {
    "task_id": ("string",),
    "status": ("string",),
    "consumed_credits": ("number",),
    "error_message": ("string", "null"),
    "created_at": ("string",),
    "request": ("object",),
    "response": ("null", "list"),
}
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", re.ASCII)
_CACHING = ("cache-control", "expires", "age", "last-modified")
_LIMITS = ("retry-after", "ratelimit-", "x-ratelimit-")
_MOST_NAMES = 30
_MOST_SEEN = 400


@dataclass(frozen=True)
class ContractFact:
    """A fact of the contract beside what was seen.

    Attributes:
        fact: What it is about.
        documented: What the API documents; "nothing" if it documents nothing.
        seen: What was seen, as one short printable line.
        verdict: `SAME`, `DIFFERENT` or `UNDOCUMENTED`.
    """

    fact: str
    documented: str
    seen: str
    verdict: str


def contract_facts(answers: Sequence[RecordedAnswer]) -> list[ContractFact]:
    """Return each fact that the answers show something about."""
    submissions = [answer for answer in answers if answer.kind == SUBMISSION]
    statuses = [answer for answer in answers if answer.kind == STATUS]
    # A request that is repeated, or a redirect, comes before the last answer about an image.
    images = list({answer.image: answer for answer in answers if answer.kind == IMAGE}.values())
    facts = [*_submission_facts(submissions)]
    facts += _status_facts([answer for answer in statuses if _is_success(answer)], submissions)
    facts += _failed_reads([answer for answer in statuses if not _is_success(answer)])
    facts += _polling(statuses)
    facts += _image_facts(images, submissions)
    facts += _limits(answers)
    return facts


def _submission_facts(answers: Sequence[RecordedAnswer]) -> Iterable[ContractFact]:
    if not answers:
        return
    yield _free("submission: HTTP status", (str(answer.status) for answer in answers))
    yield _envelopes("submission", answers)
    yield _fact("submission: code", "200", map(_code, answers), lambda seen: seen == str(_OK))
    accepted = [answer for answer in answers if answer.data]
    if accepted:
        yield _fields("submission: data", _SUBMISSION_DATA, [answer.data for answer in accepted])
        yield _fact(
            "submission: status",
            TaskStatus.IN_PROGRESS,
            (_text(answer.data.get("status")) for answer in accepted),
            lambda seen: seen == TaskStatus.IN_PROGRESS,
        )
        yield _free("submission: form of the task id", (_form_of(answer.data.get("task_id")) for answer in accepted))


def _status_facts(answers: Sequence[RecordedAnswer], submissions: Sequence[RecordedAnswer]) -> Iterable[ContractFact]:
    if not answers:
        return
    yield _free("status: HTTP status", (str(answer.status) for answer in answers))
    yield _envelopes("status", answers)
    yield _fields("status: data", _STATUS_DATA, [answer.data for answer in answers])
    yield _fact(
        "status: statuses",
        ", ".join(TaskStatus),
        (_text(answer.data.get("status")) for answer in answers),
        TaskStatus.__members__.__contains__,
    )
    costs = (f"{_text(one.data.get('status'))} {_value(one.data.get('consumed_credits'))}" for one in answers)
    yield _fact(
        "status: consumed_credits",
        "5, and 0 on FAILED",
        costs,
        lambda seen: seen.endswith(" 0") if seen.startswith(TaskStatus.FAILED) else seen.endswith(" 5"),
    )
    yield _fact(
        "status: created_at",
        "like 2024-12-19T10:00:00Z",
        (_form_of_time(answer.data.get("created_at")) for answer in answers),
        lambda seen: seen == "that form",
    )
    sent = {answer.image: answer.request for answer in submissions}
    yield _free(
        "status: request", (_echo(answer.data.get("request"), sent.get(answer.image, {})) for answer in answers)
    )
    ended = [answer for answer in answers if answer.data.get("status") == TaskStatus.SUCCESS]
    if ended:
        yield _fact(
            "status: response on SUCCESS",
            "a list of image URLs",
            (_form_of_response(answer.data.get("response")) for answer in ended),
            lambda seen: seen.endswith("http(s) URL"),
        )


def _failed_reads(answers: Sequence[RecordedAnswer]) -> Iterable[ContractFact]:
    if answers:
        yield _free(
            "status: reads that failed", (f"HTTP {answer.status} with {_code_in_words(answer)}" for answer in answers)
        )


def _polling(answers: Sequence[RecordedAnswer]) -> Iterable[ContractFact]:
    if not answers:
        return
    seen = []
    for image in dict.fromkeys(answer.image for answer in answers):
        polls = [answer for answer in answers if answer.image == image]
        first: dict[str, float] = {}
        for poll in polls:
            if poll.data:
                first.setdefault(_text(poll.data.get("status")), poll.at)
        times = ", ".join(f"{status} at {at:.1f} s" for status, at in first.items())
        seen.append(f"image {image}: {times or 'no status'}, {len(polls)} polls")
    yield ContractFact("polling times", "every 5 to 10 s", _joined(seen), UNDOCUMENTED)


def _image_facts(images: Sequence[RecordedAnswer], submissions: Sequence[RecordedAnswer]) -> Iterable[ContractFact]:
    if not images:
        return
    requests = {answer.image: answer.request for answer in submissions}
    yield _free("image: HTTP status", (str(answer.status) for answer in images))
    yield _free("image: Content-Type", (answer.headers.get("content-type", "none") for answer in images))
    whole = [answer for answer in images if answer.body.form == BYTES and answer.status == _OK]
    if whole:
        asked = {_asked(requests.get(answer.image, {})) for answer in whole}
        yield _fact(
            "image: format and size",
            f"as requested: {', '.join(sorted(asked))}",
            (_examined(answer, requests.get(answer.image, {})) for answer in whole),
            lambda seen: any(seen == one for one in asked),
        )
    yield _free("image: how long the URL is valid, by its query", map(_lifetime, images))
    yield _free("image: caching", map(_caching, images))
    same = _equal_seeds(whole, requests)
    if same is not None:
        yield ContractFact("image: equal seed, equal bytes", "nothing", "yes" if same else "no", UNDOCUMENTED)


def _limits(answers: Sequence[RecordedAnswer]) -> Iterable[ContractFact]:
    seen = {
        f"{name}: {value}"
        for answer in answers
        if answer.kind != IMAGE
        for name, value in answer.headers.items()
        if name.startswith(_LIMITS)
    }
    if seen:
        yield _free("request limits in headers", sorted(seen))


def _equal_seeds(whole: Sequence[RecordedAnswer], requests: Mapping[int, Mapping[str, Any]]) -> bool | None:
    equal = [answer for answer in whole if requests.get(answer.image) == requests.get(whole[0].image)]
    if len(equal) < 2:  # noqa: PLR2004  a comparison has two sides
        return None
    return all(answer.body.content == equal[0].body.content for answer in equal)


def _is_success(answer: RecordedAnswer) -> bool:
    return bool(answer.data) and 200 <= answer.status < 300 and answer.envelope.get("code") == _OK  # noqa: PLR2004  HTTP


def _envelopes(route: str, answers: Sequence[RecordedAnswer]) -> ContractFact:
    objects = [answer.envelope for answer in answers if answer.envelope]
    if len(objects) == len(answers):
        # Of an error, `data` is null.
        types = {**_ENVELOPE, "data": ("object", "null")}
        return _fields(f"{route}: envelope", types, objects, shown=_ENVELOPE)
    forms = (answer.body.form if answer.body.form != JSON else _type_of(answer.body.content) for answer in answers)
    return ContractFact(f"{route}: envelope", _documented(_ENVELOPE), _joined(forms), DIFFERENT)


def _fields(
    name: str,
    types: Mapping[str, Sequence[str]],
    objects: Sequence[Mapping[str, Any]],
    *,
    shown: Mapping[str, Sequence[str]] | None = None,
) -> ContractFact:
    seen: dict[str, list[str]] = {}
    for each in objects:
        for field, value in each.items():
            seen.setdefault(field, []).append(_type_of(value))
    missing = [field for field in types if any(field not in each for each in objects)]
    undocumented = [field for field in seen if field not in types]
    # First the documented ones, in their order.
    names = [*(field for field in types if field in seen), *undocumented][:_MOST_NAMES]
    parts = [f"{field} ({' or '.join(dict.fromkeys(seen[field]))})" for field in names]
    parts += [f"not documented: {', '.join(undocumented[:_MOST_NAMES])}"] if undocumented else []
    parts += [f"missing: {', '.join(missing)}"] if missing else []
    fits = all(set(seen[field]) <= set(types[field]) for field in types if field in seen)
    verdict = SAME if fits and not missing and not undocumented else DIFFERENT
    return ContractFact(name, _documented(shown or types), _joined(parts), verdict)


def _documented(types: Mapping[str, Sequence[str]]) -> str:
    return ", ".join(f"{field} ({' or '.join(kinds)})" for field, kinds in types.items())


def _fact(name: str, documented: str, seen: Iterable[str], is_documented: Callable[[str], bool]) -> ContractFact:
    found = list(dict.fromkeys(seen))
    return ContractFact(name, documented, _joined(found), SAME if all(map(is_documented, found)) else DIFFERENT)


def _free(name: str, seen: Iterable[str]) -> ContractFact:
    return ContractFact(name, "nothing", _joined(dict.fromkeys(seen)), UNDOCUMENTED)


def _joined(parts: Iterable[str]) -> str:
    return shorten(printable(", ".join(parts)), _MOST_SEEN)


def _type_of(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    names = {str: "string", int: "number", float: "number", dict: "object", list: "list"}
    return next(name for kind, name in names.items() if isinstance(value, kind))


def _text(value: object) -> str:
    return shorten(printable(value) if isinstance(value, str) else safe_repr(value), 50)


def _value(value: object) -> str:
    # A text that looks like the documented number is not that number.
    return shorten(safe_repr(value), 50)


def _code(answer: RecordedAnswer) -> str:
    return _value(answer.envelope.get("code")) if answer.envelope else "none"


def _code_in_words(answer: RecordedAnswer) -> str:
    return f"code {_code(answer)}" if answer.envelope else "a body that is not the API's JSON"


def _form_of(value: object) -> str:
    if not isinstance(value, str):
        return _type_of(value)
    kind = "letters and digits" if value.isascii() and value.isalnum() else "characters of several kinds"
    return f"{len(value)} {kind}"


def _form_of_time(value: object) -> str:
    if isinstance(value, str) and _TIME.fullmatch(value):
        return "that form"
    # Digits are what a time has of its own.
    return re.sub(r"\d", "9", _text(value)) if isinstance(value, str) else _type_of(value)


def _form_of_response(value: object) -> str:
    if not isinstance(value, list) or not value:
        return "an empty list" if value == [] else _type_of(value)
    others = [_type_of(each) for each in value if not is_http_url(each)]
    return f"a list of {len(value)}: {', '.join(dict.fromkeys(others)) or 'http(s) URL'}"


def _echo(value: object, sent: Mapping[str, Any]) -> str:
    if not isinstance(value, Mapping):
        return _type_of(value)
    if value == sent:
        return "the request as sent"
    differing = [name for name in {**sent, **value} if value.get(name) != sent.get(name)]
    return f"the request, but for {', '.join(shorten(name, 50) for name in differing[:_MOST_NAMES])}"


def _asked(request: Mapping[str, Any]) -> str:
    return f"{request.get('output_format')}, {request.get('size')}"


def _examined(answer: RecordedAnswer, request: Mapping[str, Any]) -> str:
    try:
        found = examine_image(answer.body.content, GenerateRequest(**request))
    except (QwenImageImageError, ValueError, TypeError) as error:
        return printable(f"no image: {shorten(str(error))}")
    facts = found.facts if isinstance(found, OtherImage) else found
    return f"{facts.output_format}, {facts.width}*{facts.height}"


def _lifetime(answer: RecordedAnswer) -> str:
    if not answer.url_parameters:
        return "it has no query"
    names = ", ".join(answer.url_parameters)
    # In whole minutes: some state a moment, and the clock goes on.
    seconds = answer.url_seconds
    return f"{'not stated' if seconds is None else f'{seconds / 60:.0f} min'} ({names})"


def _caching(answer: RecordedAnswer) -> str:
    return "; ".join(f"{name}: {answer.headers[name]}" for name in _CACHING if name in answer.headers) or "no headers"
