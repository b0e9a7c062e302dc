"""One aiohttp client for all waits of an event loop and connection: counted, paced together, closed by the last."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeAlias
from weakref import WeakKeyDictionary

from airflow_provider_qwenimage.client.transport import AiohttpTransport, Pace

if TYPE_CHECKING:
    from airflow_provider_qwenimage.client.connection import AirflowConnection, ConnectionSettings

    LookUp: TypeAlias = Callable[[], Awaitable[AirflowConnection]]

# A thousand waits that begin together look their connection up once; a changed one is seen after that long at most.
_LOOK_UP_SECONDS = 5.0


class SharedClient:
    """A user's share in the client of a connection, from `join` to `leave`.

    Args:
        conn_id: The Airflow connection.
        look_up: Finds that connection.
        read: Makes settings of it.

    Users whose settings differ, because the connection was changed meanwhile, have different sessions, but
    still one pace: that of the settings which were read last.
    """

    def __init__(
        self,
        conn_id: str,
        look_up: LookUp,
        read: Callable[[AirflowConnection], ConnectionSettings],
    ) -> None:
        self._conn_id = conn_id
        self._look_up = look_up
        self._read = read
        self._lane: _Lane | None = None
        self._session: _Session | None = None

    async def join(self) -> AiohttpTransport:
        """Return the client; the first to ask opens it.

        Raises:
            ValueError: If the settings are not usable.
        """
        lanes = _LANES.setdefault(asyncio.get_running_loop(), {})
        lane = lanes.setdefault(self._conn_id, _Lane())
        lane.users += 1
        self._lane = lane
        try:
            settings = self._read(await lane.connection(self._look_up))
            session = self._session = lane.sessions.setdefault(settings, _Session())
            session.users += 1
            return await session.opened(settings, lane.pace)
        except BaseException:
            await self.leave()
            raise

    async def leave(self) -> None:
        """Give the share back; the last of a session closes it. Does nothing without a share."""
        lane, self._lane = self._lane, None
        session, self._session = self._session, None
        if lane is None:
            return
        lane.users -= 1
        lanes = _LANES.get(asyncio.get_running_loop(), {})
        if not lane.users and lanes.get(self._conn_id) is lane:
            del lanes[self._conn_id]
        if session is None:
            return
        session.users -= 1
        if not session.users:
            lane.sessions = {settings: other for settings, other in lane.sessions.items() if other is not session}
            # To the end, also where the one who leaves is being cancelled.
            await asyncio.shield(session.close())


class _Session:
    """A session with its users."""

    def __init__(self) -> None:
        self.users = 0
        self._transport: AiohttpTransport | None = None
        # Not a shared task: should the first be cancelled while it opens the session, the next one does it.
        self._opening = asyncio.Lock()

    async def opened(self, settings: ConnectionSettings, pace: Pace) -> AiohttpTransport:
        pace.limit.allow(settings.max_requests_per_second)
        async with self._opening:
            if self._transport is None or self._transport.session.closed:
                self._transport = await AiohttpTransport.open(settings, pace)
            return self._transport

    async def close(self) -> None:
        if self._transport is not None:
            await self._transport.close()


class _Lane:
    """What the users of one connection in one event loop share."""

    def __init__(self) -> None:
        self.users = 0
        self.pace = Pace()
        self.sessions: dict[ConnectionSettings, _Session] = {}
        self._looking_up: asyncio.Future[AirflowConnection] | None = None
        self._looked_up_at = 0.0

    async def connection(self, look_up: LookUp) -> AirflowConnection:
        """Look the connection up, or share a look-up that is under way or has just been made."""
        running = self._looking_up
        if running is None or (running.done() and self._is_stale(running)):
            self._looked_up_at = time.monotonic()
            running = self._looking_up = asyncio.ensure_future(look_up())
        # Whoever is cancelled leaves the look-up to the others.
        return await asyncio.shield(running)

    def _is_stale(self, look_up: asyncio.Future[AirflowConnection]) -> bool:
        failed = look_up.cancelled() or look_up.exception() is not None
        return failed or time.monotonic() - self._looked_up_at > _LOOK_UP_SECONDS


_LANES: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, _Lane]] = WeakKeyDictionary()
