"""Measure the CPU time of a command and of all processes below it, including ended ones.

The kernel adds a process's CPU time to its parent's when the parent waits for it. So that no process is without a
waiting parent, `python -m benchmarks.processes COMMAND…` runs a command and adopts its orphaned processes.
`python -m benchmarks.dags --check` compares the sum with tasks that use a known CPU time.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time

import psutil

_PR_SET_CHILD_SUBREAPER = 36
_TRIES = 200
_PAUSE_SECONDS = 0.05


def adopting(*command: str) -> list[str]:
    """Return the command line that runs a command below a process that adopts its orphaned processes."""
    return [sys.executable, "-m", "benchmarks.processes", *command]


def cpu_seconds_below(pid: int) -> float:
    """Return the CPU seconds, user and system, of all processes below a process, including ended ones.

    Args:
        pid: A process that was started with `adopting`.

    Raises:
        TimeoutError: If the processes change during each of many readings.
    """
    root = psutil.Process(pid)
    for _ in range(_TRIES):
        try:
            family = root.children(recursive=True)
            of_root = root.cpu_times()
            seconds = of_root.children_user + of_root.children_system
            for member in family:
                times = member.cpu_times()
                seconds += times.user + times.system + times.children_user + times.children_system
            # A process that ends between two of the readings above would count twice, or not at all.
            if set(root.children(recursive=True)) == set(family):
                return float(seconds)
        except psutil.NoSuchProcess:
            root.status()
        time.sleep(_PAUSE_SECONDS)
    raise TimeoutError(f"The processes below {pid} change too fast to be measured. Try again when the machine is idle.")


def _run(command: list[str]) -> int:
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "Orphaned processes cannot be adopted. Run this on Linux.")
    for number in (signal.SIGINT, signal.SIGTERM):
        # The signal reaches the whole process group, and the parent must end last. Not SIG_IGN, which children inherit.
        signal.signal(number, lambda *_: None)
    child = subprocess.Popen(command)
    code = 1
    while True:
        try:
            pid, status = os.wait()
        except ChildProcessError:
            return code
        if pid == child.pid:
            code = os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    sys.exit(_run(sys.argv[1:]))
