"""A clock for the clients' calls and waits that a test controls."""

from __future__ import annotations

import asyncio
import threading
import time
from types import SimpleNamespace

import pytest

from airflow_provider_qwenimage import hooks
from airflow_provider_qwenimage.client import exchanges, transport


class CallClock:
    """Replaces the clock of the clients' calls and waits, so that their pauses pass at once.

    The test itself still uses the clock of the machine.

    Attributes:
        ahead: The seconds by which it is ahead of the machine's clock.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ahead = 0.0
        self._lock = threading.Lock()
        own = SimpleNamespace(
            time=lambda: time.time() + self.ahead,
            monotonic=lambda: time.monotonic() + self.ahead,
            sleep=self.advance,
        )
        for module in (exchanges, hooks, transport):
            monkeypatch.setattr(module, "time", own)
        monkeypatch.setattr(asyncio.BaseEventLoop, "time", lambda _: own.monotonic())

    def advance(self, seconds: float) -> None:
        """Let this many seconds pass."""
        with self._lock:
            self.ahead += seconds
