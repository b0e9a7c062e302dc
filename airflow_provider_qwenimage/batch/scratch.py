"""Makes the local folder for a batch's temporary files: each process has its own, and leaves none behind."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# Locked as long as the process lives; contains the name of its host.
_LOCK = ".lock"


@contextmanager
def scratch_folder(writer: str) -> Iterator[Path]:
    """Make a folder for temporary files, and remove those of dead processes of the same task on this host.

    Args:
        writer: The Airflow task; see `writer_of`. Two of its processes may live at the same time.
    """
    prefix = f"qwenimage-batch-{writer}-"
    for left in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        _remove_if_dead(left)
    # Under its final name, it is locked from the first moment on.
    made = Path(tempfile.mkdtemp(prefix="qwenimage-new-"))
    folder = made.with_name(prefix + made.name.removeprefix("qwenimage-new-"))
    lock = None
    try:
        lock = _lock(made / _LOCK)
        made.rename(folder)
        yield folder
    finally:
        # A download that was cut off may still write there.
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(made, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _lock(path: Path) -> int | None:
    """Create and lock a file; return its descriptor, or None on a file system that has no locks."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, socket.gethostname().encode())
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        # Nobody removes a folder without a lock.
        os.close(descriptor)
        path.unlink(missing_ok=True)
        return None
    return descriptor


def _remove_if_dead(folder: Path) -> None:
    """Remove a folder unless its process may be alive: it holds the lock, is on another host, or could not lock."""
    with suppress(OSError):
        descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            if os.read(descriptor, 1024) != socket.gethostname().encode():
                return
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(descriptor)
