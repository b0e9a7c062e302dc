"""The clock of the clients' calls and waits, which a test moves on."""

from __future__ import annotations

import asyncio
import threading
import time
from types import SimpleNamespace

import pytest

from airflow_provider_qwenimage import hooks
from airflow_provider_qwenimage.client import exchanges, transport


class CallClock:
    """Has the clients' calls and waits take a test's word for the time, and pass their pauses at once.

    What the test itself waits for has the time of the machine.

    Args:
        monkeypatch: Puts everything in place again.

    Attributes:
        ahead: How many seconds it is ahead of the machine's clocks.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ahead = 0.0
        self._lock = threading.Lock()
        own = SimpleNamespace(
            time=lambda: time.time() + self.ahead,
            monotonic=lambda: time.monotonic() + self.ahead,
            sleep=self.move_on,
        )
        for module in (exchanges, hooks, transport):
            monkeypatch.setattr(module, "time", own)
        monkeypatch.setattr(asyncio.BaseEventLoop, "time", lambda _: own.monotonic())

    def move_on(self, seconds: float) -> None:
        """Let so many seconds pass now."""
        with self._lock:
            self.ahead += seconds
