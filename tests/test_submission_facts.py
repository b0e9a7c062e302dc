"""The facts about a submission are read from any store, also if somebody else has written there."""

from __future__ import annotations

import json
import math
import time
from dataclasses import replace
from typing import Any

import pendulum
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_qwenimage.contract import OUTPUT_FORMATS, SIZES, GenerateRequest
from airflow_provider_qwenimage.rules.image_identity import ImageIdentity
from airflow_provider_qwenimage.rules.submission_facts import (
    End,
    EndKind,
    Intent,
    Submission,
    read_earlier_version,
    read_id,
    read_note,
)
from airflow_provider_qwenimage.rules.submissions import Asking, LookAgain, Resume, Step, Stop, Submit, next_step
from airflow_provider_qwenimage.rules.task_ids import printable_id
from airflow_provider_qwenimage.rules.tries import Try
from airflow_provider_qwenimage.text.messages import is_blank, printable

REQUEST = GenerateRequest(prompt="A red fox", seed=7)
FIRST = Try(number=3, max_tries=2)
INTENT = Intent(
    submission_id="5ub",
    request=REQUEST.description(),
    fingerprint=REQUEST.fingerprint(),
    intended_at="2026-01-05T10:00:00+00:00",
    made_in=FIRST,
    by={"dag_id": "foxes", "run_id": "manual__1", "task_id": "draw", "map_index": -1},
)
END = End(kind=EndKind.FAILED, made_in=FIRST, reason="Out of paint.", consumed_credits=2.5, image_task_id="n43")

# Characters that a store refuses are replaced when a fact is written; see `storable`.
_STORABLE = st.characters(codec="utf-8", exclude_characters="\x00")
lines = st.text(_STORABLE, max_size=30).map(printable)
tries = st.builds(
    Try,
    number=st.integers(0, 99),
    max_tries=st.integers(0, 99),
    clear_number=st.none() | st.integers(0, 9),
    retries=st.none() | st.integers(0, 9),
)
requests = st.builds(
    GenerateRequest,
    prompt=st.text(_STORABLE, min_size=1, max_size=50).filter(lambda text: not is_blank(text)),
    size=st.sampled_from(SIZES),
    seed=st.integers(-1, 2**40),
    output_format=st.sampled_from(OUTPUT_FORMATS),
)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda parts: st.lists(parts, max_size=4) | st.dictionaries(st.text(max_size=20), parts, max_size=4),
    max_leaves=8,
)


@st.composite
def intents(draw: st.DrawFn) -> Intent:
    identity = ImageIdentity(draw(requests), draw(st.integers(0, 5)), draw(st.none() | st.just("fox")))
    return Intent(
        submission_id=draw(st.uuids()).hex,
        request=identity.request.description(),
        fingerprint=identity.fingerprint,
        variant=identity.variant,
        name=identity.name,
        intended_at=draw(lines),
        made_in=draw(tries),
        by=draw(st.dictionaries(lines, lines | st.integers(-1, 99), max_size=4)),
    )


ends = st.builds(
    End,
    kind=st.sampled_from(EndKind),
    made_in=tries,
    reason=lines,
    consumed_credits=st.floats(0, 1e6),
    image_task_id=st.none() | st.text(_STORABLE, min_size=1, max_size=20).map(printable_id),
)


def in_a_store(value: object) -> Any:
    return json.loads(json.dumps(value))


def step_after(submission: Submission, *, now: float = 2e9) -> Step:
    asking = Asking(identity=ImageIdentity(REQUEST), made_in=FIRST, answer_seconds=70.0, now=now)
    return next_step([submission], asking, lambda _: True)


def changed_parts(facts: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Return facts in which somebody has replaced some parts by anything."""
    return st.dictionaries(st.sampled_from(sorted(facts)), anything, min_size=1).map(lambda parts: facts | parts)


@given(intents())
def test_an_intent_survives_json(intent: Intent) -> None:
    assert Intent.from_json(in_a_store(intent.to_json())) == intent


@given(ends)
def test_an_end_survives_json(end: End) -> None:
    assert End.from_json(in_a_store(end.to_json())) == end


@given(intent=intents(), end=ends)
def test_facts_of_a_later_version_are_read_as_far_as_they_are_known(intent: Intent, end: End) -> None:
    later = {"colour": "red", "": None}
    assert Intent.from_json(intent.to_json() | later) == intent
    assert End.from_json(end.to_json() | later) == end


@given(intents())
def test_an_intent_names_the_image_that_was_asked_for(intent: Intent) -> None:
    assert intent.is_readable
    assert intent.identity.fingerprint == intent.fingerprint
    assert intent.identity.request.description() == intent.request


@pytest.mark.parametrize(
    "name", ["../../etc/fox", "a/b", ".hidden", "manifest", "fox.png", " fox", "", "a" * 200, "a\0"]
)
def test_an_intent_with_a_name_that_no_image_can_have_is_not_readable(name: str) -> None:
    assert Intent.from_json(INTENT.to_json() | {"name": "fox"}).is_readable
    assert not Intent.from_json(INTENT.to_json() | {"name": name}).is_readable


@pytest.mark.parametrize("part", [2.0**53 + 2, 2**70, [float(2**60)], {"a\0": "\ud800"}])
def test_an_intent_of_somebody_else_is_read_as_it_would_be_stored(part: object) -> None:
    intent = Intent.from_json(INTENT.to_json() | {"by": {"dag_id": "fox", "": part}})
    assert intent.is_readable
    assert Intent.from_json(in_a_store(intent.to_json())) == intent


@given(anything | changed_parts(INTENT.to_json()))
def test_any_intent_is_read_without_an_error_and_an_unreadable_one_stops(value: object) -> None:
    intent = Intent.from_json(value)
    step = step_after(Submission(number=1, intent=intent))
    if intent.is_readable:
        assert Intent.from_json(in_a_store(intent.to_json())) == intent
    else:
        assert intent == Intent.unreadable()
        assert isinstance(step, Stop)
        assert "cannot be read" in str(step.error)
    assert isinstance(step, Stop | LookAgain)


@given(anything | changed_parts(END.to_json()))
def test_any_end_is_read_without_an_error_and_what_is_none_ends_nothing(value: object) -> None:
    end = End.from_json(value)
    submission = Submission(number=1, intent=INTENT, end=end)
    if end is None:
        assert isinstance(step_after(submission), Stop)
    else:
        assert End.from_json(in_a_store(end.to_json())) == end


@given(anything)
def test_any_id_and_note_is_read_without_an_error(value: object) -> None:
    assert read_id(value) is None or isinstance(value, dict)
    assert read_note(value) is None or isinstance(value, dict)


@pytest.mark.parametrize("missing", ["submission", "request", "fingerprint", "intended_at", "try"])
def test_an_incomplete_intent_is_not_readable(missing: str) -> None:
    written = INTENT.to_json()
    del written[missing]
    assert not Intent.from_json(written).is_readable


@pytest.mark.parametrize(
    "part",
    [
        {"submission": ""},
        {"submission": "../../x"},
        {"submission": "a" * 65},
        {"submission": 5},
        {"request": {"prompt": ""}},
        {"request": {"prompt": "a fox", "style": "oil"}},
        {"fingerprint": None},
        {"intended_at": 5},
        {"try": {}},
        {"variant": "1"},
        {"name": 5},
    ],
    ids=str,
)
def test_an_intent_with_an_impossible_part_is_not_readable(part: dict[str, Any]) -> None:
    assert not Intent.from_json(INTENT.to_json() | part).is_readable


@pytest.mark.parametrize("spent", [math.nan, math.inf, -math.inf, -1, -1e9, 10**400, 1e300, True, "5", None])
def test_an_end_with_an_impossible_cost_is_no_end(spent: Any) -> None:
    """NaN and negative credits would never reach a limit, and NaN cannot be pushed to XCom."""
    assert End.from_json(END.to_json() | {"consumed_credits": spent}) is None


@pytest.mark.parametrize("part", [{"end": "broken"}, {"end": None}, {"try": None}, {"reason": 5}], ids=str)
def test_an_end_with_an_impossible_part_is_no_end(part: dict[str, Any]) -> None:
    assert End.from_json(END.to_json() | part) is None


@pytest.mark.parametrize("task_id", ["", "\ud83d", "n" * 501, 5, None, ["n43"]])
def test_an_id_that_cannot_be_polled_is_none(task_id: object) -> None:
    assert read_id({"image_task_id": task_id}) is None


def test_an_id_is_read_in_its_printable_form() -> None:
    assert read_id({"image_task_id": "n43\n\x1b[31m"}) == "urlencoded:n43%0A%1B%5B31m"
    assert read_id(in_a_store({"image_task_id": "n43"})) == "n43"


@pytest.mark.parametrize("text", ["\x1b[31m", "a\nb", "\ud83d\x00", "x" * 1_000_000])
def test_texts_that_others_wrote_become_one_short_line(text: str) -> None:
    intent = Intent.from_json(INTENT.to_json() | {"intended_at": text, "fingerprint": text, "by": {text: text}})
    end = End.from_json(END.to_json() | {"reason": text})
    assert end is not None
    for part in (intent.intended_at, intent.fingerprint, *intent.by.keys(), *intent.by.values(), end.reason):
        assert part.isprintable()
        assert len(part) < 3_000
    step = step_after(Submission(number=1, intent=intent, image_task_id="n43"))
    assert isinstance(step, Resume)
    assert step.notice.isprintable()


TODAY = pendulum.today("UTC").timestamp()


@pytest.mark.parametrize(
    ("intended_at", "now"),
    [
        # pendulum reads these as a time of today.
        ("now", None),
        pytest.param("10:00", TODAY + 36_030, id="10:00"),
        ("P1D", 2e9),
        ("9999-12-31T23:59:59+24:00", 2e9),
        ("2026-W99", 2e9),
        ("", 2e9),
        ("0001-01-01", 2e9),
        ("🦊", 2e9),
    ],
)
def test_an_odd_time_of_an_intent_neither_raises_nor_is_waited_for(intended_at: str, now: float | None) -> None:
    intent = replace(INTENT, intended_at=intended_at)
    now = time.time() if now is None else now
    assert isinstance(step_after(Submission(number=1, intent=intent), now=now), Stop)


def test_an_intent_contains_no_callback_url() -> None:
    request = GenerateRequest(prompt="a fox", callback_url="https://example.com/?token=secret")
    assert "secret" not in json.dumps(replace(INTENT, request=request.description()).to_json())


# What version 0.1 wrote: one object, written anew at each step.
EARLIER = {
    "request": REQUEST.description(),
    "fingerprint": REQUEST.fingerprint(),
    "intended_at": "2026-01-05T10:00:00+00:00",
    "try_number": 3,
    "max_tries": 2,
    "image_task_id": None,
    "finished": False,
    "failure": None,
    "refused": False,
    "reported": False,
    "missed": False,
    "counted": False,
    "spent": 2.5,
}
PAID = EARLIER | {"image_task_id": "n43", "counted": True}


def kind_of(step: Step) -> str:
    if isinstance(step, Submit):
        return f"submit with {step.spent:g} spent" + (", with a warning" if step.notice else "")
    if isinstance(step, Resume):
        return f"resume {step.image_task_id}"
    return f"stop with {type(step.error).__name__}" if isinstance(step, Stop) else "look again"


SUBMIT, SUBMIT_WARNING = "submit with 0 spent", "submit with 0 spent, with a warning"
RESUME = "resume n43"
UNKNOWN, POLICY = "stop with QwenImageSubmissionUnknownError", "stop with QwenImageContentPolicyError"


@pytest.mark.parametrize(
    ("record", "retried", "cleared", "cleared_and_changed"),
    [
        pytest.param(EARLIER, UNKNOWN, UNKNOWN, UNKNOWN, id="intent"),
        pytest.param(EARLIER | {"reported": True}, UNKNOWN, SUBMIT_WARNING, SUBMIT_WARNING, id="intent, reported"),
        pytest.param(PAID, RESUME, RESUME, SUBMIT_WARNING, id="unfinished"),
        pytest.param(PAID | {"missed": True}, RESUME, SUBMIT_WARNING, SUBMIT_WARNING, id="unfinished, missed"),
        pytest.param(PAID | {"finished": True}, RESUME, SUBMIT, SUBMIT, id="finished"),
        pytest.param(PAID | {"failure": "no", "spent": 5.0}, "submit with 5 spent", SUBMIT, SUBMIT, id="failed"),
        pytest.param(PAID | {"failure": "no", "refused": True}, POLICY, SUBMIT, SUBMIT, id="refused"),
        pytest.param({}, UNKNOWN, UNKNOWN, UNKNOWN, id="unreadable"),
        pytest.param("n43", UNKNOWN, UNKNOWN, UNKNOWN, id="no object"),
    ],
)
def test_the_record_of_an_earlier_version_leads_where_it_led_then(
    record: object, retried: str, cleared: str, cleared_and_changed: str
) -> None:
    submission = read_earlier_version(in_a_store(record))
    assert submission is not None
    assert submission.number == 0

    def after(*, cleared: bool = False, changed: bool = False) -> str:
        request = GenerateRequest(prompt="A grey fox") if changed else REQUEST
        made_in = Try(number=4, max_tries=5 if cleared else 2)
        return kind_of(
            next_step([submission], Asking(identity=ImageIdentity(request), made_in=made_in), lambda _: True)
        )

    assert after() == after(changed=True) == retried
    assert after(cleared=True) == cleared
    assert after(cleared=True, changed=True) == cleared_and_changed


def test_without_a_record_of_an_earlier_version_there_is_none() -> None:
    assert read_earlier_version(None) is None


@given(anything.filter(lambda value: value is not None) | changed_parts(PAID) | changed_parts(EARLIER))
def test_any_record_of_an_earlier_version_is_read_without_an_error_and_never_forgotten(value: object) -> None:
    submission = read_earlier_version(value)
    assert submission is not None
    if not submission.intent.is_readable:
        assert isinstance(step_after(submission), Stop)
    elif submission.end is None:
        assert isinstance(step_after(submission), Stop | Resume)


@pytest.mark.parametrize(
    "part",
    [{"spent": math.nan}, {"spent": -1}, {"image_task_id": ""}, {"image_task_id": "n" * 501}, {"max_tries": "2"}],
)
def test_a_record_of_an_earlier_version_with_an_impossible_part_is_not_readable(part: dict[str, Any]) -> None:
    submission = read_earlier_version(PAID | part)
    assert submission is not None
    assert not submission.intent.is_readable
