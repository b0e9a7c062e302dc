"""Checks the connection and the way to the API: key, TLS and proxy. Nothing is submitted."""

from __future__ import annotations

import base64
import http.client
import ipaddress
import ssl
import time
from collections.abc import Mapping
from contextlib import closing
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from airflow_provider_qwenimage.cli.doctor.findings import FAILED, OK, SKIPPED, WARNING, Finding
from airflow_provider_qwenimage.client.connection import CONN_TYPE, read_connection
from airflow_provider_qwenimage.client.connection_lookup import look_up_connection
from airflow_provider_qwenimage.client.diagnosis import TEST_SECONDS, explain
from airflow_provider_qwenimage.client.network_environment import (
    http_proxy_for,
    proxy_for,
    proxy_variable,
    tls_context,
)
from airflow_provider_qwenimage.exceptions import QwenImageConnectionError
from airflow_provider_qwenimage.hooks import QwenImageHook
from airflow_provider_qwenimage.rules.arguments import read_argument
from airflow_provider_qwenimage.rules.origins import DEFAULT_PORTS
from airflow_provider_qwenimage.text.urls import public_url

if TYPE_CHECKING:
    from airflow_provider_qwenimage.client.connection import AirflowConnection, ConnectionSettings

_A_DAY = 86_400
_DAYS_TO_RENEW = 14
_NO_CONNECTION = Finding(SKIPPED, "The connection cannot be used.")


class ApiChecks:
    """The checks of one connection; all but the first need its settings.

    Args:
        conn_id: The id of the Airflow connection.

    Attributes:
        settings: The checked fields of the connection; None if `connection` found none.
    """

    def __init__(self, conn_id: str) -> None:
        self._conn_id = conn_id
        self._connection: AirflowConnection | None = None
        self.settings: ConnectionSettings | None = None

    def without_key(self, text: str) -> str:
        """Return a text without the API key."""
        return self.settings.without_key(text) if self.settings else text

    def connection(self) -> Finding:
        """Check that the connection exists and that its fields are valid."""
        conn_id = read_argument("qwenimage_conn_id", self._conn_id)
        self._connection = look_up_connection(conn_id)
        settings = self.settings = read_connection(self._connection)
        if settings.ignored:
            return Finding(WARNING, f"{settings.ignored} Correct or remove them.")
        conn_type = getattr(self._connection, "conn_type", CONN_TYPE)
        if conn_type != CONN_TYPE:
            return Finding(
                WARNING, f"Connection {conn_id!r} has type {conn_type!r}. It works, but set its type to {CONN_TYPE}."
            )
        return Finding(OK, f"{conn_id}: {settings.base_url}, timeout_seconds {settings.timeout_seconds:g}.")

    def key(self) -> Finding:
        """Check that the API accepts the key, as the connection page's Test button does."""
        if self._connection is None or self.settings is None:
            return _NO_CONNECTION
        with QwenImageHook(self._conn_id, connection=self._connection) as hook:
            works, message = hook.test_connection()
        return Finding(OK if works else FAILED, message)

    def tls(self) -> Finding:
        """Check that the certificate of the API's host is trusted, also through a proxy."""
        if self.settings is None:
            return _NO_CONNECTION
        settings = self.settings
        if settings.base_url.startswith("http:"):
            if _is_this_machine(urlsplit(settings.base_url).hostname or ""):
                return Finding(SKIPPED, f"{settings.base_url} is on this machine and needs no TLS.")
            return Finding(
                WARNING, f"{settings.base_url} sends the API key unencrypted. Use https:// in the base URL (host)."
            )
        if settings.verify is False:
            return Finding(
                WARNING,
                "Certificates are not checked, so another server could read the API key. Remove verify from the "
                "connection's extra, or give the file of the certificate authority there.",
            )
        return _shake_hands(settings)

    def proxy(self) -> Finding:
        """Check which proxy this process uses for the API's host."""
        if self.settings is None:
            return _NO_CONNECTION
        url = self.settings.base_url
        host = urlsplit(url).hostname
        proxy = proxy_for(url)
        if proxy is None:
            return Finding(OK, f"No proxy is used for {host}, by the environment of this process.")
        try:
            http_proxy_for(url)
        except QwenImageConnectionError as error:
            reason = str(error.reason)
            return Finding(WARNING, f"{reason[:1].upper()}{reason[1:]}.")
        credentials = " with credentials" if urlsplit(proxy).username else ""
        return Finding(
            OK, f"{public_url(proxy)}{credentials} is used for {host}, by {proxy_variable(url)} of this process."
        )


def _is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _shake_hands(settings: ConnectionSettings) -> Finding:
    parts = urlsplit(settings.base_url)
    host, port = parts.hostname or "", parts.port or DEFAULT_PORTS["https"]
    context = tls_context(settings.verify)
    proxy = proxy_for(settings.base_url)
    if proxy is not None and not proxy.startswith("http://"):
        return Finding(SKIPPED, "The check of the key includes TLS, which goes through a proxy that is not http://.")
    if proxy is None:
        connection = http.client.HTTPSConnection(host, port, timeout=TEST_SECONDS, context=context)
    else:
        via = urlsplit(proxy)
        connection = http.client.HTTPSConnection(
            via.hostname or "", via.port or DEFAULT_PORTS["http"], timeout=TEST_SECONDS, context=context
        )
        connection.set_tunnel(host, port, headers=_proxy_headers(via.username, via.password))
    try:
        with closing(connection):
            connection.connect()
            secure = connection.sock
            version, certificate = (
                (secure.version(), secure.getpeercert()) if isinstance(secure, ssl.SSLSocket) else ("", None)
            )
    except (OSError, http.client.HTTPException) as error:
        reason = explain(error, settings, TEST_SECONDS, by_proxy=proxy is not None)
        return Finding(FAILED, f"Cannot reach {settings.base_url}: {reason}.")
    days = (ssl.cert_time_to_seconds(str((certificate or {}).get("notAfter"))) - time.time()) / _A_DAY
    if days < _DAYS_TO_RENEW:
        return Finding(WARNING, f"The certificate of {host} expires in {days:.0f} days. Ask its operator to renew it.")
    return Finding(OK, f"{version} with a trusted certificate of {host}, valid for {days:.0f} more days.")


def _proxy_headers(user: str | None, password: str | None) -> Mapping[str, str]:
    if user is None:
        return {}
    credentials = f"{unquote(user)}:{unquote(password or '')}".encode()
    return {"Proxy-Authorization": f"Basic {base64.b64encode(credentials).decode()}"}
