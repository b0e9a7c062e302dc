"""An aiohttp session whose exchanges read answers as `http_answers` says. Outside of an exchange it is a plain one."""

from __future__ import annotations

import functools
import ssl
from collections.abc import Mapping
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler

from airflow_provider_qwenimage.exchanges import Exchange
from airflow_provider_qwenimage.http_answers import AnswerHead, UnreadableAnswerError


class _BoundedProtocol(ResponseHandler):
    """Reads the bytes of an answer, and hands aiohttp the same answer as one that it has no questions about."""

    _rewritten: _RewrittenAnswer | None = None

    def set_response_params(self, **params: Any) -> None:
        # A proxy's answer to CONNECT comes before there is a connection, and aiohttp reads it itself.
        exchange = Exchange.current()
        is_connected = exchange is not None and exchange.is_connected
        self._rewritten = _RewrittenAnswer(exchange) if exchange and is_connected else None
        super().set_response_params(**params)

    def data_received(self, data: bytes) -> None:
        if self._rewritten is None or not data:
            super().data_received(data)
        else:
            self._take(self._rewritten, data)

    def eof_received(self) -> None:
        if self._rewritten is not None and not self._rewritten.reader.is_complete:
            self._take(self._rewritten, b"")
        super().eof_received()

    def _take(self, answer: _RewrittenAnswer, data: bytes) -> None:
        if answer.reader.is_complete:
            # Whatever comes behind the end of an answer, this connection is not used again.
            self.force_close()
            return
        try:
            plain = answer.rewrite(data)
        except UnreadableAnswerError:
            # What aiohttp makes of a lost connection is told apart by the exchange's fault.
            if self.transport is not None:
                self.transport.abort()
            return
        if answer.reader.closes:
            self.force_close()
        if plain:
            super().data_received(plain)
        else:
            # What was received is no whole line or chunk, but it is a sign of life.
            self.start_timeout()


class _RewrittenAnswer:
    """The answer of an exchange in the plainest spelling that there is."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self.reader = exchange.begin_answer()
        self._has_begun = False

    def rewrite(self, data: bytes) -> bytes:
        """Return what aiohttp is to read for the bytes that were received; none means the end of the connection."""
        try:
            body = self.reader.feed(data) if data else self.reader.feed_eof()
        except UnreadableAnswerError as fault:
            self._exchange.fault = fault
            raise
        head = self.reader.head
        if head is None:
            return b""
        plain = b"" if self._has_begun else _plain_head(head)
        self._has_begun = True
        if head.status in _WITHOUT_BODY:
            return plain
        if body:
            plain += b"%x\r\n%b\r\n" % (len(body), body)
        return plain + (b"0\r\n\r\n" if self.reader.is_complete else b"")


def _plain_head(head: AnswerHead) -> bytes:
    lines = [f"HTTP/1.1 {head.status} -"]
    if head.status not in _WITHOUT_BODY:
        lines.append("transfer-encoding: chunked")
    for name in ("content-type", "location", "retry-after"):
        value = head.headers.get(name, "")
        if value and len(value) < _LONGEST_VALUE and value.isascii() and value.isprintable():
            lines.append(f"{name}: {value}")
    return "\r\n".join([*lines, "", ""]).encode("ascii")


_WITHOUT_BODY = (204, 304)
# aiohttp's own bound for a line is 8,190 bytes.
_LONGEST_VALUE = 8_000


async def _note_connecting(*_: object) -> None:
    exchange = Exchange.current()
    if exchange is not None:
        exchange.is_connected = False


async def _note_sending(*_: object) -> None:
    exchange = Exchange.current()
    if exchange is not None:
        # With a connection, aiohttp sends at once.
        exchange.is_connected = exchange.was_sent = True


def open_session(
    context: ssl.SSLContext | None,
    headers: Mapping[str, str],
    *,
    connections: int,
    timeout_seconds: float,
    proxy: str | None,
    middleware: Any,
) -> aiohttp.ClientSession:
    """Return a session of the event loop that runs; call it inside of it.

    Args:
        context: How the certificates of TLS servers are checked, or None for aiohttp's own way.
        headers: Sent with each request.
        connections: How many are open at once, at most.
        timeout_seconds: To wait for a connection, and for each part of an answer.
        proxy: Which proxy to use.
        middleware: Changes each request.
    """
    trace = aiohttp.TraceConfig()
    trace.on_connection_create_start.append(_note_connecting)
    trace.on_connection_create_end.append(_note_sending)
    trace.on_connection_reuseconn.append(_note_sending)
    connector = aiohttp.TCPConnector(limit=connections, ssl=True if context is None else context)
    # aiohttp has no other place for it; a test fails should this one go.
    connector._factory = functools.partial(_BoundedProtocol, loop=connector._loop)  # type: ignore[assignment]  # noqa: SLF001
    return aiohttp.ClientSession(
        connector=connector,
        headers=headers,
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=timeout_seconds, sock_read=timeout_seconds),
        proxy=proxy,
        cookie_jar=aiohttp.DummyCookieJar(),
        middlewares=(middleware,),
        trace_configs=[trace],
    )
