"""Everything about the sandbox that can be set while it runs: one validated, immutable value. No I/O."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

FAULT_PATHS = ("generate", "status", "image")
WIRE_STYLES = ("http", "envelope")
DEFAULT_API_KEY = "sk-sandbox"

_INFINITY = 1e300
_MIB = 1024 * 1024
_MOST_REMEMBERED = 10_000_000


@dataclass(frozen=True)
class Kind:
    """What a setting may be, and how it is written on a command line.

    Args:
        allowed: The allowed values in words, to end the sentence "allowed is …".
        accepts: Whether a value is allowed.
        keep: Turns an allowed value into the form in which it is kept.
        from_text: Turns the text of a command line option into a value; a ValueError means that it is none.
        metavar: The value's name in ``--help``.
    """

    allowed: str
    accepts: Callable[[Any], bool]
    keep: Callable[[Any], Any]
    from_text: Callable[[str], Any]
    metavar: str


def _is_number(value: object) -> bool:
    # Compared, not asked whether finite: an integer may be too large for that question.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _INFINITY


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_texts(value: object, good: Callable[[str], bool]) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(text, str) and good(text) for text in value)


def _is_key(text: str) -> bool:
    return text.isascii() and text.isprintable() and bool(text) and " " not in text


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _or_none(kind: Kind) -> Kind:
    return Kind(
        f"{kind.allowed}, or none",
        lambda value: value is None or kind.accepts(value),
        lambda value: None if value is None else kind.keep(value),
        lambda text: None if text.lower() == "none" else kind.from_text(text),
        kind.metavar,
    )


_SHARE = Kind("a number from 0 to 1", lambda value: _is_number(value) and 0 <= value <= 1, float, float, "SHARE")
_SECONDS = Kind("a number of at least 0", lambda value: _is_number(value) and value >= 0, float, float, "SECONDS")
_AMOUNT = Kind("a number of at least 0", lambda value: _is_number(value) and value >= 0, float, float, "NUMBER")
_WHOLE = Kind("an integer", _is_integer, int, int, "INTEGER")
_COUNT = Kind("an integer of at least 1", lambda value: _is_integer(value) and value >= 1, int, int, "INTEGER")
_LOG_SIZE = Kind(
    f"an integer of at least 1 and at most {_MOST_REMEMBERED}",
    lambda value: _is_integer(value) and 1 <= value <= _MOST_REMEMBERED,
    int,
    int,
    "INTEGER",
)
_STYLE = Kind(" or ".join(WIRE_STYLES), lambda value: value in WIRE_STYLES, str, str, "STYLE")
_KEYS = Kind(
    "a list of at least one key without spaces",
    lambda value: _is_texts(value, _is_key) and bool(value),
    tuple,
    _split,
    "KEY[,KEY…]",
)
_PATHS = Kind(
    f"a list of {', '.join(FAULT_PATHS)}",
    lambda value: _is_texts(value, FAULT_PATHS.__contains__),
    tuple,
    _split,
    "PATH[,PATH…]",
)


def _setting(default: Any, kind: Kind, help_text: str) -> Any:
    return field(default=default, metadata={"kind": kind, "help": help_text})


@dataclass(frozen=True, kw_only=True)
class SandboxSettings:
    """How the sandbox behaves: its speed, its wire style and the shares of its faults.

    Each request suffers at most one of the request faults, so their shares must add up to at most 1; so
    must `failure_share` and `policy_share`, which are drawn once for each task.

    Raises:
        ValueError: If a value is not allowed; the message names the setting, the value and what is allowed.
    """

    api_keys: tuple[str, ...] = _setting((DEFAULT_API_KEY,), _KEYS, "the API keys that are accepted")
    wire_style: str = _setting(
        "http",
        _STYLE,
        "how an error is answered: http = its code is also the HTTP status; envelope = HTTP 200, the code in the body",
    )
    seconds_per_image: float = _setting(3.0, _SECONDS, "how long a task takes from submission to its end")
    pending_share: float = _setting(0.25, _SHARE, "the first part of that time in which a task is PENDING")
    credits: float | None = _setting(
        None, _or_none(_AMOUNT), "the account's credits: a submission beyond them is answered 402; none = no limit"
    )

    failure_share: float = _setting(0.0, _SHARE, "share of tasks that end FAILED")
    policy_share: float = _setting(0.0, _SHARE, "share of tasks that the content policy refuses")
    failed_credits: float = _setting(
        0.0, _AMOUNT, "what a task costs that ends FAILED, for whatever reason: the API's documented examples show 0"
    )
    rate_limit_share: float = _setting(0.0, _SHARE, "share of requests answered 429")
    retry_after: float = _setting(1.0, _SECONDS, "the Retry-After of a 429, rounded up to whole seconds")
    server_error_share: float = _setting(0.0, _SHARE, "share of requests answered 500")
    html_share: float = _setting(0.0, _SHARE, "share of requests answered by a proxy's HTML page (502)")
    drop_share: float = _setting(0.0, _SHARE, "share of requests dropped before they are processed")
    drop_after_share: float = _setting(
        0.0, _SHARE, "share of requests processed (a submission is accepted and charged) and dropped unanswered"
    )
    hang_share: float = _setting(0.0, _SHARE, "share of requests that wait before they are processed")
    hang_after_share: float = _setting(0.0, _SHARE, "share of requests that are processed and wait for their answer")
    hang_seconds: float = _setting(60.0, _SECONDS, "how long a hanging request waits")
    truncate_share: float = _setting(0.0, _SHARE, "share of images whose transfer ends before its Content-Length")
    truncate_with_length_share: float = _setting(
        0.0, _SHARE, "share of images that are cut short with a Content-Length that agrees"
    )
    latency_seconds: float = _setting(0.0, _SECONDS, "how much later every answer comes")
    fault_paths: tuple[str, ...] = _setting(
        FAULT_PATHS, _PATHS, "which requests the request faults and the latency are for"
    )
    fault_seed: int | None = _setting(None, _or_none(_WHOLE), "makes the random faults the same in each run")
    oversized_bytes: int = _setting(51 * _MIB, _COUNT, "bytes that an 'oversized' image streams")
    request_log_size: int = _setting(100_000, _LOG_SIZE, "how many requests the books remember")

    def __post_init__(self) -> None:
        for setting in fields(self):
            value = getattr(self, setting.name)
            kind: Kind = setting.metadata["kind"]
            if not kind.accepts(value):
                raise ValueError(f"{setting.name} is {value!r}; allowed is {kind.allowed}.")
            object.__setattr__(self, setting.name, kind.keep(value))
        for names in (REQUEST_SHARES, TASK_SHARES):
            total = math.fsum(getattr(self, name) for name in names)
            if total > 1:
                raise ValueError(
                    f"{' + '.join(name for name in names if getattr(self, name))} is {total:g}; "
                    "allowed is a sum of at most 1, because only one of them happens at a time."
                )

    def changed(self, changes: Mapping[str, Any]) -> SandboxSettings:
        """Return these settings with some of them changed.

        Args:
            changes: New values by the names of the settings.

        Raises:
            ValueError: If a name is unknown or a value is not allowed.
        """
        check_names(changes)
        return replace(self, **changes)


# Request faults by the name of their behaviour, in the order in which one random number is held against them.
REQUEST_SHARES = {
    "rate_limit_share": "rate_limit",
    "server_error_share": "server_error",
    "html_share": "html",
    "drop_share": "drop",
    "drop_after_share": "drop_after",
    "hang_share": "hang",
    "hang_after_share": "hang_after",
    "truncate_share": "truncate",
    "truncate_with_length_share": "truncate_with_length",
}
TASK_SHARES = {"failure_share": "failure", "policy_share": "policy"}


def check_names(names: Mapping[str, object]) -> None:
    """Raise a ValueError that lists what is allowed if a name is not that of a setting."""
    known = [setting.name for setting in fields(SandboxSettings)]
    for name in names:
        if name not in known:
            raise ValueError(f"{name!r} is not a setting of the sandbox; allowed are {', '.join(known)}.")
