"""What the contestants of the benchmarks have drawn: the same number of different pictures, of the same length."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def orders(contestant: str, images: int, size: str = "1024*1024") -> list[dict[str, Any]]:
    """Return requests that no other contestant sends: the sandbox remembers what it has painted.

    Args:
        contestant: Its name.
        images: How many requests.
        size: Width times height in pixels.
    """
    return [
        {"prompt": f"{contestant:6} {number:05}: a lighthouse on a cliff at dusk", "size": size, "seed": number}
        for number in range(images)
    ]


def write_orders(file: Path, requests: Iterable[dict[str, Any]]) -> None:
    """Write requests as JSON Lines."""
    file.write_text("".join(f"{json.dumps(request)}\n" for request in requests))
