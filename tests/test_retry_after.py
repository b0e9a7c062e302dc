"""`Retry-After` becomes a reasonable number of seconds, whoever wrote it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_qwenimage.rules.answers import read_retry_after

DAY = 86_400.0


@pytest.fixture(params=["UTC", "Asia/Shanghai", "America/Los_Angeles"])
def _zone(request: pytest.FixtureRequest) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", request.param)
        time.tzset()
        yield
    time.tzset()


def assert_is_soon(moment: str) -> None:
    seconds = read_retry_after({"retry-after": moment})
    assert seconds is not None
    # A wrong time zone would add at least half an hour.
    assert 0 < seconds <= 300


@pytest.mark.parametrize(
    "form",
    [
        "%a, %d %b %Y %H:%M:%S GMT",
        "%a, %d %b %Y %H:%M:%S",
        "%a, %d %b %Y %H:%M:%S UTC",
        "%a, %d %b %Y %H:%M:%S Z",
        "%a, %d %b %Y %H:%M:%S +0000",
        "%A, %d-%b-%y %H:%M:%S GMT",
        "%A, %d-%b-%y %H:%M:%S",
        "%a %b %d %H:%M:%S %Y",
        "%d %b %Y %H:%M:%S",
    ],
)
@pytest.mark.usefixtures("_zone")
def test_a_date_is_utc_in_every_form_of_http_and_every_time_zone_of_the_worker(form: str) -> None:
    assert_is_soon((datetime.now(UTC) + timedelta(seconds=300)).strftime(form))


def test_a_numeric_offset_is_applied() -> None:
    there = timezone(timedelta(hours=8))
    assert_is_soon((datetime.now(there) + timedelta(seconds=300)).strftime("%a, %d %b %Y %H:%M:%S %z"))


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0.0),
        ("30", 30.0),
        (" 30 ", 30.0),
        ("0000000000030", 30.0),
        ("86401", DAY),
        ("9" * 5000, DAY),
        ("Thu, 26 Nov 2099 07:28:00 GMT", DAY),
        ("Thu, 26 Nov 1999 07:28:00 GMT", 0.0),
        ("", None),
        ("-5", None),
        ("1e9", None),
        ("30.5", None),
        ("nan", None),
        ("inf", None),
        ("٣", None),
        ("30, 60", None),
        ("soon", None),
        ("Thu, 99 Foo 2026 99:99:99 GMT", None),
        ("Thu, 26 Nov 99999999999 07:28:00 GMT", None),
    ],
)
def test_odd_values_are_bounded_or_ignored(value: str, seconds: float | None) -> None:
    assert read_retry_after({"retry-after": value}) == seconds
    assert read_retry_after({}) is None


@given(st.one_of(st.text(max_size=50), st.datetimes().map(str), st.timedeltas().map(str), st.floats().map(str)))
def test_any_value_is_read_as_seconds_within_a_day_or_ignored(value: str) -> None:
    seconds = read_retry_after({"retry-after": value})
    assert seconds is None or 0 <= seconds <= timedelta(days=1).total_seconds()
