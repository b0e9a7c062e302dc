"""Prints the lines of a command to whatever reads them: a terminal, a file, or a pipe that may end before it."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import TextIO

from airflow_provider_qwenimage.text.messages import printable


def print_line(text: str) -> None:
    """Print a line of the command's output."""
    write_line(sys.stdout, text)


def say(text: str) -> None:
    """Report progress, or a problem, where it does not mix with the output."""
    write_line(sys.stderr, printable(text))


def write_line(stream: TextIO | None, text: str) -> None:
    """Write a line to a stream, if anybody reads it: `airflow … | head -3` does not end the command with an error.

    Args:
        stream: The stream; None for one that the process was started without.
        text: The line. A character that the stream's encoding lacks is written as an escape sequence.
    """
    if stream is None:
        return
    # Messages quote values from outside, and a terminal may not know their characters.
    encoding = stream.encoding or "utf-8"
    try:
        stream.write(f"{text.encode(encoding, 'backslashreplace').decode(encoding)}\n")
        stream.flush()
    except BrokenPipeError:
        _discard(stream)


def _discard(stream: TextIO) -> None:
    """Send the rest to nowhere: Python writes what is buffered when it ends, and would fail again."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    with suppress(OSError):
        os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
