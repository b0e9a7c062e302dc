"""The sandbox's mutable state (settings, fault plan, books), shared by the server, the control path and `Sandbox`."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from typing import Any

from airflow_provider_qwenimage.sandbox.books import Books, Task
from airflow_provider_qwenimage.sandbox.faults import FaultPlan, ScriptItem
from airflow_provider_qwenimage.sandbox.replay import Replay
from airflow_provider_qwenimage.sandbox.settings import SandboxSettings
from airflow_provider_qwenimage.sandbox.state_file import StateFile


class SandboxState:
    """Settings, fault plan and books. Safe to use from several threads.

    Args:
        settings: The initial settings, which `reset` restores.
        file: Keeps the tasks across restarts; None keeps them in memory.
        replay: The recording to answer with; None answers as documented.

    Raises:
        ValueError: If the file contains anything but tasks.
    """

    def __init__(self, settings: SandboxSettings, file: StateFile | None = None, replay: Replay | None = None) -> None:
        self._initial = settings
        self._file = file
        self.replay = replay
        self._lock = threading.Lock()
        self.settings = settings
        self.faults = FaultPlan(settings)
        self.books = Books(settings.request_log_size)
        if file is not None:
            self.books.restore(file.load())

    def save(self, task: Task) -> None:
        """Append an accepted task to the state file, if there is one."""
        if self._file is not None:
            self._file.append(task)

    def configure(self, changes: Mapping[str, Any]) -> None:
        """Change settings; a `fault_seed` among the changes restarts the random faults.

        Raises:
            ValueError: If a name is unknown or a value is not allowed. Nothing is changed then.
        """
        with self._lock:
            self._apply(self.settings.changed(changes), reseed="fault_seed" in changes)

    def script(self, route: str, items: Iterable[ScriptItem]) -> None:
        """Append scripted behaviours.

        Raises:
            ValueError: If the route or a behaviour is not allowed. Nothing is appended then.
        """
        with self._lock:
            self.faults.script(route, items)

    def reset(self) -> None:
        """Empty the books and the scripts, and restore the initial settings."""
        with self._lock:
            self.faults.clear()
            self.books.clear()
            if self.replay is not None:
                self.replay.clear()
            if self._file is not None:
                self._file.clear()
            self._apply(self._initial, reseed=True)

    def _apply(self, settings: SandboxSettings, *, reseed: bool) -> None:
        if settings.request_log_size != self.settings.request_log_size:
            self.books.resize(settings.request_log_size)
        if reseed:
            self.faults.reseed(settings.fault_seed)
        self.settings = settings
