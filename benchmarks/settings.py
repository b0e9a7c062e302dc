"""What the DAG files of the benchmarks are told through the environment, and what their tasks share."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass, fields
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

from benchmarks.orders import orders

# Airflow's scheduler takes a task for crashed when it reads too late that its process before has ended: that happens to
# sensors that reschedule themselves every few seconds, and without retries it would end the whole run.
RETRIES: dict[str, Any] = {"retries": 10, "retry_delay": timedelta(0)}

# As installed at a user's: compiled once, not at the start of each process.
COMPILED = {"PYTHONDONTWRITEBYTECODE": ""}

_PREFIX = "QWENIMAGE_BENCHMARK_"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The size and the pace of a benchmark.

    Attributes:
        images: How many images each contestant draws.
        in_flight: How many at the same time, where a contestant can say so.
        poll_interval: Seconds between two looks at the API.
        folder: Where the images go: a folder for each contestant below it.
    """

    images: int
    in_flight: int
    poll_interval: float
    folder: str

    @classmethod
    def of_environment(cls) -> Self:
        """Return what `to_environment` has handed on."""
        kinds = {"images": int, "in_flight": int, "poll_interval": float, "folder": str}
        return cls(**{name: kind(os.environ[_PREFIX + name.upper()]) for name, kind in kinds.items()})

    def to_environment(self) -> dict[str, str]:
        """Return the environment variables that hand it on."""
        return {_PREFIX + each.name.upper(): str(getattr(self, each.name)) for each in fields(self)}

    def orders(self, contestant: str) -> list[dict[str, Any]]:
        """Return a contestant's requests."""
        return orders(contestant, self.images)

    def output(self, contestant: str) -> Path:
        """Return the folder of a contestant's images."""
        return Path(self.folder) / contestant


def save_image(image_urls: list[str], folder: Path) -> list[str]:
    """Download, decode and write images, as the last task of a hand-made DAG does.

    Args:
        image_urls: Where they are.
        folder: Where they go.
    """
    import requests
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for url in image_urls:
        answer = requests.get(url, timeout=60)
        answer.raise_for_status()
        with Image.open(io.BytesIO(answer.content)) as image:
            image.load()
        file = folder / url.rpartition("/")[2]
        part = file.with_suffix(".part")
        part.write_bytes(answer.content)
        part.replace(file)
        files.append(str(file))
    return files
