"""The contestants of ``make bench-wait``: ways to wait in one event loop for an image task of the API."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
from airflow.providers.http.triggers.http import HttpEventTrigger
from airflow.triggers.base import BaseTrigger

from airflow_provider_qwenimage.contract import STATUS_PATH
from airflow_provider_qwenimage.rules.callbacks import digest_of, new_secret
from airflow_provider_qwenimage.rules.polling import SLOWEST_RECOMMENDED_INTERVAL, PollPolicy
from airflow_provider_qwenimage.triggers import QwenImageStatusTrigger

_RUNNING = ("PENDING", "IN_PROGRESS")
_HTTP_CONN_ID = "qwenimage_status"


@dataclass(frozen=True)
class Api:
    """The base URL of the API and a key."""

    url: str
    api_key: str

    def to_environment(self) -> dict[str, str]:
        """Return the environment variables with the connections of the triggers."""
        ours = {"conn_type": "qwenimage", "host": self.url, "password": self.api_key}
        http = {"conn_type": "http", "host": self.url, "extra": self.headers}
        return {
            "AIRFLOW_CONN_QWENIMAGE_DEFAULT": json.dumps(ours),
            f"AIRFLOW_CONN_{_HTTP_CONN_ID.upper()}": json.dumps(http),
        }

    @property
    def headers(self) -> dict[str, str]:
        """The headers of each request."""
        return {"Authorization": f"Bearer {self.api_key}"}


# Waits for the image task with an id, and returns when it has ended.
Wait = Callable[[str], Coroutine[Any, Any, None]]


@asynccontextmanager
async def _ours(_api: Api, poll_interval: float) -> AsyncIterator[Wait]:
    async def wait(image_task_id: str) -> None:
        await _fires(QwenImageStatusTrigger(image_task_id=image_task_id, poll_interval=poll_interval))

    yield wait


@asynccontextmanager
async def _called_back(_api: Api, poll_interval: float) -> AsyncIterator[Wait]:
    async def wait(image_task_id: str) -> None:
        trigger = QwenImageStatusTrigger(
            image_task_id=image_task_id, poll_interval=poll_interval, callback=digest_of(new_secret())
        )
        # Without an id, which a triggerer gives it, it would poll as if no callback could come.
        trigger.trigger_id = 1
        await _fires(trigger)

    yield wait


@asynccontextmanager
async def _http_event_trigger(_api: Api, poll_interval: float) -> AsyncIterator[Wait]:
    # This trigger has a fixed interval; it gets the one that the intervals of the others grow to.
    interval = max(poll_interval, min(2 * poll_interval, SLOWEST_RECOMMENDED_INTERVAL))

    async def wait(image_task_id: str) -> None:
        trigger = HttpEventTrigger(
            response_check_path="benchmarks.response_check.has_ended",
            http_conn_id=_HTTP_CONN_ID,
            endpoint=STATUS_PATH.lstrip("/"),
            data={"task_id": image_task_id},
            poll_interval=interval,
        )
        await _fires(trigger)

    yield wait


@asynccontextmanager
async def _session_for_each_poll(api: Api, poll_interval: float) -> AsyncIterator[Wait]:
    policy = PollPolicy(poll_interval=poll_interval)

    async def wait(image_task_id: str) -> None:
        for polls in range(1_000_000):
            await asyncio.sleep(policy.interval(polls))
            async with aiohttp.ClientSession(headers=api.headers) as session:
                status = await _status(session, api, image_task_id)
            if status not in _RUNNING:
                return

    yield wait


@asynccontextmanager
async def _bare_loop(api: Api, poll_interval: float) -> AsyncIterator[Wait]:
    policy = PollPolicy(poll_interval=poll_interval)
    async with aiohttp.ClientSession(headers=api.headers) as session:

        async def wait(image_task_id: str) -> None:
            for polls in range(1_000_000):
                await asyncio.sleep(policy.interval(polls))
                if await _status(session, api, image_task_id) not in _RUNNING:
                    return

        yield wait


async def _status(session: aiohttp.ClientSession, api: Api, image_task_id: str) -> Any:
    async with session.get(f"{api.url}{STATUS_PATH}?task_id={image_task_id}") as response:
        return (await response.json())["data"]["status"]


async def _fires(trigger: BaseTrigger) -> None:
    async for _ in trigger.run():
        return


@dataclass(frozen=True)
class Contestant:
    """A way to wait.

    Attributes:
        title: Its name in the table.
        enter: Takes the API and the first poll interval; opens the resources that all waits share, and yields a `Wait`.
        polls_at_once: Whether a wait starts with a poll, not with a pause.
    """

    title: str
    enter: Callable[[Api, float], AbstractAsyncContextManager[Wait]]
    polls_at_once: bool = False


BARE_LOOP = "loop"
CONTESTANTS: Mapping[str, Contestant] = {
    BARE_LOOP: Contestant("bare aiohttp loop, one session: the limit", _bare_loop),
    "ours": Contestant("QwenImageStatusTrigger", _ours),
    "called": Contestant("QwenImageStatusTrigger, waiting for a callback", _called_back),
    "session": Contestant("a session for each poll", _session_for_each_poll),
    "http": Contestant("http provider's HttpEventTrigger", _http_event_trigger, polls_at_once=True),
}
