"""Keep the sandbox's tasks in a file, so that a restarted sandbox still knows them."""

from __future__ import annotations

import json
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

from airflow_provider_qwenimage.contract import GenerateRequest
from airflow_provider_qwenimage.sandbox.books import Task


class StateFile:
    """A JSON Lines file with one line per accepted task, written before the task's id is sent to the client.

    A line that a crash has cut short belongs to a task whose id was never sent; it is dropped.

    Args:
        path: Created if it does not exist; its folder must exist.

    Raises:
        ValueError: If the file cannot be written.
    """

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._lock = threading.Lock()
        try:
            self._path.touch()
        except OSError as error:
            raise ValueError(
                f"state_file is {path!r}, which cannot be written ({error.strerror}); it must be a file in a folder "
                "that exists and is writable, or None to keep nothing across restarts."
            ) from error

    def load(self) -> list[Task]:
        """Return the tasks in the file, oldest first.

        Raises:
            ValueError: If the file contains anything else.
        """
        with self._lock:
            content = self._path.read_bytes()
            whole = content[: content.rfind(b"\n") + 1]
            if len(whole) < len(content):
                with self._path.open("r+b") as file:
                    file.truncate(len(whole))
        return [self._read(number, line) for number, line in enumerate(whole.splitlines(), start=1)]

    def append(self, task: Task) -> None:
        """Append a task."""
        fields = {name: value for name, value in asdict(task).items() if name != "created_at"}
        line = json.dumps(fields).encode() + b"\n"
        with self._lock, self._path.open("ab") as file:
            file.write(line)

    def clear(self) -> None:
        """Delete every task."""
        with self._lock, self._path.open("wb"):
            pass

    def _read(self, number: int, line: bytes) -> Task:
        try:
            fields: dict[str, Any] = json.loads(line)
            return Task(**fields | {"request": GenerateRequest(**fields["request"])})
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"state_file is {str(self._path)!r}, whose line {number} is not a task of a sandbox ({error}). "
                "Name a file that a sandbox has written, or remove this one to start with no tasks."
            ) from error
