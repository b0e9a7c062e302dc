"""Shows the steps of a program while it works: one live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

_REDRAW_SECONDS = 0.2
# Often enough to see life in a log, seldom enough to read it.
_PLAIN_SECONDS = 10.0


class Progress:
    """One step after the other, each with its seconds.

    Args:
        stream: Where to write.
    """

    def __init__(self, stream: TextIO = sys.stdout) -> None:
        self._stream = stream
        self._live = stream.isatty()
        self._lock = threading.Lock()
        self._text = ""
        self._began = 0.0
        self._drawn = 0.0
        self._width = 0

    @contextmanager
    def step(self, text: str) -> Iterator[None]:
        """Show a step while the block runs, and its seconds when it is done."""
        self.begin(text)
        stopped = threading.Event()
        ticker = threading.Thread(target=self._tick, args=(stopped,), daemon=True)
        ticker.start()
        try:
            yield
        except BaseException:
            outcome = "stopped after"
            raise
        else:
            outcome = "done in"
        finally:
            stopped.set()
            ticker.join()
            self._finish(outcome)
            self._text = ""

    def begin(self, text: str) -> None:
        """Go on to the next step; the one before, if any, is done."""
        with self._lock:
            if self._text:
                self._finish("done in")
            self._text, self._began = text, time.monotonic()
            self._draw()

    def update(self, text: str) -> None:
        """Say the running step in other words, because there is news of it."""
        with self._lock:
            if text != self._text:
                self._text = text
                self._draw()

    def _tick(self, stopped: threading.Event) -> None:
        while not stopped.wait(_REDRAW_SECONDS):
            with self._lock:
                if self._live or time.monotonic() - self._drawn >= _PLAIN_SECONDS:
                    self._draw()

    def _finish(self, outcome: str) -> None:
        self._write(f"  {self._text}: {outcome} {time.monotonic() - self._began:.1f} s", final=True)

    def _draw(self) -> None:
        seconds = int(time.monotonic() - self._began)
        self._write(f"  {self._text} ...{f' {seconds} s' if seconds else ''}", final=not self._live)
        self._drawn = time.monotonic()

    def _write(self, line: str, *, final: bool) -> None:
        if self._live:
            # A line that wraps cannot be drawn over.
            line = line[: shutil.get_terminal_size().columns - 1]
            self._stream.write("\r" + line.ljust(self._width))
            self._width = 0 if final else len(line)
        else:
            self._stream.write(line)
        if final:
            self._stream.write("\n")
        self._stream.flush()
