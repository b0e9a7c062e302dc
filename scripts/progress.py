"""Shows the steps of a program while it works: a live line on a terminal, a line for each step elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.progress import Progress as LiveLine
from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn


class Progress:
    """One step after the other, each with its seconds.

    Args:
        stream: Where to write; standard output by default.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._console = Console(file=stream, highlight=False, markup=False, soft_wrap=True)
        self._text = ""
        self._began = 0.0

    @contextmanager
    def step(self, text: str) -> Iterator[None]:
        """Show a step while the block runs, and its seconds at the end."""
        columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
        # On a terminal the live line disappears at the end: the line with the seconds replaces it.
        hidden = not self._console.is_terminal
        with LiveLine(*columns, console=self._console, transient=True, disable=hidden) as self._line:
            self.begin(text)
            try:
                yield
            except BaseException:
                self._end("stopped after")
                raise
            self._end("done in")

    def begin(self, text: str) -> None:
        """End the running step, if there is one, and begin the next."""
        if self._text:
            self._end("done in")
        self._text, self._began = text, time.monotonic()
        self._task = self._line.add_task(text, total=None)
        self._print_elsewhere()

    def update(self, text: str) -> None:
        """Change the text of the running step, if there is one."""
        if self._text and text != self._text:
            self._text = text
            self._line.update(self._task, description=text)
            self._print_elsewhere()

    def _print_elsewhere(self) -> None:
        if not self._console.is_terminal:
            self._console.print(f"  {self._text} ...")

    def _end(self, outcome: str) -> None:
        self._line.remove_task(self._task)
        self._console.print(f"  {self._text}: {outcome} {time.monotonic() - self._began:.1f} s")
        self._text = ""
