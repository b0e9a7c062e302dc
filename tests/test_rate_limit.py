"""The pace of a client: never above its rate, paused and slowed by a 429, and recovered by answers."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_qwenimage.rules.rate_limit import RateLimit


def send(limit: RateLimit, now: float) -> float:
    """Send as soon as allowed, and return when that was."""
    moment = now + limit.wait(now)
    limit.sent(moment)
    return moment


@given(per_second=st.floats(0.1, 1000), moments=st.lists(st.floats(0, 10), max_size=50).map(sorted))
def test_requests_never_exceed_the_rate(per_second: float, moments: list[float]) -> None:
    limit = RateLimit(per_second)
    sent: list[float] = []
    for now in moments:
        sent.append(send(limit, max([now, *sent[-1:]])))
    assert all(later - earlier >= 1 / per_second - 1e-9 for earlier, later in itertools.pairwise(sent))


def test_a_request_that_is_sent_late_does_not_bring_the_next_one_closer() -> None:
    limit = RateLimit(10)
    limit.sent(0.0)
    assert limit.wait(0.02) == pytest.approx(0.08)
    limit.sent(0.5)
    assert limit.wait(0.5) == pytest.approx(0.1)


def test_without_a_rate_no_request_waits() -> None:
    limit = RateLimit(None)
    assert limit.is_idle
    assert [send(limit, 1.0), send(limit, 1.0), send(limit, 1.0)] == [1.0, 1.0, 1.0]


def test_a_changed_rate_counts_from_the_next_request_on() -> None:
    limit = RateLimit(None)
    limit.sent(0.0)
    limit.allow(2)
    assert (limit.is_idle, limit.wait(0.0)) == (False, 0.5)
    limit.allow(None)
    assert (limit.is_idle, limit.wait(0.0)) == (True, 0.0)


@pytest.mark.parametrize(("retry_after", "seconds"), [(7.0, 7.0), (None, 1.0), (3600.0, 60.0)])
def test_a_429_holds_every_request_for_the_requested_time_up_to_a_limit(
    retry_after: float | None, seconds: float
) -> None:
    limit = RateLimit(None)
    limit.sent(0.0)
    limit.refused(0.0, 0.1, retry_after)
    assert not limit.is_idle
    assert limit.wait(0.1) == pytest.approx(seconds)


def test_a_shorter_hold_does_not_end_a_longer_one() -> None:
    limit = RateLimit(None)
    limit.refused(0.0, 0.0, 30.0)
    limit.refused(0.0, 1.0, 1.0)
    assert limit.wait(2.0) == pytest.approx(28.0)


def after_a_429(gap: float = 0.01, refusals: int = 1) -> RateLimit:
    """A client that sent every `gap` seconds until time 0, when it was refused, with a hold of a second."""
    limit = RateLimit(None)
    for number in range(50):
        limit.sent((number - 50) * gap)
    for number in range(refusals):
        limit.refused(-gap, 0.01 * number, 1.0)
    return limit


def test_after_a_hold_the_pace_is_half_the_earlier_one() -> None:
    limit = after_a_429()
    first = send(limit, 0.5)
    second = send(limit, first)
    assert first == pytest.approx(1.0)
    assert second - first == pytest.approx(0.02, rel=0.01)


def test_refusals_of_requests_that_were_under_way_together_slow_down_once() -> None:
    assert after_a_429(refusals=20).spacing == pytest.approx(after_a_429().spacing)


def test_a_refusal_after_the_hold_slows_down_again() -> None:
    limit = after_a_429()
    before = limit.spacing
    limit.sent(2.0)
    limit.refused(2.0, 2.1, 1.0)
    assert limit.spacing >= 2 * before


def test_however_many_refusals_come_requests_are_sent_every_two_seconds_at_least() -> None:
    limit = RateLimit(None)
    for number in range(50):
        limit.refused(number * 10.0, number * 10.0, 0.0)
    assert limit.spacing == 2.0


def test_answers_restore_the_pace_until_requests_no_longer_wait() -> None:
    limit = after_a_429()
    slow = limit.spacing
    limit.answered(0.5)
    assert limit.spacing == slow, "an answer from before the hold must not restore the pace"
    limit.answered(1.5)
    assert 0 < limit.spacing < slow
    for _ in range(500):
        limit.answered(2.0)
    assert limit.is_idle


def test_the_recovered_pace_never_exceeds_the_rate() -> None:
    limit = RateLimit(10)
    limit.sent(0.0)
    limit.refused(0.0, 0.1, 0.0)
    for _ in range(500):
        limit.answered(1.0)
    assert limit.spacing == 0.1
