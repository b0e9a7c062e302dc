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
    Read: TypeAlias = Callable[[AirflowConnection], ConnectionSettings]

# A thousand waits that begin together look their connection up once; a change is seen after that long at most.
_LOOK_UP_SECONDS = 5.0


class SharedClient:
    """One user's share of the client of a connection, from `join` to `leave`.

    Users whose settings differ, because the connection was changed meanwhile, have different sessions, but
    still one pace: that of the settings which were read last.

    Args:
        conn_id: The id of the Airflow connection.

    Attributes:
        transport: The client, between `join` and `leave`.
    """

    def __init__(self, conn_id: str) -> None:
        self._conn_id = conn_id
        self._joining = asyncio.Lock()
        self._connection: _SharedConnection | None = None
        self._session: _SharedSession | None = None
        self.transport: AiohttpTransport | None = None

    async def join(self, look_up: LookUp, read: Read) -> AiohttpTransport:
        """Return the client; the first user opens it.

        Args:
            look_up: Finds the connection.
            read: Makes settings of it.

        Raises:
            ValueError: If the settings are not usable.
        """
        async with self._joining:
            if self.transport is None:
                self.transport = await self._join(look_up, read)
            return self.transport

    async def leave(self) -> None:
        """Give the share back; the last user of a session closes it. Does nothing without a share."""
        self.transport = None
        connection, self._connection = self._connection, None
        session, self._session = self._session, None
        if connection is None:
            return
        connection.users -= 1
        connections = _CONNECTIONS.get(asyncio.get_running_loop(), {})
        if not connection.users and connections.get(self._conn_id) is connection:
            del connections[self._conn_id]
        if session is None:
            return
        session.users -= 1
        if not session.users:
            connection.forget(session)
            # It closes even if the user that leaves is being cancelled.
            await asyncio.shield(session.close())

    async def _join(self, look_up: LookUp, read: Read) -> AiohttpTransport:
        connections = _CONNECTIONS.setdefault(asyncio.get_running_loop(), {})
        connection = self._connection = connections.setdefault(self._conn_id, _SharedConnection())
        connection.users += 1
        try:
            settings = read(await connection.look_up(look_up))
            session = self._session = connection.sessions.setdefault(settings, _SharedSession())
            session.users += 1
            return await session.open(settings, connection.pace)
        except BaseException:
            await self.leave()
            raise


class _SharedSession:
    """A session and the number of its users."""

    def __init__(self) -> None:
        self.users = 0
        self._transport: AiohttpTransport | None = None
        # Not a shared task: if the first user is cancelled while it opens the session, the next one opens it.
        self._opening = asyncio.Lock()

    async def open(self, settings: ConnectionSettings, pace: Pace) -> AiohttpTransport:
        pace.limit.allow(settings.max_requests_per_second)
        async with self._opening:
            if self._transport is None or self._transport.session.closed:
                self._transport = await AiohttpTransport.open(settings, pace)
            return self._transport

    async def close(self) -> None:
        if self._transport is not None:
            await self._transport.close()


class _SharedConnection:
    """What the users of one connection in one event loop share."""

    def __init__(self) -> None:
        self.users = 0
        self.pace = Pace()
        self.sessions: dict[ConnectionSettings, _SharedSession] = {}
        self._looking_up: asyncio.Future[AirflowConnection] | None = None
        self._looked_up_at = 0.0

    async def look_up(self, look_up: LookUp) -> AirflowConnection:
        """Look the connection up, or share a look-up that is under way or has just been made."""
        running = self._looking_up
        if running is None or (running.done() and self._is_stale(running)):
            self._looked_up_at = time.monotonic()
            running = self._looking_up = asyncio.ensure_future(look_up())
        # A user that is cancelled leaves the look-up to the others.
        return await asyncio.shield(running)

    def forget(self, session: _SharedSession) -> None:
        """Have the next user open another session."""
        self.sessions = {settings: other for settings, other in self.sessions.items() if other is not session}

    def _is_stale(self, look_up: asyncio.Future[AirflowConnection]) -> bool:
        failed = look_up.cancelled() or look_up.exception() is not None
        return failed or time.monotonic() - self._looked_up_at > _LOOK_UP_SECONDS


_CONNECTIONS: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, _SharedConnection]] = WeakKeyDictionary()
