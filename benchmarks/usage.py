"""Measure the wall time, CPU time and memory of this process."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from pathlib import Path

_STATUS = Path("/proc/self/status")
_KIB = 1024


@dataclass(frozen=True, kw_only=True)
class Usage:
    """The usage of a process for its work.

    Attributes:
        wall_seconds: From the start of the work to its end.
        cpu_seconds: User and system time of all threads during the work.
        start_cpu_seconds: CPU time before the work, for the interpreter and imports.
        start_bytes: Memory in use at the start of the work.
        peak_bytes: Peak memory of the process.
    """

    wall_seconds: float
    cpu_seconds: float
    start_cpu_seconds: float
    start_bytes: int
    peak_bytes: int


@dataclass(frozen=True)
class Meter:
    """Measures this process from the creation of the meter."""

    _wall: float = field(default_factory=time.perf_counter)
    _cpu: float = field(default_factory=time.process_time)
    _bytes: int = field(default_factory=lambda: _memory("VmRSS"))

    def read(self) -> Usage:
        """Return the usage so far."""
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
        raise OSError(f"{_STATUS} has no line {name}. Run the benchmarks on Linux.")
    return int(found[1]) * _KIB
