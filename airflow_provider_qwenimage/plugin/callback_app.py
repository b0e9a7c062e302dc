"""The route that the API calls when an image is drawn: ``POST /qwenimage/callback/{task instance id}/{secret}``.

Whoever has the URL can have a deferred task ask the API earlier, and nothing else: no part of the request but its path
is used. Any doubt is answered with 404, and the task's trigger polls in any case, so nothing depends on a callback.
"""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from airflow_provider_qwenimage.plugin import waking
from airflow_provider_qwenimage.plugin.bounded_cache import BoundedCache
from airflow_provider_qwenimage.plugin.time_limits import BusyError, Shares
from airflow_provider_qwenimage.rules.callbacks import NO_TASK, hide_secret, read_path
from airflow_provider_qwenimage.settling import seconds_to_settle, settle
from airflow_provider_qwenimage.text.messages import printable

if TYPE_CHECKING:
    from airflow_provider_qwenimage.plugin.waking import Wait

log = logging.getLogger(__name__)

# A prompt of 2,000 characters takes up to 24,000 bytes in JSON, and a payload may have it more than once.
_MOST_BYTES = 64 * 1024
# Python refuses to read numbers of thousands of digits.
_MOST_DIGITS = 20
_READ_SECONDS = 10.0
# A false callback costs the start of a worker process. The task polls without them.
_MOST_WAKES = 10
_MOST_TASKS = 10_000
_MOST_HELD = 1_000
# Database connections that callbacks take of Airflow's pool: to check them, and to wake tasks.
_CHECKS_AT_ONCE = 2
_WAKES_AT_ONCE = 1
_MOST_WAITING = 100
_RETRY_SECONDS = 30
_HEADERS = (
    (b"content-type", b"application/json"),
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    # The body may not have been read.
    (b"connection", b"close"),
)


@dataclass(frozen=True)
class _Answer:
    status: HTTPStatus
    headers: tuple[tuple[bytes, bytes], ...] = ()
    detail: str | None = None


_WOKEN = _Answer(HTTPStatus.OK)
_HELD = _Answer(HTTPStatus.ACCEPTED)
_NOT_FOUND = _Answer(HTTPStatus.NOT_FOUND)
_NO_TASK = _Answer(HTTPStatus.NOT_FOUND, detail=NO_TASK)
_NOT_A_POST = _Answer(HTTPStatus.METHOD_NOT_ALLOWED, ((b"allow", b"POST"),))
_TOO_SLOW = _Answer(HTTPStatus.REQUEST_TIMEOUT)
_TOO_LARGE = _Answer(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
_TOO_OFTEN = _Answer(HTTPStatus.TOO_MANY_REQUESTS)
_BUSY = _Answer(HTTPStatus.SERVICE_UNAVAILABLE, ((b"retry-after", str(_RETRY_SECONDS).encode()),))


class CallbackApp:
    """An ASGI application of one route. Its limits are those of a process."""

    def __init__(self) -> None:
        self._checks = Shares(_CHECKS_AT_ONCE, _CHECKS_AT_ONCE, _MOST_WAITING)
        self._waking = Shares(_WAKES_AT_ONCE, _WAKES_AT_ONCE, _MOST_HELD + _MOST_WAITING)
        self._wakes: BoundedCache[int] = BoundedCache(lambda _: 1, most_weight=_MOST_TASKS, most_values=_MOST_TASKS)
        self._held: dict[int, asyncio.Task[None]] = {}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request, or refuse a WebSocket."""
        path = hide_secret(scope)
        if scope["type"] == "http":
            await _send(send, await self._answer(scope, path, receive))
        else:
            await receive()
            await send({"type": "websocket.close"})

    async def _answer(self, scope: Any, path: str, receive: Any) -> _Answer:
        if scope["method"] != "POST":
            return _NOT_A_POST
        callback = read_path(path)
        if callback is None:
            return _NOT_FOUND
        refusal = await _drain(scope, receive)
        if refusal is not None:
            return refusal
        try:
            wait = await self._checks.run("", lambda: waking.find_wait(callback))
            return _NO_TASK if wait is None else await self._ring(wait)
        except BusyError:
            return _BUSY
        except Exception as error:  # noqa: BLE001  any database driver's
            _report(error)
            return _BUSY

    async def _ring(self, wait: Wait) -> _Answer:
        if (self._wakes.get(wait.task_instance_id) or 0) >= _MOST_WAKES:
            return _TOO_OFTEN
        if wait.seconds >= seconds_to_settle():
            await self._wake(wait)
            return _WOKEN
        if wait.trigger_id not in self._held:
            if len(self._held) >= _MOST_HELD:
                return _BUSY
            self._held[wait.trigger_id] = asyncio.create_task(self._hold(wait))
        return _HELD

    async def _hold(self, wait: Wait) -> None:
        """Wake a task when it may be woken. If this process ends before, the task's trigger polls."""
        try:
            await settle(wait.seconds)
            await self._wake(wait)
        except Exception as error:  # noqa: BLE001  any database driver's
            _report(error)
        finally:
            del self._held[wait.trigger_id]

    async def _wake(self, wait: Wait) -> None:
        if await self._waking.run("", lambda: waking.wake(wait)):
            self._wakes.put(wait.task_instance_id, (self._wakes.get(wait.task_instance_id) or 0) + 1)
            log.info("A callback of the API has woken the task instance %s.", wait.task_instance_id)


async def _drain(scope: Any, receive: Any) -> _Answer | None:
    """Read the body and drop it; return the answer to one that is too large, too slow or incomplete."""
    declared = dict(scope["headers"]).get(b"content-length", b"0")
    if not declared.isdigit() or len(declared) > _MOST_DIGITS or int(declared) > _MOST_BYTES:
        return _TOO_LARGE
    try:
        async with asyncio.timeout(_READ_SECONDS):
            read = 0
            while True:
                message = await receive()
                if message["type"] != "http.request":
                    # The client is gone.
                    return _TOO_SLOW
                read += len(message.get("body", b""))
                if read > _MOST_BYTES:
                    return _TOO_LARGE
                if not message.get("more_body", False):
                    return None
    except TimeoutError:
        return _TOO_SLOW


async def _send(send: Any, answer: _Answer) -> None:
    body = json.dumps({"detail": answer.detail or answer.status.phrase}).encode()
    headers = [*_HEADERS, *answer.headers, (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": answer.status.value, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _report(error: Exception) -> None:
    log.warning(
        "A callback of the API could not be checked, or could not wake its task: %s. The task polls in any case. If "
        "this persists, check the metadata database.",
        printable(type(error).__name__),
    )


app = CallbackApp()
