"""Sends one call of the API and receives its answer: over requests, and over aiohttp. Decides nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from airflow_provider_qwenimage import __version__, retries
from airflow_provider_qwenimage.answers import MAX_ANSWER_BYTES, ApiCall, HttpAnswer, Result
from airflow_provider_qwenimage.contract import printable
from airflow_provider_qwenimage.exceptions import QwenImageError
from airflow_provider_qwenimage.rate_limit import RateLimit

if TYPE_CHECKING:
    from typing import Self

    import aiohttp
    import requests

    from airflow_provider_qwenimage.connection import ConnectionSettings

_HEADERS = {"Accept": "application/json", "User-Agent": f"airflow-provider-qwenimage/{__version__}"}
_CHUNK_BYTES = 65_536
# How many connections one session opens at most, for however many waits.
MAX_CONNECTIONS = 100


class RequestsTransport:
    """Sends calls over one requests session.

    Args:
        settings: What the connection says.

    Attributes:
        session: Carries the key, to the API's own origin only.
    """

    def __init__(self, settings: ConnectionSettings) -> None:
        import requests

        _check_authorities(settings)
        self._settings = settings
        self._rate_limit = RateLimit(settings.max_requests_per_second)
        self.session = requests.Session()
        self.session.headers.update(_HEADERS)
        origin, key = _origin(settings.base_url), settings.api_key

        def authorize(request: requests.PreparedRequest) -> requests.PreparedRequest:
            # Whatever else is fetched with this session, the key goes to the API's own origin only.
            if request.url and _origin(request.url) == origin:
                request.headers["Authorization"] = f"Bearer {key}"
            return request

        # As a function, so that no netrc file replaces the key either.
        self.session.auth = authorize

    def close(self) -> None:
        """Close the session's connections."""
        self.session.close()

    def send(self, call: ApiCall[Result]) -> Result:
        """Send `call` once and return what its answer means.

        Raises:
            QwenImageError: If the answer is not a success, or did not come.
        """
        import requests

        settings = self._settings
        time.sleep(self._rate_limit.wait(time.monotonic()))
        sent_at = time.monotonic()
        self._rate_limit.sent(sent_at)
        body = None if call.body is None else _WatchedBody(call.body)
        try:
            with self.session.request(
                call.method,
                settings.base_url + call.path,
                params=dict(call.params),
                data=body,
                headers=_content_headers(call),
                timeout=settings.timeout_seconds,
                verify=settings.verify,
                allow_redirects=False,
                stream=True,
            ) as response:
                content = bytearray()
                for chunk in response.iter_content(_CHUNK_BYTES):
                    content += chunk
                    if len(content) > MAX_ANSWER_BYTES:
                        break
                answer = _answer(settings, response.status_code, response.headers, content)
        except requests.RequestException as error:
            sent = body.was_read if body is not None else not _never_connected(error)
            raise retries.lost(call, describe(error, settings), sent=sent) from error
        return _read_in_pace(self._rate_limit, sent_at, call, answer)


class Pace:
    """A rate limit that the tasks of an event loop wait for in one line."""

    def __init__(self) -> None:
        self.limit = RateLimit()
        self._line = asyncio.Lock()

    async def turn(self) -> float:
        """Wait until the next request may be sent, and return that moment on the monotonic clock."""
        now = time.monotonic()
        if self.limit.is_idle:
            self.limit.sent(now)
            return now
        async with self._line:
            now = time.monotonic()
            while (pause := self.limit.wait(now)) > 0:
                await asyncio.sleep(pause)
                now = time.monotonic()
            self.limit.sent(now)
            return now


class AiohttpTransport:
    """Sends calls over one aiohttp session, in the event loop that opened it.

    Args:
        settings: What the connection says.
        session: Carries the key, to the API's own origin only.
        pace: When to send.
    """

    def __init__(self, settings: ConnectionSettings, session: aiohttp.ClientSession, pace: Pace) -> None:
        self._settings = settings
        self._pace = pace
        self.session = session

    @classmethod
    async def open(cls, settings: ConnectionSettings, pace: Pace) -> Self:
        """Return a transport with a session of its own."""
        # The first import takes longer than a triggerer's event loop may stand still.
        await asyncio.to_thread(import_module, "aiohttp")
        return cls(settings, await _open_aiohttp_session(settings), pace)

    async def close(self) -> None:
        """Close the session's connections."""
        await self.session.close()

    async def send(self, call: ApiCall[Result]) -> Result:
        """Send `call` once and return what its answer means.

        Raises:
            QwenImageError: If the answer is not a success, or did not come.
        """
        import aiohttp

        settings = self._settings
        sent_at = await self._pace.turn()
        try:
            async with self.session.request(
                call.method,
                settings.base_url + call.path,
                params=dict(call.params),
                data=call.body,
                headers=_content_headers(call),
                allow_redirects=False,
            ) as response:
                content = bytearray()
                async for chunk in response.content.iter_any():
                    content += chunk
                    if len(content) > MAX_ANSWER_BYTES:
                        break
                answer = _answer(settings, response.status, response.headers, content)
        except (aiohttp.ClientError, TimeoutError) as error:
            never_sent = isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError)
            raise retries.lost(call, describe(error, settings), sent=not never_sent) from error
        return _read_in_pace(self._pace.limit, sent_at, call, answer)


def _read_in_pace(limit: RateLimit, sent_at: float, call: ApiCall[Result], answer: HttpAnswer) -> Result:
    """Return what an answer means, and let the pace follow it."""
    try:
        result = retries.read_answer(call, answer)
    except QwenImageError as error:
        limit.learn(error, sent_at, time.monotonic())
        raise
    limit.learn(None, sent_at, time.monotonic())
    return result


class _WatchedBody:
    """A request body that remembers whether any of it was handed to the network.

    The exceptions of requests do not tell a refused connection from a lost answer in every case, but a
    submission whose body never left surely was not accepted.
    """

    def __init__(self, content: bytes) -> None:
        self._content = content
        self.was_read = False

    def __len__(self) -> int:
        return len(self._content)

    def __iter__(self) -> Iterator[bytes]:
        self.was_read = True
        yield self._content


def _never_connected(error: requests.RequestException) -> bool:
    """Whether requests says that there was no connection; not known to be complete, so nothing paid hangs on it."""
    from urllib3.exceptions import ConnectTimeoutError, NewConnectionError, ProxyError, SSLError

    reason = getattr(error.args[0], "reason", None) if error.args else None
    return isinstance(reason, ConnectTimeoutError | NewConnectionError | ProxyError | SSLError)


async def _open_aiohttp_session(settings: ConnectionSettings) -> aiohttp.ClientSession:
    import ssl
    from urllib.request import getproxies

    import aiohttp

    verify: bool | ssl.SSLContext
    if isinstance(settings.verify, str):
        _check_authorities(settings)
        try:
            verify = await asyncio.to_thread(ssl.create_default_context, cafile=settings.verify)
        except ssl.SSLError as error:
            raise ValueError(
                f"The connection has verify = {settings.verify!r} in its extra, and that file holds no certificates "
                f"({error.reason or error}); allowed is a file of certificate authorities in PEM form."
            ) from error
    else:
        verify = settings.verify
    origin, key = _origin(settings.base_url), settings.api_key

    async def authorize(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        url = request.url
        if (url.scheme, url.host, url.port) == origin:
            request.headers["Authorization"] = f"Bearer {key}"
        return await handler(request)

    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=MAX_CONNECTIONS, ssl=verify),
        headers=_HEADERS,
        # Per connection and per read, as requests counts them.
        timeout=aiohttp.ClientTimeout(
            total=None, sock_connect=settings.timeout_seconds, sock_read=settings.timeout_seconds
        ),
        # Off without a proxy to find: aiohttp would look for a netrc file at every request.
        trust_env=bool(getproxies()),
        cookie_jar=aiohttp.DummyCookieJar(),
        middlewares=(authorize,),
    )


def _check_authorities(settings: ConnectionSettings) -> None:
    if isinstance(settings.verify, str) and not Path(settings.verify).is_file():
        raise ValueError(
            f"The connection has verify = {settings.verify!r} in its extra, and there is no such file on this machine; "
            "allowed are true, false or the path of a file of certificate authorities (PEM), which must be on every "
            "worker and triggerer."
        )


def _content_headers(call: ApiCall[Any]) -> dict[str, str]:
    return {} if call.body is None else {"Content-Type": "application/json"}


def _answer(settings: ConnectionSettings, status: int, headers: Mapping[str, str], content: bytearray) -> HttpAnswer:
    # Should the API quote the key in an answer, it ends here: not in an error, a log or an XCom.
    body = bytes(content).replace(settings.api_key.encode("ascii"), b"***")
    return HttpAnswer(status, {name.lower(): settings.without_key(value) for name, value in headers.items()}, body)


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def describe(error: BaseException, settings: ConnectionSettings | None = None) -> str:
    """Return what a library said as one sentence, without the API key.

    Args:
        error: What the library raised.
        settings: Whose key to blot out.
    """
    text = printable(f"{type(error).__name__}: {error}".rstrip(": ")).rstrip(".") + "."
    return settings.without_key(text) if settings else text
