"""A list on disk, read by index, so that a batch of many rows does not grow in memory."""

from __future__ import annotations

import json
import os
import tempfile
import threading
from array import array
from pathlib import Path
from typing import Any

_MISSING = -1


class Spool:
    """A list of JSON objects in a temporary file, which is removed with it. Threads may share it.

    Args:
        folder: The folder of the file; None for the system's folder for temporary files.
        survives_full_disk: Whether to hold a row in memory if it cannot be written, instead of raising the error.
    """

    def __init__(self, folder: Path | None = None, *, survives_full_disk: bool = False) -> None:
        # Without a buffer, which would report a full disk only later, for other rows.
        self._file = tempfile.TemporaryFile(prefix="qwenimage-spool-", dir=folder, buffering=0)  # noqa: SIM115  closed by `close`
        self._survives_full_disk = survives_full_disk
        self._offsets = array("q")
        self._lengths = array("l")
        self._in_memory: dict[int, bytes] = {}
        self._end = 0
        # Rows must not be written to the same offset.
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._offsets)

    def append(self, row: dict[str, Any]) -> None:
        """Add a row."""
        self[len(self)] = row

    def __setitem__(self, number: int, row: dict[str, Any]) -> None:
        """Set the row of a number, counted from 0, which may be beyond the end; rows in between are missing.

        Raises:
            OSError: If it cannot be written.
        """
        line = json.dumps(row).encode("ascii") + b"\n"
        with self._lock:
            offset = self._write(line)
            if number >= len(self):
                missing = number + 1 - len(self)
                self._offsets.extend([_MISSING] * missing)
                self._lengths.extend([0] * missing)
            self._offsets[number], self._lengths[number] = offset, len(line)
            if offset == _MISSING:
                self._in_memory[number] = line
            else:
                self._in_memory.pop(number, None)

    def _write(self, line: bytes) -> int:
        """Write a row to the end of the file; return its offset, or _MISSING if it has to stay in memory."""
        offset = self._end
        try:
            written = 0
            while written < len(line):
                written += os.pwrite(self._file.fileno(), line[written:], offset + written)
        except OSError:
            if not self._survives_full_disk:
                raise
            return _MISSING
        self._end += len(line)
        return offset

    def get(self, number: int) -> dict[str, Any] | None:
        """Return the row of a number, or None if it was never set."""
        with self._lock:
            line = self._in_memory.get(number)
            if line is None and (number >= len(self) or self._offsets[number] == _MISSING):
                return None
            line = line or os.pread(self._file.fileno(), self._lengths[number], self._offsets[number])
        row: dict[str, Any] = json.loads(line)
        return row

    def close(self) -> None:
        """Remove the file."""
        self._file.close()
