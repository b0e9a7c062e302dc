"""Reads ``--since``: how long ago, or a date. No I/O."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from airflow_provider_qwenimage.text.messages import shown

# A few digits: Python cannot go back further than the year 1.
_AGO = re.compile(r"(\d{1,4}) ?([hdw])", re.ASCII)
_UNITS = {"h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}


def read_since(text: str, now: datetime) -> datetime:
    """Return the time that ``30d``, ``12h``, ``2w`` or a date stands for.

    Args:
        text: The argument. A date, or a time without a zone, is in UTC.
        now: The time.

    Raises:
        ValueError: If it is none of them, or lies in the future.
    """
    ago = _AGO.fullmatch(text.strip().lower())
    since = None if ago else _read_time(text.strip())
    if ago:
        since = now - int(ago[1]) * _UNITS[ago[2]]
    if since is None or since > now:
        raise ValueError(
            f"--since is {shown(text)}; it must be a number of hours, days or weeks (12h, 30d, 2w), or a date in the "
            f"past ({now:%Y-%m}-01)."
        )
    return since


def _read_time(text: str) -> datetime | None:
    try:
        time = datetime.fromisoformat(text)
        return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
    except (ValueError, OverflowError):
        return None
