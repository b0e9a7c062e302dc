"""Reads numbers of a connection's extra, which people and forms write in several ways. No I/O."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from airflow_provider_qwenimage.rules.arguments import MAX_SECONDS
from airflow_provider_qwenimage.text.messages import safe_repr, shorten


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
