"""Writes a recording while images are drawn: a new file that only its owner may read."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import pendulum

from airflow_provider_qwenimage._version import __version__
from airflow_provider_qwenimage.recordings.format import RecordedAnswer, answer_line, end_line, head_line
from airflow_provider_qwenimage.text.messages import shown


class RecordingFile:
    """A recording that grows by one answer at a time. A context manager, whose end completes the file.

    Args:
        path: The file. It must not exist.

    Attributes:
        problem: Why the recording is not complete; "" if it is.

    Raises:
        ValueError: If the file exists, or cannot be created or written.
    """

    def __init__(self, path: str) -> None:
        self.problem = ""
        self._answers = 0
        try:
            # A link is not followed, so that nothing that it points to is changed.
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            raise ValueError(f"--record is {shown(path)}, which exists; it must be the name of a new file.") from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise ValueError(
                f"--record is {shown(path)}, which cannot be created ({reason}); it must be a new file in a folder "
                "that exists and is writable."
            ) from None
        self._file = os.fdopen(descriptor, "wb")
        if not self._write(head_line(pendulum.now("UTC").format("YYYY-MM-DDTHH:mm:ss[Z]"), __version__)):
            self._close()
            with suppress(OSError):
                Path(path).unlink()
            raise ValueError(f"--record is {shown(path)}, which cannot be written ({self.problem}).")

    def add(self, answer: RecordedAnswer) -> None:
        """Append an answer. A paid image is not lost because a disk is full: then the recording ends."""
        if self._write(answer_line(answer)):
            self._answers += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._write(end_line(self._answers))
        self._close()

    def _close(self) -> None:
        # It writes what an error has left in the buffer, and some network file systems report a full disk only then.
        try:
            self._file.close()
        except OSError as error:
            self.problem = self.problem or str(error.strerror)

    def _write(self, line: bytes) -> bool:
        if self.problem:
            return False
        try:
            self._file.write(line)
            self._file.flush()
        except OSError as error:
            self.problem = str(error.strerror)
            return False
        return True
