"""Decides the geometry of the chart of credits by day and DAG, in the units of its SVG. No I/O.

The template draws it. It holds no markup: the ids of DAGs are texts, which the template escapes.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date

# As many as can be told apart by their colors; the style sheet has one for each, and one for the others.
MOST_SERIES = 8

WIDTH = 960
HEIGHT = 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 8, 12, 28
_MOST_TICKS = 5
_LABELED_DAYS = 10
_BAR_SHARE = 0.72
# A bar that is smaller could not be seen.
_LEAST_HEIGHT = 0.75
# Nobody has spent as much: it is not written with all of its digits.
_MOST_WRITTEN = 1e15


@dataclass(frozen=True)
class Series:
    """The DAG of one color.

    Attributes:
        number: Of its color, counted from 0.
        name: The id of the DAG. The last may be all others, with a name that has spaces, as no id has.
        amounts: Its credits of each day.
    """

    number: int
    name: str
    amounts: tuple[float, ...]

    @property
    def total(self) -> float:
        """The credits of all days."""
        return math.fsum(self.amounts)


@dataclass(frozen=True)
class Bar:
    """The credits of a DAG on a day."""

    series: Series
    day: str
    amount: float
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Label:
    """A text at an axis."""

    x: float
    y: float
    text: str


@dataclass(frozen=True)
class Chart:
    """The chart.

    Attributes:
        days: Its days, as YYYY-MM-DD.
        series: The DAGs, that with the most credits first.
        bars: The bars, from the lowest to the highest of each day.
        ticks: The numbers at the axis of credits, each at a line through the chart.
        labels: Some of the days, at their axis.
    """

    days: tuple[str, ...]
    series: tuple[Series, ...]
    bars: tuple[Bar, ...]
    ticks: tuple[Label, ...]
    labels: tuple[Label, ...]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = _LEFT
    right: int = WIDTH - _RIGHT

    @property
    def total(self) -> float:
        """All credits."""
        return math.fsum(one.total for one in self.series)

    def total_of_day(self, index: int) -> float:
        """Return the credits of a day."""
        return math.fsum(one.amounts[index] for one in self.series)


def chart_of(days: Sequence[date], amounts: Mapping[tuple[str, str], float]) -> Chart:
    """Return the chart of some days.

    Args:
        days: The days, in order.
        amounts: Credits by day, as YYYY-MM-DD, and DAG. What is no amount above 0 of one of the days is left out.
    """
    names = tuple(day.isoformat() for day in days)
    series = _series(names, amounts)
    highest = max((math.fsum(one.amounts[index] for one in series) for index in range(len(names))), default=0.0)
    step = _step(highest)
    top = max(step, math.ceil(round(highest / step, 9)) * step)
    scale = (HEIGHT - _TOP - _BOTTOM) / top
    floor = HEIGHT - _BOTTOM
    slot = (WIDTH - _LEFT - _RIGHT) / max(1, len(names))
    bars = []
    for index, name in enumerate(names):
        y = float(floor)
        for one in series:
            if one.amounts[index] > 0:
                height = max(_LEAST_HEIGHT, one.amounts[index] * scale)
                y -= height
                x = _LEFT + (index + (1 - _BAR_SHARE) / 2) * slot
                bars.append(Bar(one, name, one.amounts[index], _at(x), _at(y), _at(slot * _BAR_SHARE), _at(height)))
    ticks = tuple(
        Label(_LEFT - 8, _at(floor - number * step * scale), amount_text(number * step))
        for number in range(round(top / step) + 1)
    )
    every = max(1, math.ceil(len(names) / _LABELED_DAYS))
    # Counted from the end, because today is what people look for.
    labels = tuple(
        Label(_at(_LEFT + (index + 0.5) * slot), HEIGHT - 8, f"{days[index].day} {days[index]:%b}")
        for index in range(len(names) - 1, -1, -every)
    )
    return Chart(names, series, tuple(bars), ticks, labels[::-1])


def amount_text(amount: float) -> str:
    """Return credits as a text: 1,234.5."""
    if amount >= _MOST_WRITTEN:
        return f"{amount:.3g}"
    text = f"{amount:,.2f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def _series(days: Sequence[str], amounts: Mapping[tuple[str, str], float]) -> tuple[Series, ...]:
    positions = {day: index for index, day in enumerate(days)}
    by_dag: dict[str, list[float]] = defaultdict(lambda: [0.0] * len(days))
    for (day, dag_id), amount in amounts.items():
        if day in positions and math.isfinite(amount) and amount > 0:
            by_dag[dag_id][positions[day]] += amount
    ordered = sorted(by_dag.items(), key=lambda item: (-math.fsum(item[1]), item[0]))
    # A single other one is named.
    most = len(ordered) if len(ordered) <= MOST_SERIES + 1 else MOST_SERIES
    series = [Series(number, name, tuple(values)) for number, (name, values) in enumerate(ordered[:most])]
    if ordered[most:]:
        sums = tuple(math.fsum(values[index] for _, values in ordered[most:]) for index in range(len(days)))
        series.append(Series(MOST_SERIES, f"{len(ordered) - most} other DAGs", sums))
    return tuple(series)


def _step(highest: float) -> float:
    """Return the distance of the ticks: 1, 2 or 5 times a power of ten, and at least 1."""
    if highest <= _MOST_TICKS:
        return 1.0
    power = 10.0 ** math.floor(math.log10(highest / _MOST_TICKS))
    return next(step * power for step in (1, 2, 5, 10) if step * power * _MOST_TICKS >= highest * (1 - 1e-9))


def _at(value: float) -> float:
    return round(value, 2)
