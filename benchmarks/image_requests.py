"""The image requests of the contestants: different prompts of the same length."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def image_requests(contestant: str, images: int, size: str = "1024*1024") -> list[dict[str, Any]]:
    """Return requests with prompts that no other contestant has, because the sandbox caches its images."""
    return [
        {"prompt": f"{contestant:6} {number:05}: a lighthouse on a cliff at dusk", "size": size, "seed": number}
        for number in range(images)
    ]


def write_requests(file: Path, requests: Iterable[dict[str, Any]]) -> None:
    """Write requests as JSON Lines."""
    file.write_text("".join(f"{json.dumps(request)}\n" for request in requests))
