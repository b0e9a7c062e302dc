"""Reads an Airflow connection of type ``qwenimage`` into checked settings. No I/O."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import urlsplit

from airflow_provider_qwenimage.contract import DEFAULT_BASE_URL, TaskSnapshot, check_above_zero
from airflow_provider_qwenimage.exceptions import (
    QwenImageAuthError,
    QwenImageConnectionError,
    QwenImageError,
    QwenImageNotFoundError,
    QwenImageRequestError,
)

CONN_TYPE = "qwenimage"
DEFAULT_CONN_ID = "qwenimage_default"
DEFAULT_TIMEOUT_SECONDS = 30.0
# The id that a connection test asks after: the API answers 404, and nothing is paid.
TEST_TASK_ID = "connection-test"

# The connection page's Test button sends 0 for an empty port; 443 is what the default base URL has anyway.
_NO_PORT_OF_ITS_OWN = (None, 0, 443)
_KNOWN_EXTRA = ("timeout_seconds", "max_requests_per_second", "verify")


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
    """

    base_url: str
    api_key: str = field(repr=False)
    timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS
    max_requests_per_second: float | None = None
    verify: bool | str = True

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
    return ConnectionSettings(
        base_url=_read_base_url(where, connection),
        api_key=_read_key(where, connection.password),
        timeout_seconds=timeout_seconds,
        max_requests_per_second=_positive(where, extra, "max_requests_per_second", None),
        verify=_read_verify(where, extra.get("verify", True)),
    )


def judge_connection(outcome: TaskSnapshot | QwenImageError | ValueError) -> tuple[bool, str]:
    """Return whether a connection works, and what to tell the user.

    Args:
        outcome: What asking after a task that does not exist ended with, or why it could not be asked.
    """
    if isinstance(outcome, ValueError):
        return False, str(outcome)
    if isinstance(outcome, QwenImageAuthError):
        return False, f"The API was reached, but it refused the key. {outcome}"
    if isinstance(outcome, QwenImageConnectionError):
        return False, f"Cannot reach the API. {outcome}"
    if isinstance(outcome, TaskSnapshot) or (isinstance(outcome, QwenImageNotFoundError) and outcome.from_api):
        return True, "Connection works: the API answered and did not refuse the key. This test costs no credit."
    if isinstance(outcome, QwenImageRequestError) and outcome.from_api:
        return False, f"The API was reached, but it is in trouble or does not accept requests now. {outcome}"
    return False, f"What answers there is not the Qwen-Image API. Check the connection's host. {outcome}"


def _read_key(where: str, password: str | None) -> str:
    # Keys are pasted, and a line break comes along easily.
    key = (password or "").strip()
    if not key:
        raise ValueError(
            f"{where} has no API key: its password is empty. Put the key (sk-…) in the password, "
            "or in the URI form: qwenimage://:YOUR-KEY@"
        )
    if not key.isascii() or any(character.isspace() or not character.isprintable() for character in key):
        raise ValueError(
            f"{where} has a password that cannot be an API key: allowed are printable ASCII characters without "
            "white space. Copy the key again."
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
    except ValueError:
        raise problem from None
    spaced = any(character.isspace() for character in host)
    if parts.scheme not in ("http", "https") or not hostname or spaced or parts.query or parts.fragment:
        raise problem
    if parts.username is not None or parts.password is not None:
        raise ValueError(f"{where} has a user or a key inside its host; put the key in the password instead.")
    name = f"[{hostname}]" if ":" in hostname else hostname
    return f"{parts.scheme}://{name}{f':{port}' if port else ''}{parts.path.rstrip('/')}"


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
        raise ValueError(f"{where} has {name} = {value!r} in its extra; allowed are numbers above 0.")
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
        f"{where} has verify = {value!r} in its extra; allowed are true, false or the path of a file of certificate "
        "authorities."
    )
