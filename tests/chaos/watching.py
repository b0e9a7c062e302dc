"""Watch the output folder while images arrive: a file under its final name must be complete."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.chaos.evidence import is_whole

_SUFFIXES = frozenset({".jpg", ".png", ".webp"})
_PAUSE_SECONDS = 0.02


class FolderWatch:
    """Checks each new or replaced image as soon as it appears, in its own thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._known: set[tuple[str, int, int]] = set()
        self.seen = 0
        self.partial: list[str] = []

    def __enter__(self) -> Self:
        # Files of earlier tests are not checked.
        self._known = {version for _, version in self._versions()}
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stopped.wait(_PAUSE_SECONDS):
            for file, version in self._versions():
                if version in self._known:
                    continue
                self._known.add(version)
                self.seen += 1
                if not is_whole(file):
                    self.partial.append(file.name)

    def _versions(self) -> Iterator[tuple[Path, tuple[str, int, int]]]:
        """Return the images under their final names, each with a value that changes when it is written again."""
        for file in self._folder.iterdir():
            if not file.name.startswith(".") and file.suffix in _SUFFIXES:
                status = file.stat()
                yield file, (file.name, status.st_ino, status.st_mtime_ns)
