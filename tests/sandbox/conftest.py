"""A running sandbox and a plain HTTP client for it, for the tests of the sandbox."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import requests

from airflow_provider_qwenimage.sandbox import Sandbox, running
from airflow_provider_qwenimage.sandbox.access import CONTROL_HEADERS
from tests.events import wait_until


class Api:
    """An HTTP client of a sandbox."""

    def __init__(self, sandbox: Sandbox, session: requests.Session) -> None:
        self.sandbox = sandbox
        self.session = session

    def request(self, method: str, path: str, **options: Any) -> requests.Response:
        options = {"timeout": 60, "allow_redirects": False, **options}
        return self.session.request(method, f"{self.sandbox.url}{path}", **options)

    def control(self, method: str, path: str, headers: Mapping[str, str] | None = None, **options: Any) -> Any:
        """Send a request to the control path, with the headers that changes require."""
        return self.request(method, path, headers={**CONTROL_HEADERS, **(headers or {})}, **options)

    def generate(self, body: Any = None, *, key: str | None = "sk-sandbox", **options: Any) -> requests.Response:
        if "data" not in options:
            options["json"] = {"prompt": "a cat"} if body is None else body
        return self.request("POST", "/api/generate", headers=_authorization(key), **options)

    def status(self, task_id: str | None, *, key: str | None = "sk-sandbox", **options: Any) -> requests.Response:
        return self.request("GET", "/api/status", params={"task_id": task_id}, headers=_authorization(key), **options)

    def submit(self, prompt: str = "a cat", **fields: Any) -> str:
        answer = self.generate({"prompt": prompt, **fields})
        assert answer.status_code == 200, answer.text
        task_id = answer.json()["data"]["task_id"]
        assert isinstance(task_id, str)
        return task_id

    def finish(self, task_id: str) -> dict[str, Any]:
        """Poll until the task has ended, and return its data."""
        data: dict[str, Any] = {}

        def has_ended() -> bool:
            data.update(self.status(task_id).json()["data"])
            return data["status"] in ("SUCCESS", "FAILED")

        wait_until(has_ended, f"the end of {task_id}")
        return data

    def image_url(self, prompt: str = "a cat", **fields: Any) -> str:
        """Submit, wait, and return the image's URL. The seed is fixed, so that all tests share one drawing."""
        url = self.finish(self.submit(prompt, **{"seed": 1, **fields}))["response"][0]
        assert isinstance(url, str)
        return url

    def image(self, url: str, **options: Any) -> requests.Response:
        return self.session.get(url, **{"timeout": 60, "allow_redirects": False, **options})


class Clock:
    """The sandbox's time, which a test sets through `now`."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.now = time.time()
        self.replace_clock(sandbox)

    def replace_clock(self, sandbox: Sandbox) -> None:
        sandbox._state.books.clock = lambda: self.now


def _authorization(key: str | None) -> dict[str, str]:
    return {} if key is None else {"Authorization": f"Bearer {key}"}


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(seconds_per_image=0) as running:
        yield running


@pytest.fixture
def clock(sandbox: Sandbox) -> Clock:
    return Clock(sandbox)


@pytest.fixture
def stop_promptly(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return a function that stops the sandbox, and fails if the stop waits for requests or callbacks."""
    # Enough for a busy machine, but shorter than aiohttp's own timeouts.
    monkeypatch.setattr(running, "_STOP_SECONDS", 40.0)

    def stop() -> None:
        thread = sandbox._thread
        assert thread is not None
        sandbox.stop()
        assert not thread.is_alive()

    return stop


@pytest.fixture
def api(sandbox: Sandbox) -> Iterator[Api]:
    with requests.Session() as session:
        yield Api(sandbox, session)
