"""The polling decision: pace, bounds and what ends a wait."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_qwenimage.contract import TaskSnapshot, TaskStatus
from airflow_provider_qwenimage.exceptions import (
    QwenImageAuthError,
    QwenImageBadRequestError,
    QwenImageConnectionError,
    QwenImageContentPolicyError,
    QwenImageContractError,
    QwenImageCreditsError,
    QwenImageError,
    QwenImageNotFoundError,
    QwenImageRateLimitError,
    QwenImageServerError,
    QwenImageTimeoutError,
)
from airflow_provider_qwenimage.rules.polling import (
    Decision,
    Done,
    GiveUp,
    PollPolicy,
    PollState,
    Wait,
    decide,
    delay_before_deferral,
)

NOW = 1_000_000.0
PENDING = TaskSnapshot(task_id="n43", status=TaskStatus.PENDING)
DRAWING = TaskSnapshot(task_id="n43", status=TaskStatus.IN_PROGRESS)
DONE = TaskSnapshot(task_id="n43", status=TaskStatus.SUCCESS, image_urls=("https://cdn.example.com/1.png",))
TRANSIENT = QwenImageServerError("The API is in trouble.", code=503)


def middle() -> float:
    return 0.5


def after(
    outcome: TaskSnapshot | QwenImageError,
    policy: PollPolicy | None = None,
    state: PollState | None = None,
    now: float = NOW,
) -> Decision:
    return decide(policy or PollPolicy(), state or PollState(), outcome, image_task_id="n43", now=now, draw=middle)


def waits(*outcomes: TaskSnapshot | QwenImageError, policy: PollPolicy | None = None) -> list[Decision]:
    state, decisions = PollState(), []
    for outcome in outcomes:
        decision = after(outcome, policy, state)
        decisions.append(decision)
        if isinstance(decision, Wait):
            state = decision.state
    return decisions


def delays(decisions: list[Decision]) -> list[float]:
    return [round(decision.delay, 2) for decision in decisions if isinstance(decision, Wait)]


def test_the_interval_grows_from_five_to_ten_seconds() -> None:
    assert delays(waits(*[DRAWING] * 7)) == [5.0, 6.0, 7.2, 8.64, 10.0, 10.0, 10.0]


@pytest.mark.parametrize(("start", "slowest"), [(0.5, 1.0), (2.0, 4.0), (8.0, 10.0), (10.0, 10.0), (30.0, 30.0)])
def test_the_interval_never_grows_past_twice_itself_or_ten_seconds(start: float, slowest: float) -> None:
    assert delays(waits(*[DRAWING] * 40, policy=PollPolicy(poll_interval=start)))[-1] == slowest


@given(polls=st.integers(0, 10**9), draw=st.floats(0, 1))
def test_jitter_stays_within_a_fifth(polls: int, draw: float) -> None:
    policy = PollPolicy()
    plain = policy.interval(polls, middle)
    assert 0.8 * plain - 1e-9 <= policy.interval(polls, lambda: draw) <= 1.2 * plain + 1e-9
    assert 4.0 - 1e-9 <= policy.interval(polls, lambda: draw) <= 12.0 + 1e-9


def test_success_ends_the_wait_even_after_the_deadline() -> None:
    assert after(DONE, PollPolicy(end_time=NOW - 5)) == Done(DONE)


def test_failed_ends_the_wait_with_the_apis_reason() -> None:
    failed = TaskSnapshot(task_id="n43", status=TaskStatus.FAILED, error_message="Content policy violation detected")
    decision = after(failed)
    assert isinstance(decision, GiveUp)
    assert isinstance(decision.error, QwenImageContentPolicyError)
    assert decision.error.snapshot is failed


@pytest.mark.parametrize(
    "error",
    [
        TRANSIENT,
        QwenImageConnectionError("reset"),
        QwenImageContractError("HTML"),
        QwenImageRateLimitError("slow"),
        QwenImageBadRequestError("no", code=400),
        QwenImageAuthError("no", code=401),
        QwenImageAuthError("no", code=403),
        QwenImageCreditsError("no", code=402),
        QwenImageNotFoundError("no", code=404),
    ],
)
def test_no_class_of_error_ends_the_wait_before_its_bound(error: QwenImageError) -> None:
    decisions = waits(*[error] * 9, DRAWING, *[error] * 9, DONE)
    assert [type(decision) for decision in decisions] == [Wait] * 19 + [Done]


def test_ten_failures_in_a_row_end_the_wait_with_the_last_error() -> None:
    last = waits(*[TRANSIENT] * 10)[-1]
    assert isinstance(last, GiveUp)
    assert type(last.error) is QwenImageServerError
    assert last.error.code == 503
    assert "after 10 failed reads in a row: The API is in trouble." in str(last.error)
    assert str(TRANSIENT) == "The API is in trouble."


@pytest.mark.parametrize("error", [QwenImageAuthError("no", advice="Correct it."), QwenImageNotFoundError("no")])
def test_a_wait_that_gives_up_may_be_retried_whatever_its_reads_ended_in(error: QwenImageError) -> None:
    last = waits(error, policy=PollPolicy(max_consecutive_failures=1))[0]
    assert isinstance(last, GiveUp)
    assert type(last.error) is type(error)
    assert not last.error.permanent
    assert last.error.advice == error.advice
    assert error.permanent


def test_the_notice_of_a_failed_read_has_no_advice() -> None:
    (wait,) = waits(QwenImageAuthError("The API answered with code 401: no.", advice="Correct the key."))
    assert isinstance(wait, Wait)
    assert str(wait.notice).endswith("The API answered with code 401: no.")


def test_the_bound_on_failures_can_be_set() -> None:
    assert isinstance(waits(TRANSIENT, policy=PollPolicy(max_consecutive_failures=1))[0], GiveUp)


def test_an_unknown_status_is_logged_and_polled_again_within_the_same_limit() -> None:
    odd = TaskSnapshot(task_id="n43", status="ON_HOLD\n")
    decisions = waits(*[odd] * 10)
    assert isinstance(decisions[0], Wait)
    assert decisions[0].notice is not None
    assert "'ON_HOLD'" in decisions[0].notice
    assert isinstance(decisions[8], Wait)
    assert isinstance(decisions[9], GiveUp)
    assert isinstance(decisions[9].error, QwenImageContractError)


def test_retry_after_holds_the_next_poll_back() -> None:
    assert delays(waits(QwenImageRateLimitError("slow", retry_after=42.0))) == [42.0]
    assert delays(waits(QwenImageRateLimitError("slow", retry_after=1.0))) == [5.0]


def test_the_deadline_ends_the_wait() -> None:
    policy = PollPolicy(end_time=NOW)
    for outcome in (DRAWING, TRANSIENT):
        decision = after(outcome, policy)
        assert isinstance(decision, GiveUp)
        assert isinstance(decision.error, QwenImageTimeoutError)
        assert "n43 did not end before the deadline 1970-01-12T13:46:40Z" in str(decision.error)


def test_the_last_poll_is_at_the_deadline_not_after_it() -> None:
    policy = PollPolicy(end_time=NOW + 3)
    assert delays([after(DRAWING, policy)]) == [3.0]
    assert delays([after(QwenImageRateLimitError("slow", retry_after=60.0), policy)]) == [3.0]


def test_a_status_is_logged_once_and_a_failure_each_time() -> None:
    notices = [
        decision.notice
        for decision in waits(PENDING, PENDING, DRAWING, DRAWING, TRANSIENT, TRANSIENT)
        if isinstance(decision, Wait)
    ]
    assert notices[:4] == ["Image task n43 is PENDING.", None, "Image task n43 is IN_PROGRESS.", None]
    assert all(notice and "of at most 10 in a row" in notice for notice in notices[4:])


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"poll_interval": 0}, "poll_interval"),
        ({"poll_interval": -1.0}, "poll_interval"),
        ({"poll_interval": float("nan")}, "poll_interval"),
        ({"max_consecutive_failures": 0}, "max_consecutive_failures"),
    ],
)
def test_a_bad_bound_is_refused_by_name(arguments: dict[str, float], name: str) -> None:
    with pytest.raises(ValueError, match=rf"^{name} is .*it must be"):
        PollPolicy(**arguments)


@given(
    outcomes=st.lists(st.sampled_from([PENDING, DRAWING, TRANSIENT, QwenImageRateLimitError("slow", retry_after=9.0)])),
    timeout=st.floats(0.1, 100.0),
    draw=st.floats(0, 1),
)
def test_no_wait_outlives_its_deadline(
    outcomes: list[TaskSnapshot | QwenImageError], timeout: float, draw: float
) -> None:
    policy = PollPolicy(end_time=NOW + timeout)
    state, now = PollState(), NOW
    for outcome in outcomes:
        decision = decide(policy, state, outcome, image_task_id="n43", now=now, draw=lambda: draw)
        if not isinstance(decision, Wait):
            break
        state, now = decision.state, now + decision.delay
        assert now <= NOW + timeout + 1e-6


def polls_in_the_worker(defer_after: float, outcome: TaskSnapshot | QwenImageError, **policy: Any) -> list[float]:
    """Return when a wait polls before it is deferred, if reads take no time."""
    limits, state, now, polls = PollPolicy(**policy), PollState(), NOW, []
    while True:
        polls.append(now - NOW)
        decision = after(outcome, limits, state, now)
        if not isinstance(decision, Wait):
            return polls
        delay = delay_before_deferral(decision, now, NOW + defer_after)
        if delay is None:
            return polls
        state, now = decision.state, now + delay


@pytest.mark.parametrize(
    ("defer_after", "expected"),
    [
        (0, [0]),
        (2, [0, 2]),
        (5, [0, 5]),
        (8, [0, 4, 8]),
        (10, [0, 5, 10]),
        (15, [0, 5, 10, 15]),
        (30, [0, 5, 11, 18.2, 24.1, 30]),
    ],
)
def test_the_last_poll_in_the_worker_comes_when_the_wait_is_deferred(defer_after: float, expected: list[float]) -> None:
    assert [round(at, 2) for at in polls_in_the_worker(defer_after, DRAWING)] == expected


@pytest.mark.parametrize(
    ("defer_after", "expected"),
    [(0, [0]), (2, [0]), (5, [0, 5]), (7, [0, 7]), (8, [0, 5]), (12, [0, 5, 12]), (16.5, [0, 5, 11])],
)
def test_a_failed_read_in_the_worker_is_not_repeated_sooner_than_elsewhere(
    defer_after: float, expected: list[float]
) -> None:
    assert [round(at, 2) for at in polls_in_the_worker(defer_after, TRANSIENT)] == expected


def test_a_wait_that_the_api_asks_to_slow_down_is_not_sooner_in_the_worker() -> None:
    slow = QwenImageRateLimitError("slow", code=429, retry_after=30)
    assert polls_in_the_worker(20, slow) == [0]
    assert polls_in_the_worker(40, slow) == [0, 40]


def test_the_deadline_ends_a_wait_in_the_worker() -> None:
    assert polls_in_the_worker(3600, DRAWING, end_time=NOW + 12) == [0, 5, 11, 12]
    assert polls_in_the_worker(12, DRAWING, end_time=NOW + 12) == [0, 5, 8.5, 12]


@given(
    left=st.floats(-1e9, 1e9) | st.just(math.inf),
    delay=st.floats(0, 1e9),
    failures=st.integers(0, 3),
)
def test_a_poll_in_the_worker_never_comes_after_the_deferral(left: float, delay: float, failures: int) -> None:
    seconds = delay_before_deferral(Wait(delay, PollState(failures=failures)), 0.0, left)
    if seconds is None:
        assert left < delay or left <= 0
        return
    assert seconds <= left
    assert seconds >= (delay if failures else min(delay / 2, left))
    assert seconds <= (1.5 * delay if failures else delay)
