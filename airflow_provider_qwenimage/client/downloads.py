"""Downloads an image from the host that the API names, and verifies it. The API key is never sent there.

A download must make progress: see `DownloadPace`. It uses the same kind of session as the calls of the API, with the
connection's `verify`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

from airflow_provider_qwenimage._version import __version__
from airflow_provider_qwenimage.client.download_tries import DownloadPace, DownloadTries
from airflow_provider_qwenimage.client.exchanges import Exchange
from airflow_provider_qwenimage.client.network_environment import http_proxy_for, proxy_for, tls_context
from airflow_provider_qwenimage.client.sessions import open_aiohttp_session, open_requests_session
from airflow_provider_qwenimage.client.spans import Span, span
from airflow_provider_qwenimage.exceptions import QwenImageImageError
from airflow_provider_qwenimage.rules.retries import RequestRetries

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from airflow_provider_qwenimage.client.aiohttp_session import AiohttpSession
    from airflow_provider_qwenimage.client.requests_session import BoundedSession
    from airflow_provider_qwenimage.rules.http_answers import AnswerHead

Result = TypeVar("Result")

log = logging.getLogger(__name__)

_RETRIES = RequestRetries(limit=5, delay_seconds=1.0)
_PACE = DownloadPace()
# Small, since each received chunk gives a download more time.
_CHUNK_BYTES = 16 * 1024
_HEADERS = {
    "User-Agent": f"airflow-provider-qwenimage/{__version__}",
    "Accept": "image/*, */*",
    # `decoded_body` reads these.
    "Accept-Encoding": "gzip, deflate",
}


class ImageClient:
    """Sends requests to image hosts, over requests. A context manager.

    Args:
        verify: The connection's: whether TLS certificates are checked, or the path of a file of authorities.
    """

    def __init__(self, verify: bool | str = True) -> None:  # noqa: FBT001, FBT002  the connection's field
        self._verify = verify
        self._sessions: dict[bool, BoundedSession] = {}
        _hide_queries_in_logs()

    def session(self, url: str) -> BoundedSession:
        """Return the session for a URL. Certificates are only read for https.

        Raises:
            ValueError: If `verify` is not a file of authorities.
            QwenImageConnectionError: If an environment variable for TLS does not name one.
        """
        is_secure = url.startswith("https:")
        if is_secure not in self._sessions:
            session = open_requests_session(tls_context(self._verify) if is_secure else None, _HEADERS)
            # Without it, requests would look for credentials in a netrc file.
            session.auth = lambda request: request
            self._sessions[is_secure] = session
        return self._sessions[is_secure]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for session in self._sessions.values():
            session.close()


class AsyncImageClient:
    """Sends requests to image hosts, over aiohttp. An async context manager of the running event loop.

    Args:
        connections: The maximum of open connections.
        verify: As for `ImageClient`.
    """

    def __init__(self, connections: int, verify: bool | str = True) -> None:  # noqa: FBT001, FBT002  as above
        self._connections = connections
        self._verify = verify
        self._opening = asyncio.Lock()
        self._sessions: dict[bool, AiohttpSession] = {}
        self._proxies: dict[str, str | None] = {}

    async def proxy(self, url: str) -> str | None:
        """Return the proxy for a URL, which is looked up once for each origin; see `http_proxy_for`."""
        parts = urlsplit(url)
        origin = f"{parts.scheme}://{parts.netloc}"
        if origin not in self._proxies:
            self._proxies[origin] = await asyncio.to_thread(http_proxy_for, url)
        return self._proxies[origin]

    async def session(self, url: str) -> AiohttpSession:
        """Return the session for a URL; see `ImageClient.session`."""
        is_secure = url.startswith("https:")
        async with self._opening:
            if is_secure not in self._sessions:
                # It reads certificates from files, which would block the event loop.
                context = await asyncio.to_thread(tls_context, self._verify) if is_secure else None
                self._sessions[is_secure] = await open_aiohttp_session(
                    context, _HEADERS, connections=self._connections, timeout_seconds=_PACE.first_seconds
                )
            return self._sessions[is_secure]

    async def close(self) -> None:
        """Close the connections."""
        for session in self._sessions.values():
            await session.client.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()


def fetch(
    client: ImageClient,
    url: str,
    max_image_bytes: int,
    use: Callable[[bytes], Result],
    see_head: Callable[[AnswerHead], None] | None = None,
    *,
    image_task_id: str = "",
) -> Result:
    """Download one image and pass it on, with retries after a fault that may pass.

    The image is held in memory.

    Args:
        client: Sends the requests.
        url: The URL of the image.
        max_image_bytes: A longer download is refused, compressed or not.
        use: Verifies the bytes of the file; what it raises may be tried again.
        see_head: Called with status and headers of each answer.
        image_task_id: The API's id of the image task, for traces.

    Returns:
        The result of `use`.

    Raises:
        QwenImageImageError: If the download fails, or the image is not the requested one.
    """
    download = DownloadTries(url, max_image_bytes, _RETRIES, _PACE, see_head)
    while True:
        try:
            return use(_download(client, download, image_task_id))
        except QwenImageImageError as error:
            pause = download.pause(error)
            if pause is None:
                raise
        time.sleep(pause)


async def fetch_async(
    client: AsyncImageClient,
    url: str,
    max_image_bytes: int,
    use: Callable[[bytes], Awaitable[Result]],
    image_task_id: str = "",
) -> Result:
    """Download one image and pass it on, with retries after a fault that may pass.

    Args:
        client: Sends the requests.
        url: The URL of the image.
        max_image_bytes: A longer download is refused, compressed or not.
        use: As for `fetch`, in a thread.
        image_task_id: As for `fetch`.

    Returns:
        The result of `use`.

    Raises:
        QwenImageImageError: If the download fails, or the image is not the requested one.
    """
    download = DownloadTries(url, max_image_bytes, _RETRIES, _PACE)
    while True:
        try:
            return await use(await _download_async(client, download, image_task_id))
        except QwenImageImageError as error:
            pause = download.pause(error)
            if pause is None:
                raise
        await asyncio.sleep(pause)


def _download(client: ImageClient, download: DownloadTries, image_task_id: str) -> bytes:
    exchange = download.begin()
    with span("download", task_id=image_task_id) as one_try:
        try:
            while not download.is_complete:
                exchange = download.next_exchange()
                _receive(client, download, exchange)
            return _counted(download.content(), one_try)
        except Exception as error:  # noqa: BLE001  any error of a library: the download has failed
            failure = download.failure(error, exchange)
        # Outside of the handler, so that no error of a library, which may contain the URL's signature, becomes its
        # context.
        raise failure


def _receive(client: ImageClient, download: DownloadTries, exchange: Exchange) -> None:
    request = download.request
    session, proxy = client.session(request.url), proxy_for(request.url)
    with (
        exchange.under_way(),
        session.get_as_written(
            request.url,
            request.headers,
            stream=True,
            timeout=_PACE.first_seconds,
            verify=True,
            proxies={scheme: proxy for scheme in ("http", "https") if proxy},
            allow_redirects=False,
        ) as response,
    ):
        if download.take_head(exchange.head):
            for chunk in response.iter_content(_CHUNK_BYTES):
                exchange.allow(download.add(chunk))
            download.take_end()


async def _download_async(client: AsyncImageClient, download: DownloadTries, image_task_id: str) -> bytes:
    exchange = download.begin()
    with span("download", task_id=image_task_id) as one_try:
        try:
            while not download.is_complete:
                exchange = download.next_exchange()
                await _receive_async(client, download, exchange)
            return _counted(download.content(), one_try)
        except Exception as error:  # noqa: BLE001  any error of a library: the download has failed
            failure = download.failure(error, exchange)
        # As above.
        raise failure


def _counted(content: bytes, one_try: Span) -> bytes:
    one_try.note(bytes=len(content))
    return content


async def _receive_async(client: AsyncImageClient, download: DownloadTries, exchange: Exchange) -> None:
    request = download.request
    session = await client.session(request.url)
    proxy = await client.proxy(request.url)
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(exchange.seconds_left()) as limit:
        with exchange.under_way():
            async with session.get_as_written(request.url, headers=request.headers, proxy=proxy) as response:
                if download.take_head(exchange.head):
                    async for chunk in response.content.iter_any():
                        exchange.allow(download.add(chunk))
                        limit.reschedule(loop.time() + exchange.seconds_left())
                    download.take_end()


class _QueriesHidden(logging.Filter):
    """Removes the queries of URLs, which may grant access, from log records of a download."""

    def filter(self, record: logging.LogRecord) -> bool:
        if Exchange.current() is not None and isinstance(record.args, tuple):
            record.args = tuple(
                argument.partition("?")[0] if isinstance(argument, str) else argument for argument in record.args
            )
        return True


_QUERIES_HIDDEN = _QueriesHidden()


def _hide_queries_in_logs() -> None:
    # urllib3 logs each path with its query. Adding the same filter twice has no effect.
    logging.getLogger("urllib3.connectionpool").addFilter(_QUERIES_HIDDEN)
