"""Reads the extra of a connection, which people and forms write in several ways. No I/O."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from airflow_provider_qwenimage.rules.arguments import MAX_SECONDS
from airflow_provider_qwenimage.text.messages import safe_repr, shorten

BOOKS_CONN_ID = "books_conn_id"
CREDITS_PER_DAY = "credits_per_day"
CREDITS_PER_MONTH = "credits_per_month"
KNOWN_EXTRA = (
    "timeout_seconds",
    "max_requests_per_second",
    "verify",
    BOOKS_CONN_ID,
    CREDITS_PER_DAY,
    CREDITS_PER_MONTH,
)


def read_extra(extra: str | None) -> Mapping[str, Any]:
    """Return the extra of a connection as an object; an empty one if there is none.

    Raises:
        ValueError: If it is not a JSON object; the message continues the sentence "Connection … ".
    """
    if not extra or not extra.strip():
        return {}
    try:
        values = json.loads(extra)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise ValueError(
            f"has an extra that is not a JSON object; it must be an object with any of {', '.join(KNOWN_EXTRA)}, "
            'such as {"timeout_seconds": 30}.'
        )
    return values


def positive_number(extra: Mapping[str, Any], name: str, default: Any, most: float = math.inf) -> Any:
    """Return a number above 0, or the default if the extra has none.

    Args:
        extra: The connection's extra.
        name: The key.
        default: Returned for null and "", which the connection form sends for an empty field.
        most: The highest allowed number.

    Raises:
        ValueError: If it is not a number above 0; the message continues the sentence "Connection … ".
    """
    value = extra.get(name)
    if value is None or value == "":
        return default
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    # A rate below this would wait longer than any clock can.
    if not 1 / MAX_SECONDS <= number <= most or math.isinf(number):
        up_to = f", at most {most}" if most < math.inf else ""
        raise ValueError(f"has {name} = {shorten(safe_repr(value))} in its extra; it must be a number above 0{up_to}.")
    return number
