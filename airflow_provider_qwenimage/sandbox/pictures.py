"""Draws the tasks' images off the event loop, and keeps the last ones."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

from airflow_provider_qwenimage.contract import GenerateRequest

# The largest image takes less than 1 MiB. All sandboxes of a process share them: they depend on the request alone.
_KEPT_IMAGES = 64
# Drawing holds the GIL for a part of its time: more threads would only starve the event loop.
_THREADS = 2

_Key = tuple[str, int, tuple[int, int], str]


class Pictures:
    """Encoded images by what they show. To be used from one event loop, and closed."""

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
            request: What to draw.
            seed: The seed to draw from.
            pixel_size: Width and height, if not the requested ones.
            output_format: The format, if not the requested one.
        """
        key = (request.prompt, seed, pixel_size or request.pixel_size, output_format or request.output_format)
        drawing = self._drawing.get(key)
        if drawing is None:
            drawing = asyncio.get_running_loop().run_in_executor(self._threads, paint_once, *key)
            self._drawing[key] = drawing
            drawing.add_done_callback(lambda _: self._drawing.pop(key))
        # shield: one reader that hangs up must not take the image from the others.
        return await asyncio.shield(drawing)

    def close(self) -> None:
        """Finish the drawings at work, drop those that wait, and end the threads."""
        self._threads.shutdown(wait=True, cancel_futures=True)


@lru_cache(maxsize=_KEPT_IMAGES)
def paint_once(prompt: str, seed: int, pixel_size: tuple[int, int], output_format: str) -> bytes:
    """Return what `painting.paint` returns, from memory if it was drawn lately."""
    from airflow_provider_qwenimage.sandbox.painting import paint  # Pillow loads with the first image only.

    return paint(prompt, seed, pixel_size, output_format)
