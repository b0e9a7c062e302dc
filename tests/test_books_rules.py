"""The rules of the books: what a row may become, what it counts for, and in which day and month."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from airflow_provider_qwenimage.rules.book_rows import BookRow, BookStatus, Change
from airflow_provider_qwenimage.rules.budgets import Refusal, budget_error, is_nearly_spent, nearly_spent, periods_of
from airflow_provider_qwenimage.text.messages import shown_credits

NOON = datetime.fromisoformat("2026-11-27T12:00")
ZONES = st.none() | st.integers(-23 * 60, 23 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
MOMENTS = st.datetimes(NOON.replace(year=1990), NOON.replace(year=2100), timezones=ZONES)
CREDITS = st.integers(1, 10**9).map(lambda millionths: millionths / 1e6)
CHANGES = st.builds(
    Change,
    status=st.sampled_from(BookStatus),
    submission_id=st.just("a" * 32),
    credits_consumed=st.none() | st.floats(allow_nan=True),
    image_task_id=st.none() | st.text(),
    path=st.none() | st.text(),
    sha256=st.none() | st.text(),
)
ENDED = {BookStatus.DONE, BookStatus.FAILED, BookStatus.WITHDRAWN}
# How much is known: a row never goes back.
RANKS = {BookStatus.RESERVED: 0, BookStatus.UNKNOWN: 1, BookStatus.SUBMITTED: 2} | dict.fromkeys(ENDED, 3)


def new_row() -> BookRow:
    return BookRow(
        submission_id="a" * 32,
        account="qwen",
        status=BookStatus.RESERVED,
        credits_reserved=5.0,
        reserved_at=NOON,
    )


@given(MOMENTS)
@example(datetime.fromisoformat("2024-02-29T23:59:59.999999"))
@example(datetime(2026, 12, 31, 23, 59, tzinfo=timezone(timedelta(hours=-1))))
def test_a_moment_is_in_one_day_and_one_month_of_utc(moment: datetime) -> None:
    utc = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    day, month = periods_of(moment)
    assert day.key == utc.date().isoformat()
    assert month.key == day.key[:7]
    assert utc < day.ends <= utc + timedelta(days=1)
    assert day.ends.timestamp() % 86_400 == 0
    assert utc < month.ends <= utc + timedelta(days=31)
    assert day.ends <= month.ends
    assert (month.ends.day, month.ends.time()) == (1, day.ends.time())
    # The next ones begin where these end, and there is nothing between them.
    for index, period in enumerate((day, month)):
        assert periods_of(period.ends)[index].key != period.key
        assert periods_of(period.ends - timedelta(microseconds=1))[index].key == period.key


@given(CREDITS, st.lists(CREDITS, min_size=1, max_size=30))
@example(2.0, [0.1] * 20)
@example(3.0, [0.3] * 10)
def test_one_of_all_reservations_reports_that_a_budget_is_nearly_spent(limit: float, amounts: list[float]) -> None:
    used, reports = 0.0, 0
    for amount in amounts:
        if used + amount <= limit:
            # As the database stores it.
            used = round(used + amount, 6)
            reports += is_nearly_spent(limit, used - amount, used)
    assert reports == (used >= round(limit * 0.8, 6))


@given(limit=CREDITS, used=CREDITS, price=st.floats(5, 1000))
def test_as_many_images_as_are_left_fit_and_one_more_does_not(limit: float, used: float, price: float) -> None:
    refusal = Refusal(periods_of(NOON)[0], limit, used, price)
    images = refusal.images_left
    assert refusal.left >= 0
    assert images * price <= refusal.left + 2e-6
    assert (images + 1) * price > refusal.left


@given(st.lists(CHANGES, max_size=6))
def test_a_row_only_moves_on_and_what_is_known_stays_known(changes: list[Change]) -> None:
    row = new_row()
    for change in changes:
        new = row.changed(change)
        assert row.status is not None
        assert new.status is not None
        assert RANKS[new.status] >= RANKS[row.status]
        if row.status in ENDED:
            assert new.status is row.status
        for name in ("image_task_id", "credits_consumed", "path", "sha256"):
            assert getattr(row, name) is None or getattr(new, name) is not None
        assert new.changed(change) == new, "a change that is written twice changes nothing"
        assert (new.submission_id, new.account, new.credits_reserved, new.reserved_at) == (
            *(row.submission_id, row.account),
            *(row.credits_reserved, row.reserved_at),
        )
        row = new


@given(st.lists(CHANGES, max_size=6))
def test_a_row_counts_what_is_known_and_never_less_than_nothing(changes: list[Change]) -> None:
    row = new_row()
    for change in changes:
        row = row.changed(change)
    expected = row.credits_reserved
    if row.status is BookStatus.WITHDRAWN:
        expected = 0.0
    elif row.status in ENDED and row.credits_consumed is not None:
        expected = row.credits_consumed
    assert row.counted == expected
    assert 0 <= row.counted <= 10**9


@given(CHANGES, CHANGES)
def test_two_changes_that_are_queued_end_as_one_after_the_other(first: Change, second: Change) -> None:
    row = new_row()
    assert row.changed(second.after(first)) == row.changed(first).changed(second)


def test_large_amounts_are_shown_with_all_of_their_digits() -> None:
    day, _ = periods_of(NOON)
    refusal = Refusal(day, limit=12_345_678.0, used=12_345_677.4, price=5.25)
    assert (
        "has 0.6 credits left of its credits_per_day = 12345678 for 2026-11-27 (UTC), and an image costs 5.25. Nothing "
        "was submitted. Spent or reserved by: foxes 12345672.4, cats 5."
    ) in str(budget_error("qwen", refusal, [("foxes", 12_345_672.4), ("cats", 5.0)], NOON.replace(tzinfo=UTC)))
    assert nearly_spent("qwen", refusal).startswith("12345677.4 of the 12345678 credits")


@pytest.mark.parametrize(
    ("amount", "text"),
    [(0, "0"), (5, "5"), (5.0, "5"), (0.1 + 0.2, "0.3"), (1e6, "1000000"), (999_999.999999, "999999.999999")],
)
def test_an_amount_of_credits_is_shown_as_a_decimal_number(amount: float, text: str) -> None:
    assert shown_credits(amount) == text
