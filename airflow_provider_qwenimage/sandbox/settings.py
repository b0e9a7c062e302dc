"""The sandbox's settings, which can be changed while it runs: one validated, immutable value. No I/O."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

FAULT_PATHS = ("generate", "status", "image")
WIRE_STYLES = ("http", "envelope")
CALLBACKS = ("on_time", "late", "twice", "early", "never")
DEFAULT_API_KEY = "sk-sandbox"

_INFINITY = 1e300
_MIB = 1024 * 1024
_MOST_RECORDED = 10_000_000


@dataclass(frozen=True)
class Kind:
    """The type of a setting: its allowed values, and how a command-line option is parsed.

    Args:
        allowed: The allowed values in words, to complete the sentence "it must be …".
        accepts: Whether a value is allowed.
        normalize: Converts an allowed value to the stored type.
        from_text: Parses a command-line option; raises ValueError if the text cannot be parsed.
        metavar: The value's name in ``--help``.
    """

    allowed: str
    accepts: Callable[[Any], bool]
    normalize: Callable[[Any], Any]
    from_text: Callable[[str], Any]
    metavar: str


def _is_number(value: object) -> bool:
    # Not math.isfinite, which fails on an integer that is too large for a float.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _INFINITY


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_list_of(value: object, allowed: Callable[[str], bool]) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(text, str) and allowed(text) for text in value)


def _is_key(text: str) -> bool:
    return text.isascii() and text.isprintable() and bool(text) and " " not in text


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _or_none(kind: Kind) -> Kind:
    return Kind(
        f"{kind.allowed}, or none",
        lambda value: value is None or kind.accepts(value),
        lambda value: None if value is None else kind.normalize(value),
        lambda text: None if text.lower() == "none" else kind.from_text(text),
        kind.metavar,
    )


_SHARE = Kind("a number from 0 to 1", lambda value: _is_number(value) and 0 <= value <= 1, float, float, "SHARE")
_SECONDS = Kind("a number of at least 0", lambda value: _is_number(value) and value >= 0, float, float, "SECONDS")
_AMOUNT = Kind("a number of at least 0", lambda value: _is_number(value) and value >= 0, float, float, "NUMBER")
_WHOLE = Kind("an integer", _is_integer, int, int, "INTEGER")
_COUNT = Kind("an integer of at least 1", lambda value: _is_integer(value) and value >= 1, int, int, "INTEGER")
_LOG_SIZE = Kind(
    f"an integer of at least 1 and at most {_MOST_RECORDED}",
    lambda value: _is_integer(value) and 1 <= value <= _MOST_RECORDED,
    int,
    int,
    "INTEGER",
)
_STYLE = Kind(" or ".join(WIRE_STYLES), lambda value: value in WIRE_STYLES, str, str, "STYLE")
_CALLBACK = Kind(f"{', '.join(CALLBACKS[:-1])} or {CALLBACKS[-1]}", lambda value: value in CALLBACKS, str, str, "WHEN")
_KEYS = Kind(
    "a list of at least one key without spaces",
    lambda value: _is_list_of(value, _is_key) and bool(value),
    tuple,
    _split,
    "KEY[,KEY…]",
)
_PATHS = Kind(
    f"a list of routes ({', '.join(FAULT_PATHS)})",
    lambda value: _is_list_of(value, FAULT_PATHS.__contains__),
    tuple,
    _split,
    "PATH[,PATH…]",
)


def _setting(default: Any, kind: Kind, help_text: str) -> Any:
    return field(default=default, metadata={"kind": kind, "help": help_text})


@dataclass(frozen=True, kw_only=True)
class SandboxSettings:
    """The sandbox's settings: its speed, its wire style and the shares of its faults.

    A request has at most one request fault, so the shares of the request faults must add up to at most 1. The same
    holds for `failure_share` and `policy_share`, which are drawn once for each task.

    Raises:
        ValueError: If a value is not allowed; the message names the setting, its value and the allowed values.
    """

    api_keys: tuple[str, ...] = _setting((DEFAULT_API_KEY,), _KEYS, "the API keys that are accepted")
    wire_style: str = _setting(
        "http",
        _STYLE,
        "how errors are answered: http = the code is also the HTTP status; envelope = HTTP 200, the code in the body",
    )
    seconds_per_image: float = _setting(3.0, _SECONDS, "how long a task takes from submission to its end")
    pending_share: float = _setting(0.25, _SHARE, "share of that time, from its start, in which a task is PENDING")
    credits: float | None = _setting(
        None,
        _or_none(_AMOUNT),
        "the account's credits; a submission that exceeds them is answered 402; none = no limit",
    )

    callback: str = _setting(
        "on_time",
        _CALLBACK,
        "when the callback_url of a new task is called: on_time = at its end; late = after its end; twice = at its end "
        "and after it; early = before its end and at it; never",
    )
    callback_delay_seconds: float = _setting(
        5.0, _SECONDS, "how long after the task's end a callback is late or repeated, or how long before it early"
    )

    failure_share: float = _setting(0.0, _SHARE, "share of tasks that end as FAILED")
    policy_share: float = _setting(0.0, _SHARE, "share of tasks that fail with a content policy violation")
    failed_credits: float = _setting(
        0.0, _AMOUNT, "the cost of a task that ends as FAILED; the API's documented examples show 0"
    )
    rate_limit_share: float = _setting(0.0, _SHARE, "share of requests answered 429")
    retry_after: float = _setting(1.0, _SECONDS, "the Retry-After of a 429, rounded up to whole seconds")
    server_error_share: float = _setting(0.0, _SHARE, "share of requests answered 500")
    html_share: float = _setting(0.0, _SHARE, "share of requests answered with a proxy's HTML page (502)")
    drop_share: float = _setting(0.0, _SHARE, "share of requests dropped before they are processed")
    drop_after_share: float = _setting(
        0.0, _SHARE, "share of requests processed (submissions are accepted and charged), then dropped unanswered"
    )
    hang_share: float = _setting(0.0, _SHARE, "share of requests that hang before they are processed")
    hang_after_share: float = _setting(0.0, _SHARE, "share of requests that are processed, then hang unanswered")
    unauthorized_share: float = _setting(0.0, _SHARE, "share of requests answered 401")
    forbidden_share: float = _setting(0.0, _SHARE, "share of requests answered 403")
    not_found_share: float = _setting(0.0, _SHARE, "share of requests answered 404")
    unknown_seconds: float = _setting(
        0.0, _SECONDS, "how long after its submission a task is unknown, so that its status is answered 404"
    )
    hang_seconds: float = _setting(60.0, _SECONDS, "how long a hanging request hangs")
    truncate_share: float = _setting(0.0, _SHARE, "share of images whose transfer ends before their Content-Length")
    truncate_with_length_share: float = _setting(
        0.0, _SHARE, "share of images that are cut short and have the Content-Length of the part that is sent"
    )
    latency_seconds: float = _setting(0.0, _SECONDS, "delay of every answer")
    fault_paths: tuple[str, ...] = _setting(
        FAULT_PATHS, _PATHS, "the routes to which the request faults and the latency apply"
    )
    fault_seed: int | None = _setting(None, _or_none(_WHOLE), "repeats the same random faults in each run")
    oversized_bytes: int = _setting(51 * _MIB, _COUNT, "size of an 'oversized' image, in bytes")
    request_log_size: int = _setting(100_000, _LOG_SIZE, "how many requests the books keep")

    def __post_init__(self) -> None:
        for setting in fields(self):
            value = getattr(self, setting.name)
            kind: Kind = setting.metadata["kind"]
            if not kind.accepts(value):
                raise ValueError(f"{setting.name} is {value!r}; it must be {kind.allowed}.")
            object.__setattr__(self, setting.name, kind.normalize(value))
        for names in (REQUEST_SHARES, TASK_SHARES):
            total = math.fsum(getattr(self, name) for name in names)
            if total > 1:
                raise ValueError(
                    f"{' + '.join(name for name in names if getattr(self, name))} is {total:g}; "
                    "the sum must be at most 1, because a request or task has at most one of these faults."
                )

    def changed(self, changes: Mapping[str, Any]) -> SandboxSettings:
        """Return a copy of the settings with changes.

        Raises:
            ValueError: If a name is unknown or a value is not allowed.
        """
        check_names(changes)
        return replace(self, **changes)


# The behaviour of each request fault. The order matters: one random number is compared with the running sum.
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
    "unauthorized_share": "unauthorized",
    "forbidden_share": "forbidden",
    "not_found_share": "not_found",
}
TASK_SHARES = {"failure_share": "failure", "policy_share": "policy"}


def check_names(names: Mapping[str, object]) -> None:
    """Raise a ValueError that lists all settings if a name is not a setting."""
    known = [setting.name for setting in fields(SandboxSettings)]
    for name in names:
        if name not in known:
            raise ValueError(f"{name!r} is not a setting of the sandbox; it must be one of {', '.join(known)}.")
