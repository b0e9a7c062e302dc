"""Format the results of a benchmark: tables, quantiles and the machine that it ran on."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Sequence
from importlib.metadata import version


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], *, labels: int = 1) -> str:
    """Return an aligned table in Markdown.

    Args:
        rows: The formatted cells of each row.
        labels: How many of the first columns are texts, aligned left; the others are numbers, aligned right.
    """
    lines = [list(headings), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headings))]
    rule = [
        "-" * width if column < labels else "-" * (width - 1) + ":" for column, width in enumerate(map(_wide, widths))
    ]
    return "\n".join(_line(line, widths, labels) for line in (lines[0], rule, *lines[1:]))


def quantile(values: Sequence[float], share: float) -> float:
    """Return the quantile of values in any order for a share from 0 to 1, or NaN if there are no values."""
    if not values:
        return float("nan")
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def machine() -> str:
    """Return one line about the machine and its current load."""
    load = " ".join(f"{number:.1f}" for number in os.getloadavg())
    return (
        f"{os.cpu_count()} cores ({platform.machine()}), load average {load}, Python {platform.python_version()}, "
        f"Airflow {version('apache-airflow')}, aiohttp {version('aiohttp')}"
    )


def _wide(width: int) -> int:
    # Markdown requires three dashes.
    return max(width, 3)


def _line(cells: Sequence[str], widths: Sequence[int], labels: int) -> str:
    padded = [
        cell.ljust(_wide(width)) if column < labels else cell.rjust(_wide(width))
        for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return f"| {' | '.join(padded)} |"
