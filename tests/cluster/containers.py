"""A container as native processes of this machine: start, freeze and kill it, and run its health check."""

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

# An environment variable of every process of a container.
MARK = "QWENIMAGE_CONTAINER"

_STOP_SECONDS = 20.0
_HEALTH_SECONDS = 60.0
_KILL_SECONDS = 60.0


@dataclass
class Container:
    """One replica of a service.

    Args:
        name: Its name in Compose; also its host name.
        environment: All of its environment variables.
        folder: Its working directory, which also contains its output.
        health: The command of its health check; empty if it has none.
        identity: The system user that runs it, as arguments of `subprocess.Popen`; empty for this user.
        prepare: Called before its first start.
        sessions: The session id of each of its starts.
        ends: The times at which it ended by itself and was restarted, on the monotonic clock.
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
    _should_run: bool = field(default=False, init=False)
    # One thread ends the container while another one checks whether it ended.
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)
    _started: float = field(default=0.0, init=False)

    @property
    def output(self) -> Path:
        """The file with its output."""
        return self.folder / "output.log"

    def start(self) -> None:
        """Start the container."""
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
                # Ctrl-C must not reach the container; `kill` ends it.
                start_new_session=True,
                **self.identity,
            )
        self._started = time.monotonic()
        self._should_run = True
        self.sessions.append(self._process.pid)

    def runs_for(self) -> float:
        """Return the seconds since its last start."""
        return time.monotonic() - self._started

    def exit_code(self) -> int | None:
        """Return the exit code of its first process, or None while it runs."""
        assert self._process is not None, f"{self.name} was never started"
        return self._process.poll()

    def restart_if_ended(self) -> None:
        """Restart the container if it ended by itself, as an engine does with ``restart: unless-stopped``."""
        with self._lock:
            if self._should_run and self.exit_code() is not None:
                self.ends.append(time.monotonic())
                # A container ends with its first process, so its other processes must end as well.
                self._end_processes()
                self.start()

    def is_healthy(self) -> bool:
        """Whether it runs and its health check succeeds."""
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

    def last_output(self, number: int = 30) -> str:
        """Return the last lines of its output."""
        return "\n".join(self.output.read_text(errors="replace").splitlines()[-number:])

    def processes(self) -> list[psutil.Process]:
        """Return all of its processes, including those that have left its session."""
        if self._process is None:
            return []
        mark = f"{MARK}={self.folder}".encode()
        found = set()
        for process in psutil.process_iter():
            with contextlib.suppress(OSError, psutil.Error):
                # A process that sets its title loses its environment, and an orphan loses its parent.
                if os.getsid(process.pid) == self._process.pid or mark in _environment(process):
                    found |= {process, *process.children(recursive=True)}
        return [process for process in found if process.is_running() and _is_alive(process)]

    def memory(self) -> int:
        """Return the memory of its processes in bytes; shared memory is counted once."""
        total = 0
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                total += process.memory_full_info().pss
        return total

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Suspend all of its processes during the block, as a machine does that swaps or is migrated."""
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
        """Kill all of its processes at once, as a power cut does."""
        with self._lock:
            self._should_run = False
        self._end_processes()

    def _end_processes(self) -> None:
        deadline = time.monotonic() + _KILL_SECONDS
        # Repeated, because a process may fork just before it is killed.
        while processes := self.processes():
            assert time.monotonic() < deadline, f"{self.name} cannot be killed: {processes}"
            for process in processes:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            psutil.wait_procs(processes, timeout=1)
        if self._process is not None:
            self._process.wait(_KILL_SECONDS)

    def stop(self) -> None:
        """Send its first process a SIGTERM, then kill the processes that do not end."""
        with self._lock:
            self._should_run = False
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
