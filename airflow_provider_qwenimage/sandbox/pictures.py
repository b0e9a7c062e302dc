"""Draw the tasks' images outside the event loop, and cache the latest ones."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

from airflow_provider_qwenimage.contract import GenerateRequest

# The largest image takes less than 1 MiB. All sandboxes of a process share the cache: an image depends on its request
# alone.
_CACHED_IMAGES = 64
# Drawing holds the GIL for part of its time, so more threads would only slow down the event loop.
_THREADS = 2

_Key = tuple[str, int, tuple[int, int], str]


class Pictures:
    """The encoded images of requests. Use it from one event loop only, and close it."""

    def __init__(self) -> None:
        self._drawing: dict[_Key, asyncio.Future[bytes]] = {}
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="qwenimage-sandbox-painting")

    async def get(
        self,
        request: GenerateRequest,
        seed: int,
        *,
        pixel_size: tuple[int, int] | None = None,
        output_format: str | None = None,
    ) -> bytes:
        """Return the encoded image for a request.

        Args:
            pixel_size: Width and height; None for the requested ones.
            output_format: None for the requested one.
        """
        key = (request.prompt, seed, pixel_size or request.pixel_size, output_format or request.output_format)
        drawing = self._drawing.get(key)
        if drawing is None:
            drawing = asyncio.get_running_loop().run_in_executor(self._threads, paint_once, *key)
            self._drawing[key] = drawing
            drawing.add_done_callback(lambda _: self._drawing.pop(key))
        # shield: if one client hangs up, the others still get the image.
        return await asyncio.shield(drawing)

    def close(self) -> None:
        """Finish the drawings in progress, cancel the queued ones, and end the threads."""
        self._threads.shutdown(wait=True, cancel_futures=True)


@lru_cache(maxsize=_CACHED_IMAGES)
def paint_once(prompt: str, seed: int, pixel_size: tuple[int, int], output_format: str) -> bytes:
    """Call `painting.paint`, or return the cached image."""
    from airflow_provider_qwenimage.sandbox.painting import paint  # Pillow is loaded with the first image.

    return paint(prompt, seed, pixel_size, output_format)
