"""Opens HTTP sessions. requests and aiohttp load with the first of each: Airflow imports the package all day."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, MutableMapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import aiohttp

    from airflow_provider_qwenimage.client.aiohttp_session import AiohttpSession
    from airflow_provider_qwenimage.client.requests_session import BoundedSession


def open_requests_session(context: ssl.SSLContext | None, headers: MutableMapping[str, str]) -> BoundedSession:
    """Return a requests session; see `requests_session.BoundedSession`."""
    from airflow_provider_qwenimage.client.requests_session import open_session

    return open_session(context, headers)


async def open_aiohttp_session(
    context: ssl.SSLContext | None,
    headers: MutableMapping[str, str],
    *,
    connections: int,
    timeout_seconds: float,
    proxy: str | None = None,
    middleware: aiohttp.ClientMiddlewareType | None = None,
) -> AiohttpSession:
    """Return an aiohttp session of the running event loop; see `aiohttp_session.open_session`."""
    # The first import takes longer than a triggerer's event loop may be blocked.
    open_session = await asyncio.to_thread(_aiohttp_opener)
    return open_session(
        context,
        headers,
        connections=connections,
        timeout_seconds=timeout_seconds,
        proxy=proxy,
        middleware=middleware,
    )


def _aiohttp_opener() -> Callable[..., AiohttpSession]:
    from airflow_provider_qwenimage.client.aiohttp_session import open_session

    return open_session
