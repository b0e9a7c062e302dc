"""A sandbox in its own process whose image takes as many seconds as its prompt says, such as ``A fox in 17.5 s``."""

from __future__ import annotations

import json
import re
import sys

from airflow_provider_qwenimage.sandbox import server
from airflow_provider_qwenimage.sandbox.settings import SandboxSettings
from benchmarks.sandbox_process import SandboxProcess, serve

_SECONDS = re.compile(r" in (\d+\.\d+) s$")


class DrawnInSandbox(SandboxProcess):
    """A `SandboxProcess` whose images take as long as their prompts say; see `prompt_of`."""

    _module = "benchmarks.drawn_in"


def prompt_of(name: str, seconds: float) -> str:
    """Return a prompt whose image takes so many seconds."""
    return f"{name} in {seconds:.3f} s"


def seconds_of(prompt: str) -> float:
    """Return how long the image of a prompt takes, in seconds.

    Raises:
        ValueError: If the prompt is not of `prompt_of`.
    """
    found = _SECONDS.search(prompt)
    if found is None:
        raise ValueError(f"prompt is {prompt!r}; it must end with the seconds that it takes, such as 'in 17.5 s'.")
    return float(found[1])


def _task_seconds(prompt: str, _behaviour: str, _settings: SandboxSettings) -> float:
    return seconds_of(prompt)


if __name__ == "__main__":
    # Patched, because in the sandbox all images take equally long.
    setattr(server, "task_seconds", _task_seconds)  # noqa: B010
    serve(json.loads(sys.argv[1]))
