"""A new try and the submission of an earlier one: every kind of record, cleared or not."""

from __future__ import annotations

import json
import math
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_qwenimage.contract import OUTPUT_FORMATS, SIZES, GenerateRequest
from airflow_provider_qwenimage.exceptions import QwenImageContentPolicyError, QwenImageSubmissionUnknownError
from airflow_provider_qwenimage.rules.submissions import (
    Resume,
    Step,
    Stop,
    Submission,
    Submit,
    next_step,
    what_stays_paid,
)
from airflow_provider_qwenimage.rules.task_ids import printable_id
from airflow_provider_qwenimage.text.messages import is_blank, printable

REQUEST = GenerateRequest(prompt="A red fox", seed=7)
OTHER = GenerateRequest(prompt="A grey fox", seed=7)
MAX_TRIES = 2

INTENT = Submission(
    request=REQUEST.description(),
    fingerprint=REQUEST.fingerprint(),
    intended_at="2026-01-05T10:00:00+00:00",
    try_number=3,
    max_tries=MAX_TRIES,
    spent=2.5,
)
REPORTED = replace(INTENT, reported=True)
UNFINISHED = replace(INTENT, image_task_id="n43", counted=True)
MISSED = replace(UNFINISHED, missed=True)
FINISHED = replace(UNFINISHED, finished=True)
FAILED = replace(UNFINISHED, failure="Out of paint.", spent=5.0)
REFUSED = replace(FAILED, refused=True)


def step_after(record: Submission | None, *, cleared: bool = False, changed: bool = False) -> Step:
    request = OTHER if changed else REQUEST
    return next_step(record, fingerprint=request.fingerprint(), max_tries=MAX_TRIES + 3 * cleared)


def kind_of(step: Step) -> str:
    if isinstance(step, Submit):
        return f"submit with {step.spent:g} spent" + (", with a warning" if step.notice else "")
    if isinstance(step, Resume):
        return f"resume {step.image_task_id}"
    return f"stop with {type(step.error).__name__}"


SUBMIT, SUBMIT_WARNING = "submit with 0 spent", "submit with 0 spent, with a warning"
RESUME = "resume n43"
UNKNOWN, POLICY = "stop with QwenImageSubmissionUnknownError", "stop with QwenImageContentPolicyError"


@pytest.mark.parametrize(
    ("record", "retried", "cleared", "cleared_and_changed"),
    [
        pytest.param(None, SUBMIT, SUBMIT, SUBMIT, id="nothing"),
        pytest.param(INTENT, UNKNOWN, UNKNOWN, UNKNOWN, id="intent"),
        pytest.param(REPORTED, UNKNOWN, SUBMIT_WARNING, SUBMIT_WARNING, id="intent, reported"),
        pytest.param(UNFINISHED, RESUME, RESUME, SUBMIT_WARNING, id="unfinished"),
        pytest.param(MISSED, RESUME, SUBMIT_WARNING, SUBMIT_WARNING, id="unfinished, missed"),
        pytest.param(FINISHED, RESUME, SUBMIT, SUBMIT, id="finished"),
        pytest.param(FAILED, "submit with 5 spent", SUBMIT, SUBMIT, id="failed"),
        pytest.param(REFUSED, POLICY, SUBMIT, SUBMIT, id="refused"),
    ],
)
def test_a_try_continues_the_last_one(
    record: Submission | None, retried: str, cleared: str, cleared_and_changed: str
) -> None:
    assert kind_of(step_after(record)) == retried
    # A template that renders differently is no reason to pay again.
    assert kind_of(step_after(record, changed=True)) == retried
    assert kind_of(step_after(record, cleared=True)) == cleared
    assert kind_of(step_after(record, cleared=True, changed=True)) == cleared_and_changed


# Characters that a store refuses are replaced when a record is written; see `storable`.
_STORABLE = st.characters(codec="utf-8", exclude_characters="\x00")

requests = st.builds(
    GenerateRequest,
    prompt=st.text(_STORABLE, min_size=1, max_size=50).filter(lambda text: not is_blank(text)),
    size=st.sampled_from(SIZES),
    seed=st.integers(-1, 2**40),
    output_format=st.sampled_from(OUTPUT_FORMATS),
)
flags = st.booleans()


@st.composite
def records(draw: st.DrawFn, **fixed: Any) -> Submission:
    request = draw(requests)
    values: dict[str, Any] = {
        "request": request.description(),
        "fingerprint": request.fingerprint(draw(st.integers(0, 5))),
        "intended_at": printable(draw(st.text(_STORABLE, max_size=30))),
        "try_number": draw(st.integers(0, 99)),
        "max_tries": draw(st.integers(0, 99)),
        "image_task_id": draw(st.none() | st.text(_STORABLE, min_size=1, max_size=20).map(printable_id)),
        "failure": draw(st.none() | st.text(_STORABLE, max_size=50).map(printable)),
        "spent": draw(st.floats(0, 1e6)),
    }
    values |= {name: draw(flags) for name in ("finished", "refused", "reported", "missed", "counted")}
    return Submission(**values | fixed)


def steps(record: Submission, max_tries: int, *, changed: bool) -> Step:
    return next_step(record, fingerprint="another" if changed else record.fingerprint, max_tries=max_tries)


@given(record=records(failure=None, finished=False), max_tries=st.integers(0, 99), changed=flags)
def test_an_unfinished_image_task_is_paid_again_only_after_a_clear_and_with_a_notice(
    record: Submission, max_tries: int, changed: bool
) -> None:
    cleared = max_tries != record.max_tries
    consent = cleared and (record.reported if record.image_task_id is None else record.missed or changed)
    step = steps(record, max_tries, changed=changed)
    assert isinstance(step, Submit) == consent
    if isinstance(step, Submit):
        assert step.notice


def test_a_clear_counts_even_if_the_dag_has_fewer_retries_than_before() -> None:
    """Airflow sets `max_tries` to the number of the try and the task's retries: that may be less than before."""
    reported = Submission(
        request={}, fingerprint="f", intended_at="then", try_number=1, max_tries=MAX_TRIES, reported=True
    )
    assert isinstance(next_step(reported, fingerprint="f", max_tries=MAX_TRIES - 1), Submit)
    assert isinstance(next_step(reported, fingerprint="f", max_tries=MAX_TRIES), Stop)


@given(record=records(), max_tries=st.integers(0, 99), changed=flags)
def test_a_resumed_image_task_has_the_submitted_request(record: Submission, max_tries: int, changed: bool) -> None:
    step = steps(record, max_tries, changed=changed)
    if isinstance(step, Resume):
        assert step.image_task_id == record.image_task_id
        assert step.request.description() == record.request


@given(record=records(), later=st.integers(1, 50), changed=flags)
def test_spent_credits_count_until_the_task_is_cleared(record: Submission, later: int, changed: bool) -> None:
    retried = steps(record, record.max_tries, changed=changed)
    if isinstance(retried, Submit):
        assert retried.spent == record.spent
    cleared = steps(record, record.max_tries + later, changed=changed)
    if isinstance(cleared, Submit):
        assert cleared.spent == 0


@given(record=records())
def test_a_record_survives_json(record: Submission) -> None:
    assert Submission.from_json(json.loads(json.dumps(record.to_json()))) == record


@given(record=records())
def test_a_record_of_a_later_version_is_read_as_far_as_it_is_known(record: Submission) -> None:
    assert Submission.from_json(record.to_json() | {"colour": "red", "": None}) == record


def test_a_record_of_an_earlier_version_without_later_fields_is_read() -> None:
    needed = ("request", "fingerprint", "intended_at", "try_number", "max_tries")
    assert Submission.from_json({name: getattr(INTENT, name) for name in needed}) == replace(INTENT, spent=0.0)


@pytest.mark.parametrize("missing", ["request", "fingerprint", "intended_at", "try_number", "max_tries"])
def test_an_incomplete_record_is_read_as_none(missing: str) -> None:
    assert Submission.from_json({name: value for name, value in INTENT.to_json().items() if name != missing}) is None


@pytest.mark.parametrize("value", [None, True, 5, "", "n43", [], ["request"], {}, {"image_task_id": "n43"}, b"{}"])
def test_anything_but_a_record_is_read_as_none(value: object) -> None:
    assert Submission.from_json(value) is None


@pytest.mark.parametrize("name", [field.name for field in fields(Submission)])
def test_a_record_with_a_value_of_another_type_is_read_as_none(name: str) -> None:
    assert Submission.from_json(UNFINISHED.to_json() | {name: ["something", "else"]}) is None


@pytest.mark.parametrize("spent", [math.nan, math.inf, -math.inf, -1, -1e9, 10**400, 1e300])
def test_a_record_with_an_impossible_cost_is_read_as_none(spent: float) -> None:
    """NaN and negative credits would never reach a limit, and NaN cannot be pushed to XCom."""
    assert Submission.from_json(UNFINISHED.to_json() | {"spent": spent}) is None


@pytest.mark.parametrize("task_id", ["", "\ud83d", "n" * 501])
def test_a_record_with_an_id_that_cannot_be_polled_is_read_as_none(task_id: str) -> None:
    assert Submission.from_json(UNFINISHED.to_json() | {"image_task_id": task_id}) is None


@pytest.mark.parametrize("text", ["\x1b[31m", "a\nb", "\ud83d\x00", "x" * 1_000_000])
def test_messages_quote_any_record_in_a_short_line(text: str) -> None:
    for record in (INTENT, UNFINISHED, REFUSED):
        read = Submission.from_json(record.to_json() | {"intended_at": text} | {"failure": record.failure and text})
        step = step_after(read)
        message = str(step.error) if isinstance(step, Stop) else str(getattr(step, "notice", None))
        assert message.isprintable()
        assert len(message) < 5_000
    read = Submission.from_json(UNFINISHED.to_json() | {"image_task_id": "n43\n\x1b[31m"})
    assert kind_of(step_after(read)) == "resume urlencoded:n43%0A%1B%5B31m"


def test_a_record_whose_request_cannot_be_read_is_read_as_none() -> None:
    assert Submission.from_json(UNFINISHED.to_json() | {"request": {"prompt": ""}}) is None
    assert Submission.from_json(UNFINISHED.to_json() | {"request": {"prompt": "a fox", "style": "oil"}}) is None


def test_a_record_contains_no_callback_url() -> None:
    request = GenerateRequest(prompt="a fox", callback_url="https://example.com/?token=secret")
    assert "secret" not in json.dumps(replace(INTENT, request=request.description()).to_json())


@pytest.mark.parametrize("reported", [False, True])
def test_the_error_for_a_lost_submission_names_the_try_the_cost_and_the_next_step(reported: bool) -> None:
    step = step_after(replace(INTENT, reported=reported))
    assert isinstance(step, Stop)
    assert isinstance(step.error, QwenImageSubmissionUnknownError)
    assert step.error.permanent
    for part in ("Try 3", INTENT.intended_at, "5 credits", "Compare the credits", "clear the task to submit it again"):
        assert part in str(step.error)


def test_consent_to_submit_again_is_confirmed_with_the_lost_try() -> None:
    step = step_after(REPORTED, cleared=True)
    assert isinstance(step, Submit)
    for part in ("cleared", "try 3", INTENT.intended_at, "submits again"):
        assert part in str(step.notice)


@pytest.mark.parametrize("cleared", [False, True])
def test_the_notice_of_a_resume_names_the_image_task_and_that_nothing_is_paid(cleared: bool) -> None:
    step = step_after(UNFINISHED, cleared=cleared)
    assert isinstance(step, Resume)
    for part in ("n43", "try 3", INTENT.intended_at, "Nothing is submitted or paid again"):
        assert part in step.notice
    assert "something else" not in step.notice


def test_the_notice_of_a_resume_names_a_changed_request() -> None:
    step = step_after(UNFINISHED, changed=True)
    assert isinstance(step, Resume)
    assert step.request == REQUEST
    assert "The request has changed since; the submitted one counts" in step.notice


@pytest.mark.parametrize(
    ("record", "changed", "reason"),
    [
        (MISSED, False, "could not be fetched"),
        (MISSED, True, "could not be fetched"),
        (UNFINISHED, True, "request has changed"),
    ],
)
def test_leaving_an_image_task_behind_names_it_and_how_to_get_it(
    record: Submission, changed: bool, reason: str
) -> None:
    step = step_after(record, cleared=True, changed=changed)
    assert isinstance(step, Submit)
    for part in (reason, "n43", "may be paid", "QwenImageStatusSensor"):
        assert part in str(step.notice)


def test_a_refusal_is_reported_again_with_the_reason_of_the_api() -> None:
    step = step_after(replace(REFUSED, failure="Image task n43 failed: Content policy violation detected."))
    assert isinstance(step, Stop)
    assert type(step.error) is QwenImageContentPolicyError
    assert str(step.error) == "Image task n43 failed: Content policy violation detected."


@pytest.mark.parametrize(
    ("consumed_credits", "paid"),
    [
        (None, "5 credits, as documented"),
        (5.0, "5 credits, as the API"),
        (0, "0 credits, as the API"),
        (2.5, "2.5 credits, as the API"),
    ],
)
def test_a_wait_that_ends_from_outside_names_the_paid_image_task_and_how_to_get_it(
    consumed_credits: float | None, paid: str
) -> None:
    message = what_stays_paid("n43", consumed_credits)
    for part in ("mage task n43", "cannot cancel", "stays paid", paid, "clear this task", "QwenImageStatusSensor"):
        assert part in message
