"""Call the callback_url of a task, which normally happens when the task ends."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from airflow_provider_qwenimage.sandbox.books import Books, CallbackRecord, Task

if TYPE_CHECKING:
    import aiohttp

# The API documents neither the payload nor retries: the payload is the status data, the retries are few and quick.
_PAUSES_SECONDS = (0.0, 0.5, 1.0)
_TIMEOUT_SECONDS = 5.0
_MOST_AT_ONCE = 50


class Callbacks:
    """Scheduled callbacks; each try is recorded in the books. Use it from one event loop only, and close it."""

    def __init__(self, books: Books) -> None:
        self._books = books
        self._session: aiohttp.ClientSession | None = None
        self._calls: set[asyncio.Task[None]] = set()
        # Not left to the session, which counts the time that a call waits for a connection as part of its timeout.
        self._free = asyncio.Semaphore(_MOST_AT_ONCE)

    def schedule(self, task: Task, image_url: str, moment: float) -> None:
        """Post the task's status data to its ``callback_url``, if it has one.

        Args:
            task: The task.
            image_url: The URL of its image.
            moment: When, in epoch seconds; at once if that is past.
        """
        url = task.request.callback_url
        if url is None:
            return
        call = asyncio.get_running_loop().create_task(self._call(task, url, image_url, moment))
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)

    async def close(self) -> None:
        """Cancel the callbacks that are not finished."""
        for call in self._calls:
            call.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    async def _call(self, task: Task, url: str, image_url: str, moment: float) -> None:
        # A millisecond more, because a timer may fire slightly early, while the task is still in progress.
        await asyncio.sleep(moment - self._books.clock() + 0.001)
        for pause in _PAUSES_SECONDS:
            await asyncio.sleep(pause)
            async with self._free:
                # A reset deletes the task, and its callback with it.
                if self._books.find(task.task_id) is None:
                    return
                status = await self._post(url, task, image_url)
            self._books.note_callback(
                CallbackRecord(task_id=task.task_id, url=url, time=self._books.clock(), status=status)
            )
            if status is not None and 200 <= status < 300:  # noqa: PLR2004  HTTP's successes
                return

    async def _post(self, url: str, task: Task, image_url: str) -> int | None:
        import aiohttp

        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_TIMEOUT_SECONDS))
        data = task.data_at(self._books.clock(), image_url)
        try:
            async with self._session.post(url, json=data, allow_redirects=False) as answer:
                return answer.status
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
            return None
