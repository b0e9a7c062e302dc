"""Reads from a URL how long it says that it is valid, without its signature. No I/O."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from urllib.parse import parse_qsl, urlencode, urlsplit

# The name of a parameter may be a token itself, if the query is nothing else.
_PLAIN_NAME = re.compile(r"[A-Za-z][A-Za-z_.-]{0,30}")
OTHER_NAME = "(other)"
_MOST_PARAMETERS = 20
# By the service that signs: AWS, Google and Alibaba count seconds; AWS's older form, CloudFront and JWTs have epoch
# seconds, Azure has a date.
_DURATIONS = frozenset({"x-amz-expires", "x-goog-expires", "x-oss-expires"})
_EPOCHS = frozenset({"expires", "exp", "expiry"})
_DATES = frozenset({"se"})
# Ten years; a greater number is something else.
MAX_LIFETIME_SECONDS = 10 * 366 * 86_400


def query_names(url: str) -> tuple[str, ...]:
    """Return the names of a URL's query parameters, as far as they cannot be secrets themselves."""
    names = (name if value and _PLAIN_NAME.fullmatch(name) else OTHER_NAME for name, value in _parameters(url))
    return tuple(dict.fromkeys(names))[:_MOST_PARAMETERS]


def stated_lifetime(url: str, now: float) -> float | None:
    """Return for how many seconds a URL says that it is valid, or None if it does not say so.

    Args:
        url: The URL.
        now: The current time in epoch seconds.
    """
    for name, value in _parameters(url):
        seconds = _seconds(name.lower(), value, now)
        if seconds is not None and 0 < seconds <= MAX_LIFETIME_SECONDS:
            return seconds
    return None


def query_of(names: tuple[str, ...], lifetime: float | None, now: float) -> str:
    """Return a query that `query_names` and `stated_lifetime` read as these values; "" for no names.

    Args:
        names: The names of the parameters.
        lifetime: For how many seconds the URL is to be valid; None if the query is not to say so.
        now: The current time in epoch seconds.
    """
    return urlencode([(name, _value(name.lower(), lifetime, now)) for name in names if name != OTHER_NAME])


def _parameters(url: str) -> list[tuple[str, str]]:
    try:
        return parse_qsl(urlsplit(url).query, keep_blank_values=True)
    except ValueError:
        return []


def _seconds(name: str, value: str, now: float) -> float | None:
    try:
        if name in _DURATIONS:
            return float(value)
        if name in _EPOCHS:
            return float(value) - now
        if name in _DATES:
            moment = datetime.fromisoformat(value)
            return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() - now
    except (ValueError, OverflowError):
        return None
    return None


def _value(name: str, lifetime: float | None, now: float) -> str:
    if lifetime is None:
        return "0"
    if name in _DURATIONS:
        return f"{lifetime:.0f}"
    if name in _EPOCHS:
        return f"{now + lifetime:.0f}"
    if name in _DATES:
        return datetime.fromtimestamp(now + lifetime, UTC).isoformat(timespec="seconds")
    return "0"
