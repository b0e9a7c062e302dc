"""Rows on this machine's disk, read back by their number: what a batch remembers does not grow in memory."""

from __future__ import annotations

import json
import tempfile
import threading
from array import array
from pathlib import Path
from typing import Any

_NOTHING = -1


class Spool:
    """A list of JSON objects in a temporary file, which goes with it. Threads may share it.

    Args:
        folder: Where the file is; None for the system's folder for temporary files.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._file = tempfile.TemporaryFile(prefix="qwenimage-spool-", dir=folder)  # noqa: SIM115  closed by `close`
        self._offsets = array("q")
        self._end = 0
        # A place in the file is found and then used: nobody else may move it between.
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._offsets)

    def append(self, row: dict[str, Any]) -> None:
        """Add a row."""
        self[len(self)] = row

    def __setitem__(self, number: int, row: dict[str, Any]) -> None:
        """Put a row at a place, counted from 0; what stood there is forgotten, what is skipped is missing."""
        line = json.dumps(row).encode("ascii") + b"\n"
        with self._lock:
            self._file.seek(self._end)
            self._file.write(line)
            if number >= len(self):
                self._offsets.extend([_NOTHING] * (number + 1 - len(self)))
            self._offsets[number] = self._end
            self._end += len(line)

    def get(self, number: int) -> dict[str, Any] | None:
        """Return the row at a place, or None if there is none."""
        with self._lock:
            if number >= len(self) or self._offsets[number] == _NOTHING:
                return None
            self._file.seek(self._offsets[number])
            line = self._file.readline()
        row: dict[str, Any] = json.loads(line)
        return row

    def close(self) -> None:
        """Remove the file."""
        self._file.close()
