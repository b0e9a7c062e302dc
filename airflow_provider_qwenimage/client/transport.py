"""Sends one call of the API and receives its answer, over requests or over aiohttp."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any

from airflow_provider_qwenimage._version import __version__
from airflow_provider_qwenimage.client.diagnosis import describe, explain, is_interruption
from airflow_provider_qwenimage.client.exchanges import Exchange
from airflow_provider_qwenimage.client.network_environment import http_proxy_for, proxy_for, tls_context
from airflow_provider_qwenimage.client.sessions import open_aiohttp_session, open_requests_session
from airflow_provider_qwenimage.exceptions import QwenImageError
from airflow_provider_qwenimage.rules import polling, retries
from airflow_provider_qwenimage.rules.answers import MAX_ANSWER_BYTES, ApiCall, HttpAnswer, Result
from airflow_provider_qwenimage.rules.http_answers import UnreadableAnswerError, decoded_body
from airflow_provider_qwenimage.rules.origins import Origin
from airflow_provider_qwenimage.rules.rate_limit import RateLimit

if TYPE_CHECKING:
    import ssl
    from typing import Self

    import aiohttp
    import requests

    from airflow_provider_qwenimage.client.aiohttp_session import AiohttpSession
    from airflow_provider_qwenimage.client.connection import ConnectionSettings

log = logging.getLogger(__name__)

_HEADERS = {
    "User-Agent": f"airflow-provider-qwenimage/{__version__}",
    "Accept": "application/json",
    # `decoded_body` reads these.
    "Accept-Encoding": "gzip, deflate",
}
_CHUNK_BYTES = 65_536
# One session opens at most this many connections, for any number of waits.
MAX_CONNECTIONS = 100


class RequestsTransport:
    """Sends calls over one requests session.

    Args:
        settings: The settings of the connection.

    Attributes:
        session: Sends the key, to the API's own origin only.

    Raises:
        ValueError: If the connection's `verify` is not usable.
        QwenImageConnectionError: If an environment variable for TLS or the proxy is not usable.
    """

    def __init__(self, settings: ConnectionSettings) -> None:
        self._settings = settings
        self._rate_limit = RateLimit(settings.max_requests_per_second)
        proxy = proxy_for(settings.base_url)
        self._proxies = {scheme: proxy for scheme in ("http", "https") if proxy}
        self.session: requests.Session = open_requests_session(_tls_context(settings), _HEADERS)
        origin, authorization = Origin.of(settings.base_url), _authorization(settings)

        def authorize(request: requests.PreparedRequest) -> requests.PreparedRequest:
            # Users may send other requests with this session; the key goes to the API's own origin only.
            if request.url and Origin.is_of(origin, request.url):
                request.headers.update(authorization)
            return request

        # A function, so that a netrc file does not replace the key.
        self.session.auth = authorize

    def close(self) -> None:
        """Close the session's connections."""
        self.session.close()

    def send(self, call: ApiCall[Result], seconds: float | None = None) -> Result:
        """Send a call once and return its result.

        Args:
            call: The call.
            seconds: Its time limit, if that is less than the connection allows for a call.

        Raises:
            QwenImageError: If there is no answer, or it is not a success.
        """
        settings = self._settings
        pause = self._rate_limit.wait(time.monotonic())
        if seconds is not None and pause >= seconds:
            time.sleep(seconds)
            raise polling.read_too_late(seconds)
        time.sleep(pause)
        sent_at = time.monotonic()
        self._rate_limit.sent(sent_at)
        exchange = _exchange(call, _shorter(seconds, settings.seconds_for_a_call))
        try:
            with (
                exchange.under_way(),
                self.session.request(
                    call.method,
                    settings.base_url + call.path,
                    params=dict(call.params),
                    data=call.body,
                    headers=_content_headers(call),
                    timeout=settings.timeout_seconds,
                    proxies=self._proxies,
                    allow_redirects=False,
                    stream=True,
                ) as response,
            ):
                content = bytearray()
                for chunk in response.iter_content(_CHUNK_BYTES):
                    content += chunk
                    if len(content) > MAX_ANSWER_BYTES:
                        break
        except Exception as error:  # noqa: BLE001  any error of a library: only whether the call was sent matters
            failure = _lost(call, error, exchange, settings)
        else:
            return _read_in_pace(self._rate_limit, sent_at, call, _answer(settings, exchange, content))
        # Outside of the handler, so that no error of a library, which may contain the key, becomes its context.
        raise failure


class Pace:
    """A rate limit that the tasks of an event loop share, in the order in which they ask."""

    def __init__(self) -> None:
        self.limit = RateLimit()
        self._queue = asyncio.Lock()

    async def turn(self) -> float:
        """Wait until the next request may be sent, and return that moment on the monotonic clock."""
        now = time.monotonic()
        if self.limit.is_idle:
            self.limit.sent(now)
            return now
        async with self._queue:
            now = time.monotonic()
            while (pause := self.limit.wait(now)) > 0:
                await asyncio.sleep(pause)
                now = time.monotonic()
            self.limit.sent(now)
            return now


class AiohttpTransport:
    """Sends calls over one aiohttp session, in the event loop that opened it.

    Args:
        settings: The settings of the connection.
        session: Sends the key, to the API's own origin only.
        pace: The rate limit.

    Attributes:
        settings: The settings of the connection.
        session: The client of the session.
        books: The books of the connection.
    """

    def __init__(self, settings: ConnectionSettings, session: AiohttpSession, pace: Pace) -> None:
        self.settings = settings
        self.books = settings.books
        self._pace = pace
        self._authorization = _authorization(settings)
        self._session = session
        self.session = session.client

    @classmethod
    async def open(cls, settings: ConnectionSettings, pace: Pace) -> Self:
        """Return a transport with a session of its own."""
        return cls(settings, await _open_api_session(settings), pace)

    async def close(self) -> None:
        """Close the session's connections."""
        await self.session.close()

    @property
    def sends_at_once(self) -> bool:
        """Whether no request has to wait for its turn."""
        return self._pace.limit.is_idle

    async def send(self, call: ApiCall[Result], seconds: float | None = None) -> Result:
        """Send a call once and return its result.

        Args:
            call: The call.
            seconds: Its time limit, if that is less than the connection allows for a call.

        Raises:
            QwenImageError: If there is no answer, or it is not a success.
        """
        settings = self.settings
        sent_at = await self._pace.turn()
        exchange = _exchange(call, _shorter(seconds, settings.seconds_for_a_call))
        try:
            async with asyncio.timeout(exchange.seconds):
                with exchange.under_way():
                    content = await self._receive(call)
        except Exception as error:  # noqa: BLE001  any error of a library: only whether the call was sent matters
            failure = _lost(call, error, exchange, settings)
        else:
            return _read_in_pace(self._pace.limit, sent_at, call, _answer(settings, exchange, content))
        # Outside of the handler, so that no error of a library, which may contain the key, becomes its context.
        raise failure

    async def _receive(self, call: ApiCall[Any]) -> bytearray:
        async with self._session.request(
            call.method,
            self.settings.base_url + call.path,
            call.params,
            data=call.body,
            headers=_content_headers(call) | self._authorization,
            # The session's own middleware checks the target of each request; this one is known to be the API.
            middlewares=(),
        ) as response:
            content = bytearray()
            async for chunk in response.content.iter_any():
                content += chunk
                if len(content) > MAX_ANSWER_BYTES:
                    break
            return content


def _exchange(call: ApiCall[Any], seconds: float) -> Exchange:
    # If a server closes a kept connection just as a request leaves, nobody knows whether it took the request. A read is
    # repeated then; a submission may be paid.
    return Exchange(seconds, opens_connection=call.submission)


def _read_in_pace(limit: RateLimit, sent_at: float, call: ApiCall[Result], answer: HttpAnswer) -> Result:
    """Return the result of a call, and adapt the pace to its answer."""
    try:
        result = retries.read_answer(call, answer)
    except QwenImageError as error:
        limit.learn(error, sent_at, time.monotonic())
        raise
    limit.learn(None, sent_at, time.monotonic())
    if call.notice is not None and (notice := call.notice(answer)):
        log.warning("%s", notice)
    return result


def _lost(call: ApiCall[Any], error: Exception, exchange: Exchange, settings: ConnectionSettings) -> QwenImageError:
    """Return the error for a call that failed in a library."""
    if is_interruption(error):
        raise error
    cause: BaseException = exchange.fault or error
    if exchange.fault is None and exchange.is_over:
        cause = exchange.timed_out()
    by_proxy = not exchange.was_sent and proxy_for(settings.base_url) is not None
    reason = explain(cause, settings, exchange.seconds, by_proxy=by_proxy)
    return retries.lost(call, describe(cause, settings), sent=exchange.was_sent, reason=reason)


def _shorter(seconds: float | None, most: float) -> float:
    return most if seconds is None else min(seconds, most)


async def _open_api_session(settings: ConnectionSettings) -> AiohttpSession:
    def read_environment() -> tuple[str | None, ssl.SSLContext | None]:
        return http_proxy_for(settings.base_url), _tls_context(settings)

    # It reads certificates from files and imports requests, which would block the event loop.
    proxy, context = await asyncio.to_thread(read_environment)
    origin, authorization = Origin.of(settings.base_url), _authorization(settings)

    async def authorize(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        if Origin.is_of(origin, str(request.url)):
            request.headers.update(authorization)
        return await handler(request)

    return await open_aiohttp_session(
        context,
        _HEADERS,
        connections=MAX_CONNECTIONS,
        timeout_seconds=settings.timeout_seconds,
        proxy=proxy,
        middleware=authorize,
    )


def _tls_context(settings: ConnectionSettings) -> ssl.SSLContext | None:
    """Return the TLS context; for a base URL without TLS only if the connection names a file, to check that."""
    if settings.base_url.startswith("https:") or isinstance(settings.verify, str):
        return tls_context(settings.verify)
    return None


def _authorization(settings: ConnectionSettings) -> dict[str, str]:
    return {"Authorization": f"Bearer {settings.api_key}"}


def _content_headers(call: ApiCall[Any]) -> dict[str, str]:
    return {} if call.body is None else {"Content-Type": "application/json"}


def _answer(settings: ConnectionSettings, exchange: Exchange, content: bytearray) -> HttpAnswer:
    head = exchange.head
    try:
        body = decoded_body(head, bytes(content), MAX_ANSWER_BYTES)
    except UnreadableAnswerError as fault:
        # The body cannot be read, but the status still counts.
        body = f"({fault})".encode()
    return HttpAnswer(head.status, head.headers, body, settings.mask)
