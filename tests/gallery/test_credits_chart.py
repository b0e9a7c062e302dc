"""The chart of credits: each bar has the height of its credits, at the place of its day, whatever the numbers are."""

from __future__ import annotations

import math
from datetime import date, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_qwenimage.plugin.credits_chart import MOST_SERIES, amount_text, chart_of

DAYS = [date(2026, 11, 1) + timedelta(days=index) for index in range(30)]
NAMES = [day.isoformat() for day in DAYS]


def test_bars_stand_on_each_other_and_are_as_high_as_their_credits() -> None:
    chart = chart_of(DAYS, {(NAMES[0], "foxes"): 30.0, (NAMES[0], "hares"): 10.0, (NAMES[29], "hares"): 40.0})
    lower, upper, last = chart.bars
    assert [one.series.name for one in chart.bars] == ["hares", "foxes", "hares"]
    assert upper.y + upper.height == pytest.approx(lower.y, abs=0.02)
    assert upper.height == pytest.approx(3 * lower.height, abs=0.05)
    assert last.height == pytest.approx(lower.height + upper.height, abs=0.05)
    # The highest tick is the highest bar.
    assert chart.ticks[-1].text == "40"
    assert last.y == pytest.approx(chart.ticks[-1].y, abs=0.02)
    assert lower.y + lower.height == pytest.approx(chart.ticks[0].y, abs=0.02)
    assert lower.x < upper.x + 1 < last.x


def test_the_dag_that_spent_most_comes_first_and_the_small_ones_are_one() -> None:
    amounts = {(NAMES[0], f"dag_{number:02}"): float(number) for number in range(1, 13)}
    chart = chart_of(DAYS, amounts)
    assert [one.name for one in chart.series] == [f"dag_{number:02}" for number in range(12, 4, -1)] + ["4 other DAGs"]
    assert chart.series[-1].total == 1 + 2 + 3 + 4
    assert [one.number for one in chart.series] == list(range(MOST_SERIES + 1))
    assert chart.total == chart.total_of_day(0) == sum(range(13))


def test_a_single_other_dag_is_named() -> None:
    chart = chart_of(DAYS, {(NAMES[0], f"dag_{number}"): 1.0 for number in range(MOST_SERIES + 1)})
    assert all(one.name.startswith("dag_") for one in chart.series)


def test_the_last_day_has_a_label() -> None:
    chart = chart_of(DAYS, {})
    assert chart.labels[-1].text == "30 Nov"
    assert len(chart.labels) == 10
    assert (chart.bars, chart.series) == ((), ())
    assert [tick.text for tick in chart.ticks] == ["0", "1"]


@pytest.mark.parametrize(
    ("highest", "ticks"),
    [
        (0.5, ["0", "1"]),
        (5, ["0", "1", "2", "3", "4", "5"]),
        (7, ["0", "2", "4", "6", "8"]),
        (100, ["0", "20", "40", "60", "80", "100"]),
        (101, ["0", "50", "100", "150"]),
        (12_345, ["0", "5,000", "10,000", "15,000"]),
    ],
)
def test_ticks_are_round_numbers(highest: float, ticks: list[str]) -> None:
    assert [tick.text for tick in chart_of(DAYS, {(NAMES[3], "foxes"): highest}).ticks] == ticks


def test_what_is_no_amount_of_a_day_is_left_out() -> None:
    wrong = {
        ("2026-10-31", "foxes"): 5.0,
        ("yesterday", "foxes"): 5.0,
        (NAMES[0], "foxes"): -1.0,
        (NAMES[1], "foxes"): math.nan,
        (NAMES[2], "foxes"): math.inf,
    }
    assert chart_of(DAYS, wrong).series == ()


@given(
    st.dictionaries(
        st.tuples(st.sampled_from(NAMES), st.text(max_size=3)),
        st.floats(allow_nan=True, allow_infinity=True) | st.floats(0, 1e12),
        max_size=40,
    )
)
def test_every_bar_is_within_the_chart(amounts: dict[tuple[str, str], float]) -> None:
    amounts = {key: min(amount, 1e300) for key, amount in amounts.items()}
    chart = chart_of(DAYS, amounts)
    assert len(chart.ticks) <= 7
    assert len(chart.series) <= MOST_SERIES + 1
    for bar in chart.bars:
        assert chart.left <= bar.x
        assert bar.x + bar.width <= chart.right + 0.1
        # The smallest bars are drawn higher than they are.
        assert bar.y >= -MOST_SERIES
        assert bar.y + bar.height <= chart.height
        assert bar.height > 0


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (0, "0"),
        (5.0, "5"),
        (1234.5, "1,234.5"),
        (0.333333, "0.33"),
        (100, "100"),
        (-0.001, "0"),
        (1e6, "1,000,000"),
        (1e300, "1e+300"),
    ],
)
def test_credits_are_written_shortly(amount: float, text: str) -> None:
    assert amount_text(amount) == text
