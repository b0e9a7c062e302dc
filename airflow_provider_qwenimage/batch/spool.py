"""A list on disk, read by index, so that a batch of many rows does not grow in memory."""

from __future__ import annotations

import json
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
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._file = tempfile.TemporaryFile(prefix="qwenimage-spool-", dir=folder)  # noqa: SIM115  closed by `close`
        self._offsets = array("q")
        self._end = 0
        # No other thread may move the file position between a seek and the read or write after it.
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._offsets)

    def append(self, row: dict[str, Any]) -> None:
        """Add a row."""
        self[len(self)] = row

    def __setitem__(self, number: int, row: dict[str, Any]) -> None:
        """Set the row of a number, counted from 0, which may be beyond the end; rows in between are missing."""
        line = json.dumps(row).encode("ascii") + b"\n"
        with self._lock:
            self._file.seek(self._end)
            self._file.write(line)
            if number >= len(self):
                self._offsets.extend([_MISSING] * (number + 1 - len(self)))
            self._offsets[number] = self._end
            self._end += len(line)

    def get(self, number: int) -> dict[str, Any] | None:
        """Return the row of a number, or None if it was never set."""
        with self._lock:
            if number >= len(self) or self._offsets[number] == _MISSING:
                return None
            self._file.seek(self._offsets[number])
            line = self._file.readline()
        row: dict[str, Any] = json.loads(line)
        return row

    def close(self) -> None:
        """Remove the file."""
        self._file.close()
