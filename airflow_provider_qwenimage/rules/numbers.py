"""Reads numbers of any kind: Python's, numpy's, decimals, fractions and the texts of integers. No I/O."""

from __future__ import annotations

import math
import operator
import re
from contextlib import suppress
from decimal import Decimal
from numbers import Integral, Real
from typing import Any

_WHOLE_DECIMAL = re.compile(r"([+-]?\d+)\.0*", re.ASCII)


def number_of(value: object) -> float:
    """Return a number as a float.

    Raises:
        TypeError: If the value is not a number, or is a boolean.
        ValueError: If it is a decimal without a value.
        OverflowError: If it is too large.
    """
    # Python takes numpy's timedelta for a number, whatever its unit.
    is_duration = getattr(getattr(value, "dtype", None), "kind", None) == "m"
    if isinstance(value, bool) or is_duration or not isinstance(value, Real | Decimal):
        raise TypeError
    return float(value)


def number_or_nan(value: object) -> float:
    """Return a number as a float, or NaN for anything else."""
    try:
        return number_of(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def integer_of(value: object) -> int:
    """Return a number without a fraction as an integer.

    Raises:
        TypeError: If the value is not a number, is a boolean, or has a fraction.
        ValueError: If it is a decimal without a value.
        OverflowError: If it is too large.
    """
    if isinstance(value, bool):
        raise TypeError
    # The `__index__` of any class may raise anything.
    with suppress(Exception):
        return operator.index(value)  # type: ignore[arg-type]  # it raises TypeError for anything else
    if not number_of(value).is_integer():
        raise TypeError
    # A Decimal or a Fraction may have more digits than a float.
    number: Any = value
    whole = int(number)
    if whole != number:
        raise TypeError
    return whole


def integer_of_text(text: str) -> int:
    """Return the integer that a text is, even if it is written as a decimal without a fraction.

    Raises:
        ValueError: If it is not the text of an integer.
    """
    whole = _WHOLE_DECIMAL.fullmatch(text.strip())
    return int(whole[1] if whole else text.strip())


def text_of_number(value: object) -> str | None:
    """Return the text of a number, or None for anything else, NaN and the infinities."""
    number: Any = value
    # The text of an enumeration's member is its name.
    return str(int(number) if isinstance(value, Integral) else number) if math.isfinite(number_or_nan(value)) else None
