"""What a task does about the submissions that are recorded for its image: every kind, own or another task's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pendulum
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_qwenimage.contract import GenerateRequest
from airflow_provider_qwenimage.exceptions import QwenImageContentPolicyError, QwenImageSubmissionUnknownError
from airflow_provider_qwenimage.rules.image_identity import ImageIdentity
from airflow_provider_qwenimage.rules.submission_facts import End, EndKind, Intent, Submission
from airflow_provider_qwenimage.rules.submissions import (
    MOST_SERVER_ERRORS,
    Asking,
    LookAgain,
    Resume,
    Step,
    Stop,
    Submit,
    combined,
    next_step,
    what_stays_paid,
)
from airflow_provider_qwenimage.rules.tries import Try

REQUEST = GenerateRequest(prompt="A red fox", seed=7)
OTHER = GenerateRequest(prompt="A grey fox", seed=7)
INTENDED_AT = "2026-01-05T10:00:00+00:00"
LATER = pendulum.datetime(2026, 1, 6).timestamp()
FIRST = Try(number=3, max_tries=2)
RETRY = Try(number=4, max_tries=2)
CLEARED = Try(number=4, max_tries=5)

ME = {"dag_id": "foxes", "run_id": "manual__1", "task_id": "draw", "map_index": -1}
THEY = {"dag_id": "cats", "run_id": "manual__2", "task_id": "paint", "map_index": 4}


def submission(number: int = 1, *, by: dict[str, Any] | None = None, made_in: Try = FIRST, **facts: Any) -> Submission:
    intent = Intent(
        submission_id=f"5ub{number}",
        request=REQUEST.description(),
        fingerprint=REQUEST.fingerprint(),
        intended_at=INTENDED_AT,
        made_in=made_in,
        by=ME if by is None else by,
    )
    return Submission(number=number, intent=intent, **facts)


def ended(kind: EndKind, *, number: int = 1, made_in: Try = FIRST, cost: float = 0.0, **facts: Any) -> Submission:
    end = End(kind=kind, made_in=made_in, reason="Image task n43 failed: no.", consumed_credits=cost)
    return submission(number, end=end, **facts)


def by_them(history: Sequence[Submission]) -> list[Submission]:
    return [replace(one, intent=replace(one.intent, by=THEY)) for one in history]


def is_own(one: Submission) -> bool:
    return one.intent.by == ME


def step_after(
    *history: Submission, made_in: Try = RETRY, changed: bool = False, overwrite: bool = False, now: float = LATER
) -> Step:
    identity = ImageIdentity(OTHER if changed else REQUEST)
    asking = Asking(identity=identity, made_in=made_in, instance=ME, overwrite=overwrite, answer_seconds=70.0, now=now)
    return next_step(history, asking, is_own)


def kind_of(step: Step) -> str:
    if isinstance(step, Submit):
        risk = f", {step.at_risk:g} at risk" if step.at_risk else ""
        return f"submit, {step.spent:g} spent{risk}" + (", and say so" if step.notice else "")
    if isinstance(step, Resume):
        return f"resume {'own' if step.is_own else 'theirs'}"
    if isinstance(step, LookAgain):
        return "look again"
    return f"stop: {type(step.error).__name__}" + (", asking" if step.asks_for_consent else "")


INTENT = submission()
REPORTED = submission(reported=FIRST)
UNFINISHED = submission(image_task_id="n43")
LOST = submission(image_task_id="n43", lost=FIRST)
MISSED = submission(image_task_id="n43", lost=FIRST, missed=FIRST)
DONE = ended(EndKind.DONE, image_task_id="n43")
FAILED = ended(EndKind.FAILED, image_task_id="n43", cost=5.0)
REFUSED = ended(EndKind.REFUSED, image_task_id="n43", cost=1.0)
WITHDRAWN = ended(EndKind.NOT_ACCEPTED)
GIVEN_UP = ended(EndKind.GIVEN_UP, image_task_id="n43")
ERROR = ended(EndKind.SERVER_ERROR)
ERRORS = [ended(EndKind.SERVER_ERROR, number=number) for number in (1, 2)]
UNREADABLE = Submission(number=1, intent=Intent.unreadable())

SUBMIT, WARN = "submit, 0 spent", "submit, 0 spent, and say so"
UNKNOWN, POLICY = "stop: QwenImageSubmissionUnknownError, asking", "stop: QwenImageContentPolicyError"
TOO_MANY = "stop: QwenImageSubmissionUnknownError"
RESUME, THEIRS, TAKEN = "resume own", "resume theirs", "stop: ValueError"


@pytest.mark.parametrize(
    ("history", "retried", "retried_and_changed", "cleared", "cleared_and_changed"),
    [
        # A template that renders differently in a retry is no reason to pay again.
        pytest.param([], SUBMIT, SUBMIT, SUBMIT, SUBMIT, id="nothing"),
        pytest.param([INTENT], UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN, id="intent"),
        pytest.param([REPORTED], UNKNOWN, UNKNOWN, WARN, WARN, id="intent, reported"),
        pytest.param([UNFINISHED], RESUME, RESUME, RESUME, WARN, id="unfinished"),
        pytest.param([LOST], RESUME, RESUME, RESUME, WARN, id="unfinished, lost once"),
        pytest.param([MISSED], RESUME, RESUME, WARN, WARN, id="unfinished, lost after a Clear"),
        pytest.param([DONE], RESUME, RESUME, SUBMIT, SUBMIT, id="done"),
        pytest.param([FAILED], "submit, 5 spent", "submit, 5 spent", SUBMIT, SUBMIT, id="failed"),
        pytest.param([REFUSED], POLICY, POLICY, SUBMIT, SUBMIT, id="refused"),
        pytest.param([WITHDRAWN], SUBMIT, SUBMIT, SUBMIT, SUBMIT, id="not accepted"),
        pytest.param([GIVEN_UP], SUBMIT, SUBMIT, SUBMIT, SUBMIT, id="given up"),
        pytest.param([ERROR], f"{SUBMIT}, 5 at risk", f"{SUBMIT}, 5 at risk", SUBMIT, SUBMIT, id="code 500"),
        pytest.param(ERRORS, TOO_MANY, TOO_MANY, SUBMIT, SUBMIT, id="code 500 twice"),
        pytest.param([*ERRORS[:1], INTENT], UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN, id="code 500, intent"),
        pytest.param([FAILED, UNFINISHED], RESUME, RESUME, RESUME, WARN, id="failed, unfinished"),
        pytest.param(
            [FAILED, WITHDRAWN], "submit, 5 spent", "submit, 5 spent", SUBMIT, SUBMIT, id="failed, not accepted"
        ),
        pytest.param([UNREADABLE], UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN, id="unreadable"),
    ],
)
def test_a_try_continues_the_last_one_of_its_task(
    history: list[Submission], retried: str, retried_and_changed: str, cleared: str, cleared_and_changed: str
) -> None:
    for overwrite in (False, True):
        # An image that is being drawn is a new one already.
        assert kind_of(step_after(*history, overwrite=overwrite)) == retried
        assert kind_of(step_after(*history, overwrite=overwrite, changed=True)) == retried_and_changed
        assert kind_of(step_after(*history, overwrite=overwrite, made_in=CLEARED)) == cleared
        both = step_after(*history, overwrite=overwrite, made_in=CLEARED, changed=True)
        assert kind_of(both) == cleared_and_changed


@pytest.mark.parametrize(
    ("history", "retried", "cleared", "changed", "changed_with_overwrite"),
    [
        pytest.param([INTENT], UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN, id="intent"),
        pytest.param([REPORTED], UNKNOWN, WARN, UNKNOWN, UNKNOWN, id="intent, reported"),
        pytest.param([UNFINISHED], THEIRS, THEIRS, TAKEN, WARN, id="unfinished"),
        pytest.param([LOST], THEIRS, THEIRS, TAKEN, WARN, id="unfinished, lost once"),
        pytest.param([MISSED], THEIRS, WARN, TAKEN, WARN, id="unfinished, lost after a Clear"),
        pytest.param([DONE], SUBMIT, SUBMIT, SUBMIT, SUBMIT, id="done"),
        pytest.param([FAILED], SUBMIT, SUBMIT, SUBMIT, SUBMIT, id="failed"),
        pytest.param([REFUSED], SUBMIT, SUBMIT, SUBMIT, SUBMIT, id="refused"),
        pytest.param([WITHDRAWN], SUBMIT, SUBMIT, SUBMIT, SUBMIT, id="not accepted"),
        pytest.param([GIVEN_UP], SUBMIT, SUBMIT, SUBMIT, SUBMIT, id="given up"),
        pytest.param(ERRORS, SUBMIT, SUBMIT, SUBMIT, SUBMIT, id="code 500 twice"),
        pytest.param([FAILED, INTENT], UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN, id="failed, intent"),
    ],
)
def test_a_task_shares_what_another_one_has_submitted_and_pays_only_for_its_own(
    history: list[Submission], retried: str, cleared: str, changed: str, changed_with_overwrite: str
) -> None:
    theirs = by_them(history)
    for overwrite in (False, True):
        assert kind_of(step_after(*theirs, overwrite=overwrite)) == retried
        assert kind_of(step_after(*theirs, overwrite=overwrite, made_in=CLEARED)) == cleared
    assert kind_of(step_after(*theirs, changed=True)) == changed
    assert kind_of(step_after(*theirs, changed=True, overwrite=True)) == changed_with_overwrite


def test_what_another_task_has_spent_or_risked_is_not_counted() -> None:
    theirs = by_them([FAILED, *ERRORS])
    assert step_after(*theirs, FAILED) == Submit(spent=5.0, charged=5.0)


def test_costs_and_answers_with_code_500_add_up_until_a_clear() -> None:
    history = [FAILED, ERROR, replace(FAILED, number=3)]
    assert step_after(*history) == Submit(spent=10.0, charged=5.0, server_errors=1)
    assert step_after(*history, made_in=CLEARED) == Submit()
    after = ended(EndKind.FAILED, number=4, made_in=CLEARED, cost=2.5)
    assert step_after(*history, after, made_in=replace(CLEARED, number=5)) == Submit(spent=2.5, charged=2.5)


ENDS = st.none() | st.builds(
    End,
    kind=st.sampled_from(EndKind),
    made_in=st.sampled_from([FIRST, RETRY, CLEARED]),
    consumed_credits=st.floats(0, 100),
)
NOTES = st.none() | st.sampled_from([FIRST, RETRY, CLEARED, Try(number=9, max_tries=9)])
SUBMISSIONS = st.builds(
    submission,
    st.integers(0, 9),
    by=st.sampled_from([ME, THEY]),
    made_in=st.sampled_from([FIRST, RETRY, CLEARED]),
    image_task_id=st.none() | st.just("n43"),
    end=ENDS,
    reported=NOTES,
    lost=NOTES,
    missed=NOTES,
    spent_before=st.floats(0, 100),
)
HISTORIES = st.lists(SUBMISSIONS | st.just(UNREADABLE), max_size=4)
NOWS = st.floats(LATER - 2 * 86_400, LATER)
ASKING = st.fixed_dictionaries(
    {
        "made_in": st.builds(Try, number=st.integers(1, 9), max_tries=st.integers(0, 9)),
        "changed": st.booleans(),
        "overwrite": st.booleans(),
        "now": NOWS,
    }
)


@given(before=HISTORIES, last=SUBMISSIONS | st.just(UNREADABLE), asking=ASKING)
def test_no_history_leads_from_an_intent_without_an_end_to_a_submission_without_report_and_clear(
    before: list[Submission], last: Submission, asking: dict[str, Any]
) -> None:
    last = replace(last, end=None, image_task_id=None)
    step = step_after(*before, last, **asking)
    consent = last.reported is not None and asking["made_in"].max_tries != last.reported.max_tries
    assert isinstance(step, Submit) == consent
    if isinstance(step, Submit):
        assert step.gives_up
        assert step.notice


@given(before=HISTORIES, last=SUBMISSIONS, asking=ASKING)
def test_no_history_leads_from_a_paid_image_to_another_one_without_a_reason_and_a_notice(
    before: list[Submission], last: Submission, asking: dict[str, Any]
) -> None:
    last = replace(last, end=None, image_task_id="n43")
    step = step_after(*before, last, **asking)
    made_in: Try = asking["made_in"]
    cannot_be_fetched = last.missed is not None and made_in.max_tries != last.missed.max_tries
    cleared = is_own(last) and made_in.max_tries != last.intent.made_in.max_tries
    asked_for = (cannot_be_fetched or (cleared and asking["changed"])) and (is_own(last) or not asking["changed"])
    replaced = not is_own(last) and asking["changed"] and asking["overwrite"]
    assert isinstance(step, Submit) == (asked_for or replaced)
    if isinstance(step, Submit):
        assert step.gives_up
        assert "n43" in str(step.notice)
    if isinstance(step, Resume):
        assert step.image_task_id == "n43"
        assert step.submission == last


@given(history=HISTORIES, asking=ASKING)
def test_only_the_last_submission_decides_and_the_others_only_cost(
    history: list[Submission], asking: dict[str, Any]
) -> None:
    step, alone = step_after(*history, **asking), step_after(*history[-1:], **asking)
    errors = [one for one in history if is_own(one) and one.end is not None and one.end.kind is EndKind.SERVER_ERROR]
    if len(errors) < MOST_SERVER_ERRORS:
        assert type(step) is type(alone)
    if isinstance(step, Submit) and isinstance(alone, Submit):
        assert step.spent >= alone.spent
        assert step.notice == alone.notice


@given(history=HISTORIES, asking=ASKING)
def test_an_image_is_never_submitted_a_third_time_after_two_answers_with_code_500(
    history: list[Submission], asking: dict[str, Any]
) -> None:
    step = step_after(*history, **asking)
    if isinstance(step, Submit) and not step.gives_up and history and is_own(history[-1]):
        assert step.server_errors < MOST_SERVER_ERRORS


def test_the_answer_to_a_submission_is_awaited_as_long_as_it_may_come() -> None:
    intended_at = pendulum.datetime(2026, 1, 5, 10).timestamp()
    for history in ([INTENT], by_them([INTENT])):
        for age, seconds in ((0, 70), (20, 50), (69, 1)):
            step = step_after(*history, now=intended_at + age)
            assert isinstance(step, LookAgain)
            assert step.seconds == pytest.approx(seconds)
        for age in (70, 71, 10**9):
            assert isinstance(step_after(*history, now=intended_at + age), Stop)
        # Another host's clock may be ahead, but nothing is awaited for longer than an answer takes.
        assert isinstance(step_after(*history, now=intended_at - 60), Stop)


def test_a_wait_for_an_answer_names_who_submits() -> None:
    now = pendulum.datetime(2026, 1, 5, 10).timestamp()
    own, theirs = step_after(INTENT, now=now), step_after(*by_them([INTENT]), now=now)
    assert isinstance(own, LookAgain)
    assert isinstance(theirs, LookAgain)
    assert own.notice.startswith("Try 3 of this task is submitting")
    assert theirs.notice.startswith("task paint of DAG cats, run manual__2, map index 4 is submitting")


def test_consent_is_a_clear_after_the_report_also_if_the_dag_has_fewer_retries_than_before() -> None:
    """Airflow sets `max_tries` to the number of the try and the task's retries: that may be the same, or less."""
    one = submission(reported=Try(number=1, max_tries=2, clear_number=0, retries=2))
    assert isinstance(step_after(one, made_in=Try(number=2, max_tries=1)), Submit)
    lowered = Try(number=2, max_tries=2, clear_number=1, retries=1)
    assert isinstance(step_after(one, made_in=lowered), Submit)
    assert isinstance(step_after(one, made_in=replace(lowered, clear_number=0)), Stop)


@pytest.mark.parametrize("kind", [EndKind.DONE, EndKind.REFUSED])
def test_a_final_end_is_left_by_a_clear_also_if_the_dag_has_fewer_retries_than_before(kind: EndKind) -> None:
    first = Try(number=1, max_tries=2, clear_number=0, retries=2)
    one = ended(kind, made_in=first, image_task_id="n43")
    assert isinstance(step_after(one, made_in=Try(number=2, max_tries=2, clear_number=1, retries=1)), Submit)
    assert not isinstance(step_after(one, made_in=Try(number=2, max_tries=2, clear_number=0, retries=2)), Submit)


def test_a_clear_after_two_answers_with_code_500_submits_also_if_the_dag_has_fewer_retries_than_before() -> None:
    errors = [
        ended(EndKind.SERVER_ERROR, number=number, made_in=Try(number=number, max_tries=3, clear_number=0, retries=3))
        for number in (1, 2)
    ]
    cleared = Try(number=3, max_tries=3, clear_number=1, retries=1)
    assert isinstance(step_after(*errors, made_in=cleared), Submit)


def test_the_error_for_a_lost_submission_names_the_try_the_cost_and_the_next_step() -> None:
    for one in (INTENT, REPORTED):
        step = step_after(one)
        assert isinstance(step, Stop)
        assert isinstance(step.error, QwenImageSubmissionUnknownError)
        assert step.error.permanent
        for part in ("Try 3", INTENDED_AT, "5 credits", "Submitted image task", "clear the task to submit it again"):
            assert part in str(step.error)


def test_the_error_for_another_tasks_lost_submission_names_that_task() -> None:
    step = step_after(*by_them([INTENT]))
    assert isinstance(step, Stop)
    for part in ("task paint of DAG cats, run manual__2, map index 4", INTENDED_AT, "5 credits", "clear the task"):
        assert part in str(step.error)
    assert "Try 3" not in str(step.error)


def test_the_error_after_two_answers_with_code_500_names_what_may_be_paid() -> None:
    step = step_after(*ERRORS)
    assert isinstance(step, Stop)
    for part in ("2 submissions", "code 500", "10 credits at most", "Compare the credits", "clear the task"):
        assert part in str(step.error)


def test_consent_to_submit_again_is_confirmed_with_the_lost_try() -> None:
    step = step_after(REPORTED, made_in=CLEARED)
    assert isinstance(step, Submit)
    for part in ("cleared", "try 3", INTENDED_AT, "submits again"):
        assert part in str(step.notice)


@pytest.mark.parametrize("made_in", [RETRY, CLEARED])
def test_the_notice_of_a_resume_names_the_image_task_and_that_nothing_is_paid(made_in: Try) -> None:
    step = step_after(UNFINISHED, made_in=made_in)
    assert isinstance(step, Resume)
    for part in ("n43", "try 3 of this task", INTENDED_AT, "Nothing is submitted or paid again"):
        assert part in step.notice
    assert "has changed" not in step.notice


def test_the_notice_of_a_resume_names_another_task() -> None:
    step = step_after(*by_them([UNFINISHED]))
    assert isinstance(step, Resume)
    assert not step.is_own
    assert "n43, submitted by task paint of DAG cats, run manual__2, map index 4" in step.notice


def test_the_notice_of_a_resume_names_a_changed_request() -> None:
    step = step_after(UNFINISHED, changed=True)
    assert isinstance(step, Resume)
    assert step.submission.intent.identity.request == REQUEST
    assert "The request has changed since; the submitted one counts" in step.notice


@pytest.mark.parametrize(
    ("history", "made_in", "changed", "reason"),
    [
        ([MISSED], CLEARED, False, "could not be fetched"),
        ([MISSED], CLEARED, True, "could not be fetched"),
        ([UNFINISHED], CLEARED, True, "request has changed"),
        (by_them([UNFINISHED]), RETRY, True, "overwrite=True"),
    ],
)
def test_leaving_an_image_task_behind_names_it_and_how_to_get_it(
    history: list[Submission], made_in: Try, changed: bool, reason: str
) -> None:
    step = step_after(*history, made_in=made_in, changed=changed, overwrite=True)
    assert isinstance(step, Submit)
    assert step.gives_up
    for part in (reason, "n43", "may be paid", "QwenImageStatusSensor"):
        assert part in str(step.notice)


def test_a_chosen_name_that_another_task_uses_for_another_request_stops_before_anything_is_paid() -> None:
    asking = Asking(identity=ImageIdentity(OTHER, name="fox"), made_in=RETRY, now=LATER)
    step = next_step(by_them([UNFINISHED]), asking, is_own)
    assert isinstance(step, Stop)
    for part in ("image_name is 'fox'", "task paint of DAG cats", "n43", "Nothing was submitted", "overwrite=True"):
        assert part in str(step.error)
    assert not step.asks_for_consent


def test_a_refusal_is_reported_again_with_the_reason_of_the_api() -> None:
    step = step_after(REFUSED)
    assert isinstance(step, Stop)
    assert type(step.error) is QwenImageContentPolicyError
    assert str(step.error) == "Image task n43 failed: no."


def test_two_records_of_the_same_submissions_are_counted_once() -> None:
    first = Submit(spent=5.0, charged=5.0, server_errors=1, notice="one", gives_up=True)
    second = Submit(spent=2.5, charged=2.5, server_errors=1, notice="other")
    assert combined(first, second) == first
    assert combined(Submit(), first) == first


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
