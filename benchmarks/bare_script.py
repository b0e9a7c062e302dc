"""The lower bound for the operators: a bare asyncio script that does the same work without Airflow.

It submits, polls, downloads, decodes and writes, and nothing else: no retry, no record of submissions, no resume,
no fsync. Its last line of output is its usage as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import io
import json
import os
import random
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import aiohttp
from PIL import Image

from benchmarks.usage import Meter

_JITTER = 0.2
_GROWTH = 1.2
_SLOWEST_SECONDS = 10.0


@dataclass(frozen=True)
class _Script:
    session: aiohttp.ClientSession
    url: str
    key: str
    output: Path
    poll_interval: float

    async def draw(self, request: dict[str, Any], number: int, free: asyncio.Semaphore) -> None:
        async with free:
            task = await self._ask("POST", "/api/generate", json=request)
            for image_url in await self._wait(task["task_id"]):
                async with self.session.get(image_url) as response:
                    response.raise_for_status()
                    content = await response.read()
                await asyncio.to_thread(self._save, content, _name(request, number))

    async def _wait(self, task_id: str) -> list[str]:
        polls = 0
        while True:
            await asyncio.sleep(self._pause(polls))
            data = await self._ask("GET", "/api/status", params={"task_id": task_id})
            if data["status"] == "SUCCESS":
                urls: list[str] = data["response"]
                return urls
            if data["status"] == "FAILED":
                raise RuntimeError(f"Image task {task_id} failed: {data['error_message']}. Run the benchmark again.")
            polls += 1

    def _pause(self, polls: int) -> float:
        """Return the seconds to the next poll, which grow as those of the package do, so that both poll as often."""
        slowest = max(self.poll_interval, min(2 * self.poll_interval, _SLOWEST_SECONDS))
        plain = min(slowest, self.poll_interval * _GROWTH ** min(polls, 16))
        return plain * (1 - _JITTER + 2 * _JITTER * random.random())

    async def _ask(self, method: str, path: str, **arguments: Any) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {self.key}"}
        async with self.session.request(method, self.url + path, headers=headers, **arguments) as response:
            answer = await response.json()
        if answer["code"] != 200:  # noqa: PLR2004  the API's code for success
            raise RuntimeError(f"{method} {path} answered {answer['code']}: {answer['message']}.")
        data: dict[str, Any] = answer["data"]
        return data

    def _save(self, content: bytes, name: str) -> None:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            suffix = (image.format or "").lower()
        hashlib.sha256(content).hexdigest()
        file = self.output / f"{name}.{suffix}"
        part = file.with_suffix(".part")
        part.write_bytes(content)
        part.replace(file)


def main() -> None:
    """Draw every request of the file, and print the usage."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bare_script", description=__doc__)
    parser.add_argument("requests", type=Path, help="a JSON Lines file of requests")
    parser.add_argument("output", type=Path, help="the folder for the images")
    parser.add_argument("--url", required=True, help="the API's base URL; the key is in QWENIMAGE_API_KEY")
    parser.add_argument("--in-flight", type=int, default=16, help="images at the same time (default: 16)")
    parser.add_argument("--poll-interval", type=float, default=5.0, help="seconds between polls (default: 5)")
    arguments = parser.parse_args()
    meter = Meter()
    asyncio.run(_draw_all(arguments))
    print(json.dumps(asdict(meter.read())))


async def _draw_all(arguments: argparse.Namespace) -> None:
    arguments.output.mkdir(parents=True, exist_ok=True)
    with arguments.requests.open() as lines:
        requests = [json.loads(line) for line in lines]
    free = asyncio.Semaphore(arguments.in_flight)
    async with aiohttp.ClientSession() as session:
        key = os.environ["QWENIMAGE_API_KEY"]
        script = _Script(session, arguments.url, key, arguments.output, arguments.poll_interval)
        async with asyncio.TaskGroup() as group:
            for number, request in enumerate(requests):
                group.create_task(script.draw(request, number, free))


def _name(request: dict[str, Any], number: int) -> str:
    return f"{number:05}-{re.sub('[^a-z0-9]+', '-', request['prompt'].lower())[:40].strip('-')}"


if __name__ == "__main__":
    main()
