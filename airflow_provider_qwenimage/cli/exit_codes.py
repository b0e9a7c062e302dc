"""The exit codes of the commands, as ``docs/command-line.md`` describes them."""

from __future__ import annotations

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_ARGUMENTS = 2
# That of a process that SIGINT ended, as a shell reports it.
EXIT_INTERRUPTED = 130
