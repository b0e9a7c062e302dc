"""The settings of the benchmarks' DAG files, passed through the environment, and the code that their tasks share."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

from benchmarks.image_requests import image_requests

# Airflow's scheduler may consider a task crashed if it learns too late that its previous process ended. This happens to
# sensors that reschedule themselves every few seconds; without retries, it would fail the whole run.
RETRIES: dict[str, Any] = {"retries": 10, "retry_delay": timedelta(0)}

# As in a normal installation: bytecode is compiled once, not at the start of each process.
COMPILED = {"PYTHONDONTWRITEBYTECODE": ""}

_PREFIX = "QWENIMAGE_BENCHMARK_"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of a benchmark.

    Attributes:
        images: Images that each contestant draws.
        in_flight: Images at the same time, for contestants that can limit them.
        poll_interval: In seconds.
        defer_after: Seconds that a deferrable task waits in the worker, for the contestant that does.
        folder: The folder that contains a folder of images for each contestant.
        provenance: The operator's argument; empty for False.
        contact_sheet: Whether the batch makes a contact sheet.
    """

    images: int
    in_flight: int
    poll_interval: float
    folder: str
    defer_after: float = 0.0
    provenance: str = "mark"
    contact_sheet: bool = False

    @classmethod
    def of_environment(cls) -> Self:
        """Read the settings from the environment variables of `to_environment`."""
        kinds: dict[str, Callable[[str], Any]] = {
            "images": int,
            "in_flight": int,
            "poll_interval": float,
            "folder": str,
            "defer_after": float,
            "provenance": str,
            "contact_sheet": "True".__eq__,
        }
        return cls(**{name: kind(os.environ[_PREFIX + name.upper()]) for name, kind in kinds.items()})

    def to_environment(self) -> dict[str, str]:
        """Return the settings as environment variables."""
        return settings_in_environment(**{each.name: getattr(self, each.name) for each in fields(self)})

    def image_requests(self, contestant: str) -> list[dict[str, Any]]:
        """Return the requests of a contestant."""
        return image_requests(contestant, self.images)

    def output(self, contestant: str) -> Path:
        """Return the folder of a contestant's images."""
        return Path(self.folder) / contestant


def settings_in_environment(**settings: Any) -> dict[str, str]:
    """Return some settings as environment variables."""
    return {_PREFIX + name.upper(): str(value) for name, value in settings.items()}


def save_image(image_urls: list[str], folder: Path) -> list[str]:
    """Download, decode and write images into a folder, as the last task of a hand-written DAG does."""
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
