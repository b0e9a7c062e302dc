"""Keeps the sandbox's tasks in a file, so that a sandbox that is started again knows what was asked of it before."""

from __future__ import annotations

import json
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

from airflow_provider_qwenimage.contract import GenerateRequest
from airflow_provider_qwenimage.sandbox.books import Task


class StateFile:
    """A JSON Lines file with the accepted tasks, one line each, written before their ids are answered.

    A line that a crash has cut short was never answered for; it is dropped.

    Args:
        path: The file; it is made where it is missing, its folder is not.

    Raises:
        ValueError: If it cannot be written to.
    """

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._lock = threading.Lock()
        try:
            self._path.touch()
        except OSError as error:
            raise ValueError(
                f"state_file is {path!r}, which cannot be written ({error.strerror}); allowed is a file in a folder "
                "that exists and is writable, or None to remember nothing over a restart."
            ) from error

    def load(self) -> list[Task]:
        """Return the tasks of the file, oldest first.

        Raises:
            ValueError: If the file holds something else.
        """
        with self._lock:
            content = self._path.read_bytes()
            whole = content[: content.rfind(b"\n") + 1]
            if len(whole) < len(content):
                with self._path.open("r+b") as file:
                    file.truncate(len(whole))
        return [self._read(number, line) for number, line in enumerate(whole.splitlines(), start=1)]

    def append(self, task: Task) -> None:
        """Write a task down."""
        fields = {name: value for name, value in asdict(task).items() if name != "created_at"}
        line = json.dumps(fields).encode() + b"\n"
        with self._lock, self._path.open("ab") as file:
            file.write(line)

    def clear(self) -> None:
        """Forget every task."""
        with self._lock, self._path.open("wb"):
            pass

    def _read(self, number: int, line: bytes) -> Task:
        try:
            fields: dict[str, Any] = json.loads(line)
            return Task(**fields | {"request": GenerateRequest(**fields["request"])})
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"state_file is {str(self._path)!r}, whose line {number} is no task of a sandbox ({error}); allowed is "
                "a file that a sandbox has written. Name another one, or remove it to begin anew."
            ) from error
