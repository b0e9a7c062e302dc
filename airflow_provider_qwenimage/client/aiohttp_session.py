"""An aiohttp session that reads the answers of exchanges with `http_answers`. Without an exchange it is a plain one."""

from __future__ import annotations

import functools
import ssl
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import aiohttp
from aiohttp.client_proto import ResponseHandler
from yarl import URL

from airflow_provider_qwenimage.client.exchanges import Exchange
from airflow_provider_qwenimage.rules.http_answers import MAX_HEADER_BYTES, UnreadableAnswerError

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager
    from typing import TypeAlias

    from aiohttp.client_reqrep import ConnectionKey
    from aiohttp.connector import Connection
    from aiohttp.tracing import Trace

    _Response: TypeAlias = AbstractAsyncContextManager[aiohttp.ClientResponse]

# The other client's limits for a line of a proxy's answer.
_PROXY_LIMITS = {"max_line_size": MAX_HEADER_BYTES, "max_field_size": MAX_HEADER_BYTES}


class _BoundedProtocol(ResponseHandler):
    """Reads the bytes of an answer, and passes aiohttp the same answer in the simplest form."""

    _rewritten: _RewrittenAnswer | None = None

    def set_response_params(self, **params: Any) -> None:
        # A proxy's answer to CONNECT arrives before the connection exists, and aiohttp reads it itself.
        exchange = Exchange.current()
        self._rewritten = None
        if exchange is not None and exchange.is_connected:
            self._rewritten = _RewrittenAnswer(exchange)
        elif exchange is not None:
            params |= _PROXY_LIMITS
        super().set_response_params(**params)

    def data_received(self, data: bytes) -> None:
        if self._rewritten is None or not data:
            super().data_received(data)
        else:
            self._take(self._rewritten, data)

    def eof_received(self) -> None:
        if self._rewritten is not None and not self._rewritten.has_ended():
            self._take(self._rewritten, b"")
        super().eof_received()

    def _take(self, answer: _RewrittenAnswer, data: bytes) -> None:
        if answer.has_ended():
            # With data after the end of an answer, this connection must not be used again. If it is idle already,
            # aiohttp only checks whether it is open.
            self.force_close()
            self.close()
            return
        try:
            plain = answer.rewrite(data)
        except UnreadableAnswerError:
            # aiohttp reports a lost connection; the exchange's fault has the reason.
            if self.transport is not None:
                self.transport.abort()
            return
        if answer.reader.closes:
            self.force_close()
        if answer.has_ended():
            # Nothing more is expected, so aiohttp need not begin another timeout.
            self.read_timeout = None
        if plain:
            super().data_received(plain)
        else:
            # The data is not a complete line or chunk, but the server is alive.
            self.start_timeout()


class _RewrittenAnswer:
    """The answer of an exchange, rewritten in the simplest form."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self.reader = exchange.begin_answer()
        self._has_begun = False

    def has_ended(self) -> bool:
        """Whether the complete answer was received."""
        return self.reader.is_complete

    def rewrite(self, data: bytes) -> bytes:
        """Return the rewritten form of received bytes; empty `data` means the end of the connection."""
        try:
            body = self.reader.feed(data) if data else self.reader.feed_eof()
        except UnreadableAnswerError as fault:
            self._exchange.fault = fault
            raise
        head = self.reader.head
        if head is None:
            return b""
        begins = not self._has_begun
        self._has_begun = True
        if head.status in _WITHOUT_BODY:
            return b"HTTP/1.1 %d -\r\n\r\n" % head.status if begins else b""
        if begins and self.reader.is_complete:
            return b"HTTP/1.1 %d -\r\ncontent-length: %d\r\n\r\n%b" % (head.status, len(body), body)
        plain = b"HTTP/1.1 %d -\r\ntransfer-encoding: chunked\r\n\r\n" % head.status if begins else b""
        if body:
            plain += b"%x\r\n%b\r\n" % (len(body), body)
        return plain + (b"0\r\n\r\n" if self.reader.is_complete else b"")


_WITHOUT_BODY = (204, 304)


class _NotingConnector(aiohttp.TCPConnector):
    """Notes in the exchange that a connection exists: a new one, or if the exchange allows it one used before."""

    async def connect(
        self,
        req: aiohttp.ClientRequest,
        traces: list[Trace],
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109  aiohttp's own argument
    ) -> Connection:
        exchange = Exchange.current()
        if exchange is None:
            return await super().connect(req, traces, timeout)
        exchange.is_connected = False
        connection = await super().connect(req, traces, timeout)
        # With a connection, aiohttp sends at once.
        exchange.is_connected = exchange.was_sent = True
        return connection

    async def _get(self, key: ConnectionKey, traces: list[Trace]) -> Connection | None:
        connection = await super()._get(key, traces)
        exchange = Exchange.current()
        if connection is None or exchange is None or not exchange.opens_connection:
            return connection
        # The new connection takes its place among those that are kept.
        connection.close()
        return None


@functools.lru_cache(maxsize=100)
def _encoded(address: str) -> str:
    return str(URL(address))


class AiohttpSession:
    """A client session whose requests follow no redirects, and go to URLs that aiohttp need not encode.

    Attributes:
        client: The session itself.
    """

    def __init__(self, client: aiohttp.ClientSession) -> None:
        self.client = client

    def request(self, method: str, url: str, params: Mapping[str, str], **options: Any) -> _Response:
        """Send a request.

        Args:
            method: ``GET`` or ``POST``.
            url: The URL without a query.
            params: The query.
            **options: As for `aiohttp.ClientSession.request`.
        """
        # aiohttp would look at each character of the URL, for each poll.
        encoded = _encoded(url)
        target = URL(f"{encoded}?{urlencode(params)}" if params else encoded, encoded=True)
        return self.client.request(method, target, allow_redirects=False, **options)

    def get_as_written(self, url: str, **options: Any) -> _Response:
        """Send a GET request to a URL whose spelling is kept: a signature may cover it."""
        return self.client.get(URL(url, encoded=True), allow_redirects=False, **options)


def open_session(
    context: ssl.SSLContext | None,
    headers: Mapping[str, str],
    *,
    connections: int,
    timeout_seconds: float,
    proxy: str | None,
    middleware: aiohttp.ClientMiddlewareType | None = None,
) -> AiohttpSession:
    """Return a session of the running event loop.

    Args:
        context: Checks the certificates of TLS servers; None for aiohttp's default.
        headers: Sent with each request.
        connections: The maximum of open connections.
        timeout_seconds: The timeout for a connection, and for each part of an answer.
        proxy: The URL of the proxy, if any.
        middleware: Changes each request, if given.
    """
    connector = _NotingConnector(limit=connections, ssl=True if context is None else context)
    # aiohttp offers no public way; a test fails if this one disappears.
    connector._factory = functools.partial(_BoundedProtocol, loop=connector._loop)  # type: ignore[assignment]  # noqa: SLF001
    return AiohttpSession(
        aiohttp.ClientSession(
            connector=connector,
            headers=headers,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=timeout_seconds, sock_read=timeout_seconds),
            proxy=proxy,
            cookie_jar=aiohttp.DummyCookieJar(),
            middlewares=() if middleware is None else (middleware,),
        )
    )
