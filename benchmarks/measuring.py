"""Measures what a process uses from one moment to another: time, CPU time and memory."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from pathlib import Path

_STATUS = Path("/proc/self/status")
_KIB = 1024


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What a process has used.

    Attributes:
        wall_seconds: From the start of the work to its end.
        cpu_seconds: User and system, of all threads, in that time.
        start_cpu_seconds: Before the work: the interpreter and what was imported.
        start_bytes: The memory in use when the work began.
        peak_bytes: The most memory that was ever in use.
    """

    wall_seconds: float
    cpu_seconds: float
    start_cpu_seconds: float
    start_bytes: int
    peak_bytes: int


@dataclass(frozen=True)
class Meter:
    """Measures this process from now on."""

    _wall: float = field(default_factory=time.perf_counter)
    _cpu: float = field(default_factory=time.process_time)
    _bytes: int = field(default_factory=lambda: _memory("VmRSS"))

    def read(self) -> Usage:
        """Return what was used since then."""
        return Usage(
            wall_seconds=time.perf_counter() - self._wall,
            cpu_seconds=time.process_time() - self._cpu,
            start_cpu_seconds=self._cpu,
            start_bytes=self._bytes,
            peak_bytes=_memory("VmHWM"),
        )


def _memory(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB$", _STATUS.read_text(), re.MULTILINE)
    if found is None:
        raise OSError(f"{_STATUS} does not say {name}. The benchmarks need Linux.")
    return int(found[1]) * _KIB
