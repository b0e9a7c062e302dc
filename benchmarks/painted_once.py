"""A sandbox in its own process that paints only a few pictures and serves them repeatedly.

Painting a picture takes 0.2 seconds of CPU time, several times as long as a client needs for an image. With many images
per second, the benchmark would measure little else.
"""

from __future__ import annotations

import json
import sys
from functools import lru_cache

import psutil

from airflow_provider_qwenimage.sandbox import pictures
from benchmarks.sandbox_process import SandboxProcess, serve

_PICTURES = 8


class PaintedOnceSandbox(SandboxProcess):
    """A `SandboxProcess` whose images do not depend on their prompts, so that only a few are painted."""

    _module = "benchmarks.painted_once"

    def cpu_seconds(self) -> float:
        """Return the CPU seconds that the sandbox's process has used."""
        if self._process is None:
            raise RuntimeError("The sandbox's process is not running. Use it inside its `with` block.")
        times = psutil.Process(self._process.pid).cpu_times()
        return float(times.user + times.system)


def _picture(_prompt: str, seed: int, pixel_size: tuple[int, int], output_format: str) -> bytes:
    return _paint(seed % _PICTURES, pixel_size, output_format)


@lru_cache
def _paint(number: int, pixel_size: tuple[int, int], output_format: str) -> bytes:
    from airflow_provider_qwenimage.sandbox.painting import paint

    return paint("A picture that stands for many", number, pixel_size, output_format)


if __name__ == "__main__":
    # Patched, because the sandbox has no option for this.
    setattr(pictures, "paint_once", _picture)  # noqa: B010
    serve(json.loads(sys.argv[1]))
