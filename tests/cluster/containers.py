"""A service's container as native processes of this machine: started, killed and asked for its health."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

# Marks every process of a container, however it was started.
MARK = "QWENIMAGE_CONTAINER"

_STOP_SECONDS = 20.0
_HEALTH_SECONDS = 60.0
_KILL_SECONDS = 60.0


@dataclass
class Container:
    """What runs for one replica of a service.

    Args:
        name: Its name, as Compose would give it; also its host name.
        command: What it runs.
        environment: All of its environment variables.
        folder: Its working directory, which also takes its output.
        health: The command of its health check; empty where it has none.
        identity: As whom it runs, for `subprocess.Popen`; empty for this user.
        prepare: What its image does before its first start.
        sessions: The session id of each time that it was started.
        ends: When it has ended by itself and was started again, on the monotonic clock.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    folder: Path
    health: Sequence[str] = ()
    identity: Mapping[str, Any] = field(default_factory=dict)
    prepare: Callable[[], None] | None = None
    sessions: list[int] = field(default_factory=list, init=False)
    ends: list[float] = field(default_factory=list, init=False)
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)
    _is_to_run: bool = field(default=False, init=False)
    # It is ended in one thread, and in another one looked at.
    _fate: threading.Lock = field(default_factory=threading.Lock, init=False)
    _started: float = field(default=0.0, init=False)

    @property
    def output(self) -> Path:
        """The file with what it has written."""
        return self.folder / "output.log"

    def start(self) -> None:
        """Start it."""
        if self.prepare is not None and not self.sessions:
            self.prepare()
        with self.output.open("ab") as output:
            self._process = subprocess.Popen(
                self.command,
                cwd=self.folder,
                env={**self.environment, MARK: str(self.folder)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # Ctrl-C is for us; we stop it in order.
                start_new_session=True,
                **self.identity,
            )
        self._started = time.monotonic()
        self._is_to_run = True
        self.sessions.append(self._process.pid)

    def runs_for(self) -> float:
        """Return for how many seconds it has been running."""
        return time.monotonic() - self._started

    def exit_code(self) -> int | None:
        """Return its exit code, or None while it runs."""
        assert self._process is not None, f"{self.name} was never started"
        return self._process.poll()

    def start_if_it_ended(self) -> None:
        """Start it again where it has ended by itself, as an engine does with ``restart: unless-stopped``."""
        with self._fate:
            if self._is_to_run and self.exit_code() is not None:
                self.ends.append(time.monotonic())
                # With its first process, a container's others end as well.
                self._end_processes()
                self.start()

    def is_healthy(self) -> bool:
        """Whether it runs and its health check says that it works."""
        if self.exit_code() is not None or not self.health:
            return False
        try:
            ended = subprocess.run(
                self.health,
                cwd=self.folder,
                env=dict(self.environment),
                capture_output=True,
                check=False,
                timeout=_HEALTH_SECONDS,
            )
        except subprocess.TimeoutExpired:
            return False
        return ended.returncode == 0

    def last_words(self, number: int = 30) -> str:
        """Return the end of its output."""
        return "\n".join(self.output.read_text(errors="replace").splitlines()[-number:])

    def processes(self) -> list[psutil.Process]:
        """Return every process of it, those that have left its process group as well."""
        if self._process is None:
            return []
        mark = f"{MARK}={self.folder}".encode()
        found = set()
        for process in psutil.process_iter():
            with contextlib.suppress(OSError, psutil.Error):
                # One that writes a title for itself overwrites its environment, one that is orphaned its parents.
                if os.getsid(process.pid) == self._process.pid or mark in _environment(process):
                    found |= {process, *process.children(recursive=True)}
        return [process for process in found if process.is_running() and _is_alive(process)]

    def memory(self) -> int:
        """Return the bytes that its processes take, what they share counted once among them."""
        total = 0
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                total += process.memory_full_info().pss
        return total

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Hold all of its processes while the block runs, as a machine does that swaps or moves to another host."""
        processes = self.processes()
        try:
            for process in processes:
                with contextlib.suppress(psutil.Error):
                    process.suspend()
            yield
        finally:
            for process in processes:
                with contextlib.suppress(psutil.Error):
                    process.resume()

    def kill(self) -> None:
        """End all of its processes at once, as a machine that loses its power does."""
        with self._fate:
            self._is_to_run = False
        self._end_processes()

    def _end_processes(self) -> None:
        deadline = time.monotonic() + _KILL_SECONDS
        # One that forks in the very moment leaves a child.
        while processes := self.processes():
            assert time.monotonic() < deadline, f"{self.name} cannot be killed: {processes}"
            for process in processes:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            psutil.wait_procs(processes, timeout=1)
        if self._process is not None:
            self._process.wait(_KILL_SECONDS)

    def stop(self) -> None:
        """End it in order, and by force what does not end."""
        with self._fate:
            self._is_to_run = False
        if self._process is None:
            return
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_STOP_SECONDS)
        self.kill()


def _environment(process: psutil.Process) -> list[bytes]:
    return Path("/proc", str(process.pid), "environ").read_bytes().split(b"\0")


def _is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False
