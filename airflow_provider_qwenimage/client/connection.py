"""Reads an Airflow connection of type ``qwenimage`` into checked settings. No I/O."""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from ipaddress import IPv6Address
from typing import Any, Protocol
from urllib.parse import urlsplit

from airflow_provider_qwenimage.contract import DEFAULT_BASE_URL
from airflow_provider_qwenimage.rules.arguments import MAX_SECONDS, read_argument
from airflow_provider_qwenimage.rules.budgets import NO_BOOKS, BooksOptions, read_books_options
from airflow_provider_qwenimage.rules.connection_extra import KNOWN_EXTRA, positive_number, read_extra
from airflow_provider_qwenimage.rules.origins import DEFAULT_PORTS, displayed_url, host_in_ascii
from airflow_provider_qwenimage.text.masking import Mask
from airflow_provider_qwenimage.text.messages import did_you_mean, printable, safe_repr, shorten

log = logging.getLogger(__name__)

CONN_TYPE = "qwenimage"
DEFAULT_CONN_ID = "qwenimage_default"
DEFAULT_TIMEOUT_SECONDS = 30.0
# A connection test reads the status of this id: the API answers 404, and nothing is paid.
TEST_TASK_ID = "connection-test"

# The connection page's Test button sends 0 for an empty port; 443 is the port of the default base URL.
_DEFAULT_PORTS = (None, 0, 443)
_HIGHEST_PORT = 65_535
# Messages quote the URL.
_LONGEST_URL = 2000
# With a slash or a colon too few or too many, it is still a user.
_MISSPELT_USER = re.compile(r"(?:https?)?[:/\\]+[^/\\]*@", re.IGNORECASE)
# Old versions of Airflow's form store a field under its name with this prefix.
_FORM_PREFIX = "extra__"
_MOST_UNKNOWN_KEYS = 5
_LONGEST_KEY = 50


class AirflowConnection(Protocol):
    """The fields of an Airflow connection, of any version of Airflow."""

    conn_id: str
    host: str | None
    schema: str | None
    password: str | None
    port: int | None
    extra: str | None


@dataclass(frozen=True)
class ConnectionSettings:
    """The checked fields of a connection.

    Attributes:
        base_url: The API's base URL, without a slash at its end.
        api_key: The API key; never part of a log line or message.
        timeout_seconds: How long to wait for the connection, and for each part of an answer; see `seconds_for_a_call`.
        max_requests_per_second: The request limit per process, shared by all waits of a triggerer; None for no limit.
        verify: Whether TLS certificates are checked, or the path of a file of authorities to check with.
        books: The books of the account, and its budgets.
        ignored: A sentence about the keys of the extra that have no effect; empty if all have.
    """

    base_url: str
    api_key: str = field(repr=False)
    timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS
    max_requests_per_second: float | None = None
    verify: bool | str = True
    books: BooksOptions = NO_BOOKS
    # Connections that differ only in it share a session.
    ignored: str = field(default="", repr=False, compare=False)

    @cached_property
    def mask(self) -> Mask:
        """Masks the API key in texts of the API or of libraries."""
        return Mask(self.api_key)

    def without_key(self, text: str) -> str:
        """Return `text` without the API key, however it is spelled."""
        return self.mask(text)

    @property
    def seconds_for_a_call(self) -> float:
        """How long one call may take: to connect, and as long again for the answer."""
        return 2 * self.timeout_seconds


def read_connection(
    connection: AirflowConnection, *, timeout_seconds: float | None = None, name: str | None = None
) -> ConnectionSettings:
    """Check an Airflow connection and return its settings.

    Args:
        connection: The connection: API key in the password, base URL in the host (a full URL, or host
            with schema and port; default: the public service), the rest as a JSON object in extra.
        timeout_seconds: The caller's timeout, which takes precedence over the connection's own; None to use that.
        name: What error messages call the connection; by default they quote its id.

    Raises:
        ValueError: If a field is not usable; the message names the connection, the field and what it must be.
    """
    if timeout_seconds is not None:
        timeout_seconds = read_argument("timeout_seconds", timeout_seconds)
    by_id = f"Connection {connection.conn_id!r}"
    key = _read_key(name or by_id, connection.password)
    mask = Mask(key)
    try:
        settings = _read_settings(connection, key, mask, timeout_seconds)
    except ValueError as error:
        problem = mask(f"{name or by_id} {error}")
    else:
        if settings.ignored:
            _warn_once(f"{by_id}: {settings.ignored}")
        return settings
    # Outside of the handler: the caught error may quote the key, if somebody has put it into another field as well.
    raise ValueError(problem)


def _read_settings(
    connection: AirflowConnection, key: str, mask: Mask, timeout_seconds: float | None
) -> ConnectionSettings:
    extra = read_extra(connection.extra)
    if timeout_seconds is None:
        timeout_seconds = positive_number(extra, "timeout_seconds", DEFAULT_TIMEOUT_SECONDS, MAX_SECONDS)
    return ConnectionSettings(
        base_url=_read_base_url(connection),
        api_key=key,
        timeout_seconds=timeout_seconds,
        max_requests_per_second=positive_number(extra, "max_requests_per_second", None),
        verify=_read_verify(extra.get("verify", True)),
        books=read_books_options(extra),
        # Masked before it is shortened: half a key is no longer found.
        ignored=_describe_ignored({mask(name): value for name, value in extra.items()}),
    )


def _read_key(name: str, password: str | None) -> str:
    # Keys are pasted, and a line break comes along easily.
    key = (password or "").strip()
    if not key:
        raise ValueError(
            f"{name} has no API key: put it (sk-…) into its API key field (password), which is written "
            "qwenimage://:YOUR-KEY@ in the URI form."
        )
    if not key.isascii() or any(character.isspace() or not character.isprintable() for character in key):
        raise ValueError(
            f"{name} has a password that cannot be an API key: copy the key again; it must be printable ASCII "
            "characters without white space."
        )
    return key


def _read_base_url(connection: AirflowConnection) -> str:
    host = (connection.host or "").strip()
    if not host and connection.port in _DEFAULT_PORTS:
        return DEFAULT_BASE_URL
    if "://" not in host:
        schema = (connection.schema or "https").strip().lower()
        host = f"{schema}://{_bracketed(host)}"
    # Checked first, since the messages below quote the host.
    if "@" in host.partition("://")[2].partition("/")[0] or _MISSPELT_USER.match(host.partition("://")[2]):
        raise ValueError("has a user or a key inside its host; put the key in the password instead.")
    problem = ValueError(
        f"has host {shorten(repr(displayed_url(connection.host or '')))}, schema "
        f"{shorten(repr(connection.schema))} and port {connection.port!r}, which do not form a URL; the host must be a "
        f"full http(s) URL such as {DEFAULT_BASE_URL}, or a host name with schema (http or https) and port."
    )
    try:
        parts = urlsplit(host)
        port = parts.port or connection.port
        hostname = host_in_ascii(parts.hostname or "")
    except ValueError:
        raise problem from None
    odd = len(host) > _LONGEST_URL or any(not character.isprintable() or character.isspace() for character in host)
    # An IPv6 address with a zone, such as fe80::1%eth0, is of one machine only.
    is_host = bool(hostname) and "%" not in hostname and 0 <= (port or 0) <= _HIGHEST_PORT
    if parts.scheme not in DEFAULT_PORTS or not is_host or odd or parts.query or parts.fragment:
        raise problem
    url_host = f"[{hostname}]" if ":" in hostname else hostname
    url_port = f":{port}" if port and port != DEFAULT_PORTS[parts.scheme] else ""
    return f"{parts.scheme}://{url_host}{url_port}{parts.path.rstrip('/')}"


def _bracketed(host: str) -> str:
    """Return a host field with brackets around an IPv6 address."""
    address, slash, path = host.partition("/")
    try:
        return f"[{IPv6Address(address).compressed}]{slash}{path}"
    except ValueError:
        return host


def _describe_ignored(extra: Mapping[str, Any]) -> str:
    """Return a sentence about the unknown keys of an extra: a limit that is misspelt is no limit."""
    unknown = [name for name in extra if name not in KNOWN_EXTRA and not _is_left_by_a_form(name, extra[name])]
    if not unknown:
        return ""
    shown = [_describe_unknown(name) for name in unknown[:_MOST_UNKNOWN_KEYS]]
    if len(unknown) > _MOST_UNKNOWN_KEYS:
        shown.append(f"{len(unknown) - _MOST_UNKNOWN_KEYS} more")
    return (
        f"These keys of the extra are unknown and have no effect: {', '.join(shown)}. "
        f"Known keys are {', '.join(KNOWN_EXTRA)}."
    )


def _is_left_by_a_form(name: str, value: object) -> bool:
    return name.startswith(_FORM_PREFIX) and value in (None, "")


def _describe_unknown(name: str) -> str:
    plain = name.rpartition("__")[2] if name.startswith(_FORM_PREFIX) else name
    plain = re.sub(r"[^a-z]+", "_", plain[:_LONGEST_KEY].lower()).strip("_")
    shown = printable(name if len(name) <= _LONGEST_KEY else f"{name[:_LONGEST_KEY]}…")
    return f"{shown!r}{did_you_mean(plain, KNOWN_EXTRA)}"


# The Test button tests a copy under an id of its own, so the number of warnings that are remembered is bounded.
@functools.lru_cache(maxsize=256)
def _warn_once(warning: str) -> None:
    """Warn once in a process: the settings are read for every task, and for every wait in a triggerer."""
    log.warning("%s", warning)


def _read_verify(value: object) -> bool | str:
    if value is None or value == "":
        return True
    if isinstance(value, bool):
        return value
    if isinstance(value, str):
        # In the URI form every value is a string.
        return {"true": True, "false": False}.get(value.strip().lower(), value)
    raise ValueError(
        f"has verify = {shorten(safe_repr(value))} in its extra; it must be true, false or the path of a file of "
        "certificate authorities."
    )
