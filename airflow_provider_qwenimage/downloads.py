"""Downloads an image from the host that the API names, and checks it. No credentials of any kind go there."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies

from airflow_provider_qwenimage import __version__
from airflow_provider_qwenimage.contract import GenerateRequest, printable
from airflow_provider_qwenimage.exceptions import QwenImageImageError
from airflow_provider_qwenimage.retries import RequestRetries
from airflow_provider_qwenimage.verification import ImageFacts, verify_image

if TYPE_CHECKING:
    import aiohttp
    import requests

Result = TypeVar("Result")

log = logging.getLogger(__name__)

_TIMEOUT_SECONDS = 60.0
_RETRIES = RequestRetries(limit=5, delay_seconds=1.0)
_CHUNK_BYTES = 256 * 1024
_USER_AGENT = f"airflow-provider-qwenimage/{__version__}"


def open_session() -> requests.Session:
    """Return a session for the image host; a context manager."""
    import requests

    class WithoutCredentials(requests.Session):
        def rebuild_auth(self, prepared_request: object, response: object) -> None:
            """Add nothing: at a redirect, requests would look into the netrc file again."""

    session = WithoutCredentials()
    session.headers["User-Agent"] = _USER_AGENT
    # Otherwise requests would look for credentials in a netrc file.
    session.auth = lambda request: request
    return session


def open_async_session(connections: int) -> aiohttp.ClientSession:
    """Return a session for the image host, of the event loop that runs; an asynchronous context manager.

    Args:
        connections: How many are open at once, at most.
    """
    import aiohttp

    async def without_credentials(
        request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        # Where a proxy is to be found, aiohttp looks for credentials in a netrc file as well.
        request.headers.popall("Authorization", None)
        return await handler(request)

    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=connections),
        headers={"User-Agent": _USER_AGENT},
        # Per connection and per read, as requests counts them.
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=_TIMEOUT_SECONDS, sock_read=_TIMEOUT_SECONDS),
        trust_env=bool(getproxies()),
        cookie_jar=aiohttp.DummyCookieJar(),
        middlewares=(without_credentials,),
    )


def fetch(
    session: requests.Session, url: str, request: GenerateRequest, max_image_bytes: int
) -> tuple[bytes, ImageFacts]:
    """Download one image and verify it, again after a fault that may pass.

    It is held in memory: to be verified it is decoded, which takes as much again.

    Args:
        session: What `open_session` returned.
        url: Where the image is.
        request: What was asked for.
        max_image_bytes: A longer download is refused.

    Returns:
        The bytes of the file, and what was verified of them.

    Raises:
        QwenImageImageError: If it does not come, or is not what was asked for.
    """
    tries = 0
    while True:
        try:
            content = _download(session, url, max_image_bytes)
            return content, verify_image(content, request)
        except QwenImageImageError as error:
            pause = _pause(error, tries, url)
            if pause is None:
                raise
        time.sleep(pause)
        tries += 1


async def fetch_async(
    session: aiohttp.ClientSession, url: str, max_image_bytes: int, use: Callable[[bytes], Awaitable[Result]]
) -> Result:
    """Download one image and hand it on, again after a fault that may pass.

    Args:
        session: What `open_async_session` returned.
        url: Where the image is.
        max_image_bytes: A longer download is refused.
        use: Verifies the bytes of the file, in a thread.

    Returns:
        What `use` returned.

    Raises:
        QwenImageImageError: If it does not come, or is not what was asked for.
    """
    tries = 0
    while True:
        try:
            return await use(await _download_async(session, url, max_image_bytes))
        except QwenImageImageError as error:
            pause = _pause(error, tries, url)
            if pause is None:
                raise
        await asyncio.sleep(pause)
        tries += 1


def _pause(error: QwenImageImageError, tries: int, url: str) -> float | None:
    pause = _RETRIES.pause(error, tries)
    if pause is not None:
        log.warning("Download of %s failed; trying again in %.1f s: %s", without_query(url), pause, error)
    return pause


def _download(session: requests.Session, url: str, max_image_bytes: int) -> bytes:
    import requests

    download = _Download(url, max_image_bytes)
    try:
        with session.get(url, stream=True, timeout=_TIMEOUT_SECONDS) as response:
            download.begin(response.status_code, response.headers)
            for chunk in response.iter_content(_CHUNK_BYTES):
                download.add(chunk)
    except requests.RequestException as error:
        raise download.lost(error) from error
    return download.content()


async def _download_async(session: aiohttp.ClientSession, url: str, max_image_bytes: int) -> bytes:
    import aiohttp
    from yarl import URL

    download = _Download(url, max_image_bytes)
    try:
        # As it is written: a signature may be of the very characters, where yarl knows two spellings of one thing.
        async with session.get(URL(url, encoded=url.isascii())) as response:
            download.begin(response.status, response.headers)
            async for chunk in response.content.iter_any():
                download.add(chunk)
    except (aiohttp.ClientError, TimeoutError) as error:
        raise download.lost(error) from error
    return download.content()


class _Download:
    """What becomes of an answer of the image host, whichever client reads it."""

    def __init__(self, url: str, max_image_bytes: int) -> None:
        self._shown = without_query(url)
        self._max_image_bytes = max_image_bytes
        self._promised: int | None = None
        self._content = bytearray()

    def begin(self, status: int, headers: Mapping[str, str]) -> None:
        if status != HTTPStatus.OK:
            raise QwenImageImageError(
                f"{self._shown} answered HTTP {status} instead of the image. Image URLs may expire; "
                "if it is too late, submit the prompt again."
            )
        self._promised = _content_length(headers)
        if self._promised is not None:
            self._check_size(self._promised)

    def add(self, chunk: bytes) -> None:
        self._content += chunk
        self._check_size(len(self._content))

    def content(self) -> bytes:
        if self._promised is not None and len(self._content) != self._promised:
            raise QwenImageImageError(
                f"{self._shown} ended after {len(self._content)} of {self._promised} bytes. Try again."
            )
        return bytes(self._content)

    def lost(self, error: Exception) -> QwenImageImageError:
        return QwenImageImageError(
            f"{self._shown} could not be downloaded: {type(error).__name__}: {printable(str(error))}. Check that the "
            "worker may reach the image host."
        )

    def _check_size(self, size_bytes: int) -> None:
        if size_bytes > self._max_image_bytes:
            raise QwenImageImageError(
                f"{self._shown} is larger than allowed: at least {size_bytes} bytes, limit {self._max_image_bytes}. "
                "Raise max_image_bytes if images may be that large.",
                permanent=True,
            )


def _content_length(headers: Mapping[str, str]) -> int | None:
    value = headers.get("Content-Length", "")
    # A compressed transfer's length is not the file's.
    if "Content-Encoding" in headers or not (value.isascii() and value.isdigit()):
        return None
    return int(value[:18])


def without_query(url: str) -> str:
    """Return a URL without its query, which may hold a signature that grants access."""
    return printable(urlsplit(url)._replace(query="", fragment="").geturl())
