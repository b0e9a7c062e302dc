"""Reads an Airflow connection of type ``qwenimage`` into checked settings. No I/O."""

from __future__ import annotations

import difflib
import functools
import json
import logging
import math
import re
import socket
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import urlsplit

from airflow_provider_qwenimage.contract import (
    DEFAULT_BASE_URL,
    TaskSnapshot,
    check_above_zero,
    printable,
    safe_repr,
    shorten,
)
from airflow_provider_qwenimage.exceptions import (
    QwenImageAuthError,
    QwenImageConnectionError,
    QwenImageCreditsError,
    QwenImageError,
    QwenImageNotFoundError,
    QwenImageRateLimitError,
    QwenImageRequestError,
    QwenImageServerError,
)

log = logging.getLogger(__name__)

CONN_TYPE = "qwenimage"
DEFAULT_CONN_ID = "qwenimage_default"
DEFAULT_TIMEOUT_SECONDS = 30.0
# The id that a connection test asks after: the API answers 404, and nothing is paid.
TEST_TASK_ID = "connection-test"

# The connection page's Test button sends 0 for an empty port; 443 is what the default base URL has anyway.
_NO_PORT_OF_ITS_OWN = (None, 0, 443)
_DEFAULT_PORTS = {"http": 80, "https": 443}
_KNOWN_EXTRA = ("timeout_seconds", "max_requests_per_second", "verify")
# Old versions of Airflow's form store a field under its name with this prefix.
_FORM_PREFIX = "extra__"
_MOST_UNKNOWN_KEYS = 5
_LONGEST_KEY = 50


class AirflowConnection(Protocol):
    """What is read of an Airflow connection, whichever Airflow made it."""

    conn_id: str
    host: str | None
    schema: str | None
    password: str | None
    port: int | None
    extra: str | None


@dataclass(frozen=True)
class ConnectionSettings:
    """What a connection says, checked.

    Attributes:
        base_url: The API's base URL, without a slash at its end.
        api_key: The API key; never part of a log line or message.
        timeout_seconds: How long to wait for the connection, and for each part of an answer.
        max_requests_per_second: The rate that a task, or all waits of a triggerer, do not exceed, or None for no limit.
        verify: Whether TLS certificates are checked, or the path of a file of authorities to check with.
        ignored: What of the extra is ignored, and what was probably meant; empty where nothing is.
    """

    base_url: str
    api_key: str = field(repr=False)
    timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS
    max_requests_per_second: float | None = None
    verify: bool | str = True
    # Connections that differ in it alone share a session.
    ignored: str = field(default="", repr=False, compare=False)

    def without_key(self, text: str) -> str:
        """Return `text` with the API key blotted out, should the API or a library have quoted it."""
        return text.replace(self.api_key, "***")


def read_connection(
    connection: AirflowConnection, *, timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS
) -> ConnectionSettings:
    """Check an Airflow connection and return its settings.

    Args:
        connection: The connection: API key in the password, base URL in the host (a full URL, or host
            with schema and port; default: the public service), the rest as a JSON object in extra.
        timeout_seconds: The caller's timeout. Where it is the default, the connection's own goes first.

    Raises:
        ValueError: If a field is not usable; the message names the connection, the field and what is allowed.
    """
    where = f"Connection {connection.conn_id!r}"
    extra = _read_extra(where, connection.extra)
    if timeout_seconds == DEFAULT_TIMEOUT_SECONDS:
        timeout_seconds = _positive(where, extra, "timeout_seconds", DEFAULT_TIMEOUT_SECONDS)
    else:
        check_above_zero("timeout_seconds", timeout_seconds, "seconds")
    api_key = _read_key(where, connection.password)
    settings = ConnectionSettings(
        base_url=_read_base_url(where, connection),
        api_key=api_key,
        timeout_seconds=timeout_seconds,
        max_requests_per_second=_positive(where, extra, "max_requests_per_second", None),
        verify=_read_verify(where, extra.get("verify", True)),
        ignored=_tell_ignored(extra).replace(api_key, "***"),
    )
    if settings.ignored:
        _warn_once(f"{where}: {settings.ignored}")
    return settings


def judge_connection(outcome: TaskSnapshot | QwenImageError, settings: ConnectionSettings) -> tuple[bool, str]:
    """Return whether a connection works, and one sentence that tells the user so.

    Args:
        outcome: What asking after a task that does not exist ended with.
        settings: What the connection says.
    """
    where = settings.base_url
    from_api = isinstance(outcome, QwenImageRequestError) and outcome.from_api
    if isinstance(outcome, TaskSnapshot) or (isinstance(outcome, QwenImageNotFoundError) and from_api):
        works, story = (
            True,
            f"Connection works: {where} answered and did not refuse the key; this test costs no credit.",
        )
    elif isinstance(outcome, QwenImageConnectionError):
        works, story = False, f"Cannot reach {where}: {_why_unreachable(outcome, settings)}."
    elif isinstance(outcome, QwenImageRequestError):
        works, story = False, _explain_refusal(outcome, where)
    else:
        works, story = False, _not_the_api(where, _say_what_came(outcome))
    if settings.ignored:
        story = f"{story} {settings.ignored}"
    return works, settings.without_key(story)


def _explain_refusal(error: QwenImageRequestError, where: str) -> str:
    code = error.code
    if isinstance(error, QwenImageAuthError):
        story = f"{where} refused the key (code {code}): put a valid one into the API key field (password)."
        if not error.from_api:
            story = (
                f"{where} refused the key, but without the API's JSON (code {code}): check the API key (password) and "
                "the base URL (host)."
            )
    elif isinstance(error, QwenImageRateLimitError):
        pause = f"in {error.retry_after:g} seconds" if error.retry_after else "in a minute"
        story = f"{where} was reached, but takes no more requests for now (code {code}): test again {pause}."
    elif isinstance(error, QwenImageServerError) and not error.from_api:
        story = (
            f"What answers at {where} is not the Qwen-Image API (code {code} without the API's JSON), or a proxy "
            "before it: test again later, and check the base URL (host)."
        )
    elif not error.from_api:
        story = _not_the_api(where, f"code {code} without the API's JSON")
    elif isinstance(error, QwenImageServerError):
        story = f"{where} was reached, but the API is in trouble (code {code}): test again later."
    elif isinstance(error, QwenImageCreditsError):
        story = f"{where} was reached, but the key's account has no credits left (code {code}): buy credits."
    else:
        story = (
            f"{where} was reached, but the API did not accept the test's question (code {code}), which proves the key "
            "neither right nor wrong: run a task to find out."
        )
    return story


def _not_the_api(where: str, what: str) -> str:
    return (
        f"What answers at {where} is not the Qwen-Image API ({what}): correct the base URL (host), which is "
        f"{DEFAULT_BASE_URL} for the public service."
    )


def _say_what_came(error: QwenImageError) -> str:
    redirect = re.search(r"redirect \(HTTP \d+\) to (\S+),", str(error))
    return f"it redirects to {redirect[1]}" if redirect else "its answer is not the API's JSON"


def _why_unreachable(error: QwenImageConnectionError, settings: ConnectionSettings) -> str:
    causes = list(_causes(error))
    # No type that both clients share; and what a proxy did would be told as what the API did.
    if any("Proxy" in type(cause).__name__ for cause in causes):
        return "the proxy of this machine does not let it through; check the HTTPS_PROXY and NO_PROXY of its processes"
    stories = (_explain_cause(cause, settings) for cause in reversed(causes))
    last = causes[-1]
    detail = (isinstance(last, OSError) and last.strerror) or type(last).__name__
    return next(filter(None, stories), f"no whole answer came ({detail}); check the base URL (host) and the network")


def _explain_cause(cause: BaseException, settings: ConnectionSettings) -> str | None:
    match cause:
        # The clients have errors of these types without what Python's own say.
        case ssl.SSLCertVerificationError():
            reason = getattr(cause, "verify_message", "").rstrip(".") or type(cause).__name__
            story = (
                f"its TLS certificate is not trusted ({reason}); check the base URL (host), or give the file of its "
                "certificate authority as verify in the extra"
            )
        case ssl.SSLError():
            reason = getattr(cause, "reason", None) or type(cause).__name__
            story = (
                f"no TLS connection came about ({reason}); check whether the base URL (host) should begin with "
                "http://, and the certificate file where verify in the extra names one"
            )
        case socket.gaierror():
            host = urlsplit(settings.base_url).hostname
            story = f"the name {host} is not known here; check the base URL (host) and this machine's network"
        case ConnectionRefusedError():
            story = "nothing listens on that port; check the base URL (host) and that the service runs"
        case TimeoutError():
            story = (
                f"no answer came within {settings.timeout_seconds:g} s; check the base URL (host) and the network, or "
                "raise timeout_seconds in the extra"
            )
        case _:
            return None
    return story


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what it came from, the innermost last."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or link.__context__


def _read_key(where: str, password: str | None) -> str:
    # Keys are pasted, and a line break comes along easily.
    key = (password or "").strip()
    if not key:
        raise ValueError(
            f"{where} has no API key: put it (sk-…) into its API key field (password), which is written "
            "qwenimage://:YOUR-KEY@ in the URI form."
        )
    if not key.isascii() or any(character.isspace() or not character.isprintable() for character in key):
        raise ValueError(
            f"{where} has a password that cannot be an API key: copy the key again; allowed are printable ASCII "
            "characters without white space."
        )
    return key


def _read_base_url(where: str, connection: AirflowConnection) -> str:
    host = (connection.host or "").strip()
    if not host and connection.port in _NO_PORT_OF_ITS_OWN:
        return DEFAULT_BASE_URL
    if "://" not in host:
        schema = (connection.schema or "https").strip().lower()
        host = f"{schema}://{host}"
    problem = ValueError(
        f"{where} has host {connection.host!r}, schema {connection.schema!r} and port {connection.port!r}, which "
        f"make no URL; allowed is a full http(s) URL such as {DEFAULT_BASE_URL} in the host, or a host name with "
        "schema (http or https) and port."
    )
    try:
        parts = urlsplit(host)
        port = parts.port or connection.port
        hostname = parts.hostname
        (hostname or "").encode("idna")
    except ValueError:
        raise problem from None
    spaced = any(character.isspace() for character in host)
    if parts.scheme not in ("http", "https") or not hostname or spaced or parts.query or parts.fragment:
        raise problem
    if parts.username is not None or parts.password is not None:
        raise ValueError(f"{where} has a user or a key inside its host; put the key in the password instead.")
    name = f"[{hostname}]" if ":" in hostname else hostname
    shown_port = f":{port}" if port and port != _DEFAULT_PORTS[parts.scheme] else ""
    return f"{parts.scheme}://{name}{shown_port}{parts.path.rstrip('/')}"


def _read_extra(where: str, extra: str | None) -> Mapping[str, Any]:
    if not extra or not extra.strip():
        return {}
    try:
        values = json.loads(extra)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise ValueError(
            f"{where} has an extra that is not a JSON object; allowed is an object with any of "
            f'{", ".join(_KNOWN_EXTRA)}, such as {{"timeout_seconds": 30}}.'
        )
    return values


def _tell_ignored(extra: Mapping[str, Any]) -> str:
    """Return what of an extra is not known, without its values: a limit that is misspelt is no limit."""
    unknown = [name for name in extra if name not in _KNOWN_EXTRA and not name.startswith(_FORM_PREFIX)]
    if not unknown:
        return ""
    told = [_tell_unknown(name) for name in unknown[:_MOST_UNKNOWN_KEYS]]
    if len(unknown) > _MOST_UNKNOWN_KEYS:
        told.append(f"{len(unknown) - _MOST_UNKNOWN_KEYS} more")
    return (
        f"These keys of the extra are unknown and have no effect: {', '.join(told)}. "
        f"Known are {', '.join(_KNOWN_EXTRA)}."
    )


def _tell_unknown(name: str) -> str:
    plain = re.sub(r"[^a-z]+", "_", name[:_LONGEST_KEY].lower()).strip("_")
    near = difflib.get_close_matches(plain, _KNOWN_EXTRA, n=1)
    shown = printable(name if len(name) <= _LONGEST_KEY else f"{name[:_LONGEST_KEY]}…")
    return f"{shown!r}" + (f" (did you mean {near[0]!r}?)" if near else "")


# The Test button tests a copy under an id of its own, so the number of warnings that are remembered is bounded.
@functools.lru_cache(maxsize=256)
def _warn_once(warning: str) -> None:
    """Warn once in a process: the settings are read for every task, and for every wait in a triggerer."""
    log.warning("%s", warning)


def _positive(where: str, extra: Mapping[str, Any], name: str, default: Any) -> Any:
    value = extra.get(name)
    # The connection form sends null or "" for a field that was left empty.
    if value is None or value == "":
        return default
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not 0 < number < math.inf:
        raise ValueError(f"{where} has {name} = {shorten(safe_repr(value))} in its extra; allowed are numbers above 0.")
    return number


def _read_verify(where: str, value: object) -> bool | str:
    if value is None or value == "":
        return True
    if isinstance(value, bool):
        return value
    if isinstance(value, str):
        # The URI form makes strings of everything.
        return {"true": True, "false": False}.get(value.strip().lower(), value)
    raise ValueError(
        f"{where} has verify = {shorten(safe_repr(value))} in its extra; allowed are true, false or the path "
        "of a file of certificate authorities."
    )
