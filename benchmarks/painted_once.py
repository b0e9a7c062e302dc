"""A sandbox in a process of its own that paints a few pictures only, and serves them again and again.

Painting a picture takes a fifth of a second of CPU time, several times as long as any client needs for an image: with
many images a second, it would be all that is measured.
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
    """A `SandboxProcess` whose pictures are painted already: what an image shows does not depend on its prompt."""

    _module = "benchmarks.painted_once"

    def cpu_seconds(self) -> float:
        """Return the CPU seconds that it has used."""
        if self._process is None:
            raise RuntimeError("The sandbox's process does not run. Use it inside its `with` block.")
        times = psutil.Process(self._process.pid).cpu_times()
        return float(times.user + times.system)


def _picture(_prompt: str, seed: int, pixel_size: tuple[int, int], output_format: str) -> bytes:
    return _paint(seed % _PICTURES, pixel_size, output_format)


@lru_cache
def _paint(number: int, pixel_size: tuple[int, int], output_format: str) -> bytes:
    from airflow_provider_qwenimage.sandbox.painting import paint

    return paint("A picture that stands for many", number, pixel_size, output_format)


if __name__ == "__main__":
    # By name: the sandbox has no place to choose its painter, and should not get one for this.
    setattr(pictures, "paint_once", _picture)  # noqa: B010
    serve(json.loads(sys.argv[1]))
