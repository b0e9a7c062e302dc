"""Makes thumbnails of stored images, and caches a limited number of bytes of them on the API server's disk."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

from airflow_provider_qwenimage.plugin.storage_access import RefusedError, check_pixels
from airflow_provider_qwenimage.rules.reduced_images import reduced_image
from airflow_provider_qwenimage.rules.verification import open_image

# Twice the size of a card in the grid, for high-resolution screens.
_PIXELS = (480, 360)
_QUALITY = 80
# Decoding keeps a core busy, and the rest of the API server needs some as well.
_AT_ONCE = 2
MEDIA_TYPE = "image/webp"

_decoders = threading.BoundedSemaphore(_AT_ONCE)


class ThumbnailCache:
    """Thumbnails in a folder that all processes of an API server share.

    Args:
        folder: Created if it does not exist.
        most_bytes: The size at which the least recently used thumbnails are deleted.
    """

    def __init__(self, folder: Path, most_bytes: int) -> None:
        self._folder = folder
        self._most_bytes = most_bytes
        self._lock = threading.Lock()
        self._added = 0

    def get(self, path: str, sha256: str, read_image: Callable[[], bytes]) -> bytes:
        """Return the thumbnail of an image.

        Args:
            path: The path or URL of the image.
            sha256: The SHA-256 of the image, in hexadecimal.
            read_image: Returns the bytes of the image; called if no thumbnail is cached.
        """
        # The key includes the path: knowing the hash of an image must not be enough to see its thumbnail.
        file = self._folder / f"{hashlib.sha256(f'{path} {sha256}'.encode()).hexdigest()}.webp"
        with contextlib.suppress(OSError):
            content = file.read_bytes()
            os.utime(file)
            return content
        # Read before decoding, so that storage that does not respond does not block the decoding of other images.
        image = read_image()
        with _decoders:
            content = make_thumbnail(image)
        # If the disk is full or read-only, the thumbnail is shown without being cached.
        with contextlib.suppress(OSError):
            self._store(file, content)
        return content

    def _store(self, file: Path, content: bytes) -> None:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.NamedTemporaryFile(dir=self._folder, suffix=".part", delete=False) as part:
            part.write(content)
        Path(part.name).replace(file)
        with self._lock:
            self._added += len(content)
            # Checked from time to time, because other processes add to the folder as well.
            if self._added < self._most_bytes // 16:
                return
            self._added = 0
            self._shrink()

    def _shrink(self) -> None:
        files = []
        for entry in os.scandir(self._folder):
            with contextlib.suppress(FileNotFoundError):
                facts = entry.stat()
                files.append((facts.st_mtime, facts.st_size, entry.path))
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total <= self._most_bytes:
                return
            with contextlib.suppress(FileNotFoundError):
                Path(path).unlink()
            total -= size


def make_thumbnail(content: bytes) -> bytes:
    """Return a thumbnail of an image, as WebP.

    Raises:
        RefusedError: If the image cannot be decoded, or has too many pixels.
    """
    try:
        _, file = open_image(content)
    except Exception as error:  # broken files raise many classes
        raise _broken(error) from error
    check_pixels(file.size)
    made = io.BytesIO()
    try:
        reduced_image(content, file, _PIXELS).save(made, "WEBP", quality=_QUALITY, method=2)
    except Exception as error:  # broken files raise a dozen classes
        raise _broken(error) from error
    return made.getvalue()


def _broken(error: Exception) -> RefusedError:
    return RefusedError(f"This image cannot be decoded ({type(error).__name__}).")
