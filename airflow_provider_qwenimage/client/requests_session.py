"""A requests session that gives exchanges a total deadline, and reads their answers with `http_answers`.

Without an exchange it is a plain session.
"""

from __future__ import annotations

import functools
import io
import queue
import socket
import ssl
import threading
from collections.abc import Mapping, MutableMapping
from http.client import HTTPMessage, HTTPResponse
from http.cookiejar import DefaultCookiePolicy
from typing import Any, Literal

import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ConnectTimeoutError

from airflow_provider_qwenimage.client.exchanges import Exchange
from airflow_provider_qwenimage.rules.http_answers import AnswerHead, UnreadableAnswerError

_RECEIVED_BYTES = 65_536


class BoundedSession(requests.Session):
    """A session for exchanges: see `Exchange.under_way`.

    Args:
        context: Checks the certificates of TLS servers; None for requests' default.
    """

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        super().__init__()
        for scheme in ("https://", "http://"):
            self.mount(scheme, _BoundedAdapter(context))
        # No login uses a cookie here, and the other client stores none either.
        self.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))

    def get_as_written(self, url: str, headers: Mapping[str, str], **options: Any) -> requests.Response:
        """Send a GET request to a URL whose spelling is kept: a signature may cover it.

        Args:
            url: The URL, encoded already.
            headers: Sent with this request.
            **options: As for `requests.Session.send`.
        """
        request = self.prepare_request(requests.Request("GET", url, headers=dict(headers)))
        # requests spells some characters in another way.
        request.url = url
        return self.send(request, **options)

    def get_redirect_target(self, resp: requests.Response) -> str | None:
        """Return None within an exchange: requests would read even the target of a redirect that it must not follow."""
        return super().get_redirect_target(resp) if Exchange.current() is None else None

    def merge_environment_settings(self, url: Any, proxies: Any, stream: Any, verify: Any, cert: Any) -> Any:
        """Return the arguments within an exchange: `network_environment` has read the environment for both clients."""
        if Exchange.current() is None:
            return super().merge_environment_settings(url, proxies, stream, verify, cert)
        return {"proxies": proxies or {}, "stream": stream, "verify": True, "cert": cert}


class _BoundedAdapter(HTTPAdapter):
    def __init__(self, context: ssl.SSLContext | None) -> None:
        self._context = context
        super().__init__()

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = _POOLS

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        if proxy.lower().startswith("socks"):
            manager = super().proxy_manager_for(proxy, **kwargs)
            manager.pool_classes_by_scheme = _socks_pools()
        else:
            # TLS to the proxy itself is checked with the same authorities.
            manager = super().proxy_manager_for(proxy, proxy_ssl_context=self._context, **kwargs)
            manager.pool_classes_by_scheme = _POOLS
        return manager

    def close(self) -> None:
        # Otherwise connections would stay open while anything, such as an error's traceback, refers to their pool.
        for manager in (self.poolmanager, *self.proxy_manager.values()):
            for key in manager.pools.keys():  # noqa: SIM118  it cannot be iterated over, on purpose
                pool = manager.pools.get(key)
                if pool is not None:
                    pool.close()
        super().close()

    def build_connection_pool_key_attributes(self, request: Any, verify: Any, cert: Any = None) -> Any:
        host, tls = super().build_connection_pool_key_attributes(request, verify, cert)
        if verify is True and self._context is not None:
            tls["ssl_context"] = self._context
            tls["cert_reqs"] = _requirement(self._context)
        return host, tls

    def cert_verify(self, conn: Any, url: str, verify: Any, cert: Any) -> None:
        context = self._context if verify is True else None
        # A context has its own authorities, so requests must not load its file.
        super().cert_verify(conn, url, verify and context is None, cert)  # type: ignore[no-untyped-call]
        if context is not None:
            conn.cert_reqs = _requirement(context)


def _requirement(context: ssl.SSLContext) -> Literal["CERT_REQUIRED", "CERT_NONE"]:
    return "CERT_NONE" if context.verify_mode == ssl.CERT_NONE else "CERT_REQUIRED"


class _TimedReader(io.RawIOBase):
    """Reads from a socket until the deadline of the exchange, however little arrives at a time."""

    def __init__(self, sock: Any, raw: io.RawIOBase, exchange: Exchange) -> None:
        self._sock, self._raw, self._exchange = sock, raw, exchange
        self._longest = sock.gettimeout()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        _limit(self._sock, self._exchange, self._longest)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        if not self.closed:
            self._raw.close()
        super().close()


class _Body(io.RawIOBase):
    """The body of an answer, as a file."""

    def __init__(self, sock: Any, received: io.BufferedReader[Any], exchange: Exchange) -> None:
        self._sock, self._received, self._exchange = sock, received, exchange
        self._reader = exchange.begin_answer()
        self._buffer = b""

    def head(self) -> AnswerHead:
        """Read status and headers."""
        while self._reader.head is None:
            self._buffer += self._receive()
        return self._reader.head

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._buffer and not self._reader.is_complete:
            self._buffer = self._receive()
        size = min(len(buffer), len(self._buffer))
        buffer[:size], self._buffer = self._buffer[:size], self._buffer[size:]
        return size

    def close(self) -> None:
        """Close the reader; the socket as well, unless another request may use it."""
        if not self.closed:
            if not self._reader.keeps_open:
                try:
                    self._sock.shutdown(socket.SHUT_RDWR)
                except (OSError, AttributeError):
                    self._sock.close()
            self._received.close()
        super().close()

    def _receive(self) -> bytes:
        data = self._received.read1(_RECEIVED_BYTES)
        try:
            return self._reader.feed(data) if data else self._reader.feed_eof()
        except UnreadableAnswerError as fault:
            self._exchange.fault = fault
            raise


class _BoundedResponse(HTTPResponse):
    """An answer within an exchange. A proxy's answer to CONNECT gets only the deadline."""

    def __init__(self, sock: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self._sock, self._exchange = sock, Exchange.current()
        if self._exchange is not None:
            received: Any = self.fp
            self.fp = io.BufferedReader(_TimedReader(sock, received.detach(), self._exchange))

    def begin(self) -> None:
        has_begun: object = self.headers
        if self._exchange is None or has_begun is not None:
            super().begin()
            return
        body = _Body(self._sock, self.fp, self._exchange)
        head = body.head()
        # http.client and urllib3 only see a body that ends with the file.
        self.code = self.status = head.status
        self.reason, self.version = "", 11
        self.headers = self.msg = HTTPMessage()
        for name in ("content-type", "location", "retry-after"):
            if name in head.headers:
                self.headers[name] = head.headers[name]
        self.chunked, self.length, self.will_close = False, None, False
        self.fp = io.BufferedReader(body)


class _NotingConnection(HTTPConnection):
    """Sends and receives within the deadline of the exchange, and notes in it whether anything was sent."""

    response_class = _BoundedResponse
    _is_connecting = False

    @property
    def _longest(self) -> float | None:
        return self.timeout if isinstance(self.timeout, int | float) else None

    def connect(self) -> None:
        self._is_connecting = True
        try:
            super().connect()
        finally:
            self._is_connecting = False

    def _tunnel(self) -> None:
        super()._tunnel()
        exchange = Exchange.current()
        if exchange is not None:
            _limit(self.sock, exchange, self._longest)

    def send(self, data: Any) -> None:
        exchange = Exchange.current()
        if exchange is not None:
            if self.sock is None and self.auto_open:
                self.connect()
            _limit(self.sock, exchange, self._longest)
            if not self._is_connecting:
                exchange.was_sent = True
        super().send(data)


class _BoundedConnection(_NotingConnection):
    def _new_conn(self) -> socket.socket:
        exchange = Exchange.current()
        if exchange is None:
            return super()._new_conn()
        attempt = Exchange(min(self._longest or exchange.seconds, exchange.seconds_left()))
        try:
            return _connected(self._dns_host, self.port, self.socket_options, attempt)
        except TimeoutError as error:
            raise ConnectTimeoutError(self, str(error)) from error


class _BoundedHttpsConnection(_BoundedConnection, HTTPSConnection):
    pass


class _Pool(HTTPConnectionPool):
    """Has an exchange open a connection if it must not use one of an earlier request."""

    def _get_conn(self, timeout: float | None = None) -> Any:
        connection = super()._get_conn(timeout)
        exchange = Exchange.current()
        if exchange is not None and exchange.opens_connection:
            # urllib3 opens it again, as it does with a connection that the server has closed.
            connection.close()
        return connection


class _HttpPool(_Pool):
    ConnectionCls = _BoundedConnection


class _HttpsPool(_Pool, HTTPSConnectionPool):
    ConnectionCls = _BoundedHttpsConnection


_POOLS: Mapping[str, Any] = {"http": _HttpPool, "https": _HttpsPool}


@functools.cache
def _socks_pools() -> Mapping[str, Any]:
    # It can only be imported if PySocks is installed.
    from urllib3.contrib import socks

    class SocksConnection(_NotingConnection, socks.SOCKSConnection):
        pass

    class SocksHttpsConnection(_NotingConnection, socks.SOCKSHTTPSConnection):
        pass

    class SocksPool(_Pool):
        ConnectionCls = SocksConnection

    class SocksHttpsPool(_Pool, HTTPSConnectionPool):
        ConnectionCls = SocksHttpsConnection

    return {"http": SocksPool, "https": SocksHttpsPool}


def _limit(sock: Any, exchange: Exchange, longest: float | None) -> None:
    left = exchange.seconds_left()
    sock.settimeout(left if longest is None else min(longest, left))


def _connected(host: str, port: int, options: Any, attempt: Exchange) -> socket.socket:
    """Return a socket connected to the first address of a host that answers before the attempt's deadline."""
    failure: OSError | None = None
    addresses = _addresses(host.strip("[]"), port, attempt)
    for number, (family, kind, protocol, _, address) in enumerate(addresses):
        sock: socket.socket | None = None
        try:
            # A machine without IPv6 finds such addresses, but has no sockets for them.
            sock = socket.socket(family, kind, protocol)
            for option in options or ():
                sock.setsockopt(*option)
            # An address that never answers must leave the others their share of the time.
            sock.settimeout(attempt.seconds_left() / (len(addresses) - number))
            sock.connect(address)
        except BaseException as error:
            if sock is not None:
                sock.close()
            if not isinstance(error, OSError):
                raise
            failure = error
        else:
            return sock
    raise failure or OSError(f"{host} has no address")


def _addresses(host: str, port: int, attempt: Exchange) -> list[Any]:
    """Look a host up. The look-up cannot be cancelled; its thread ends when the resolver gives up."""
    found: queue.SimpleQueue[list[Any] | Exception] = queue.SimpleQueue()

    def look_up() -> None:
        try:
            found.put(list(socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM)))
        except Exception as error:  # noqa: BLE001  raised in the waiting thread
            found.put(error)

    threading.Thread(target=look_up, name="qwenimage-look-up", daemon=True).start()
    try:
        outcome = found.get(timeout=attempt.seconds_left())
    except queue.Empty:
        raise attempt.timed_out() from None
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def open_session(context: ssl.SSLContext | None, headers: MutableMapping[str, str]) -> BoundedSession:
    """Return a session with headers of its own.

    Args:
        context: As for `BoundedSession`.
        headers: Sent with each request.
    """
    session = BoundedSession(context)
    session.headers.update(headers)
    return session
