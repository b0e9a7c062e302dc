"""Makes small pictures of stored images, once, and keeps them on the API server's disk within a bound."""

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
from airflow_provider_qwenimage.rules.png_file import PngFile
from airflow_provider_qwenimage.rules.verification import open_image

# Twice what a card of the grid has, for screens with two pixels for one.
_PIXELS = (480, 360)
_QUALITY = 80
# Some 15,000 of them.
MOST_BYTES = 256 * 1024 * 1024
# Decoding takes a core; the rest of the API server needs one as well.
_AT_ONCE = 2
MEDIA_TYPE = "image/webp"
_FORMATS = ("JPEG", "PNG", "WEBP")

_places = threading.BoundedSemaphore(_AT_ONCE)


class ThumbnailCache:
    """Small pictures of images, in a folder that all processes of an API server share.

    Args:
        folder: Where they are; made where it does not exist.
        most_bytes: How much they may take. What was not asked for longest goes first.
    """

    def __init__(self, folder: Path, most_bytes: int = MOST_BYTES) -> None:
        self._folder = folder
        self._most_bytes = most_bytes
        self._lock = threading.Lock()
        self._added = 0

    def get(self, path: str, sha256: str, read_image: Callable[[], bytes]) -> bytes:
        """Return the small picture of an image.

        Args:
            path: Where the image is.
            sha256: Its SHA-256, in hexadecimal.
            read_image: Returns its bytes, where there is no small picture yet.
        """
        # With the path: whoever knows the hash of somebody else's image has not seen it yet.
        file = self._folder / f"{hashlib.sha256(f'{path} {sha256}'.encode()).hexdigest()}.webp"
        with contextlib.suppress(OSError):
            content = file.read_bytes()
            os.utime(file)
            return content
        # Read first: storage that does not respond keeps no place from others.
        read = read_image()
        with _places:
            content = make_thumbnail(read)
        # A disk that is full or read-only makes the gallery slow, not empty.
        with contextlib.suppress(OSError):
            self._keep(file, content)
        return content

    def _keep(self, file: Path, content: bytes) -> None:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.NamedTemporaryFile(dir=self._folder, suffix=".part", delete=False) as part:
            part.write(content)
        Path(part.name).replace(file)
        with self._lock:
            self._added += len(content)
            # Looked through now and then, because other processes add to it as well.
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
    """Return a small picture of an image, as WebP.

    Args:
        content: The image's bytes.

    Raises:
        RefusedError: If they do not decode, or have too many pixels.
    """
    try:
        _, file = open_image(content)
    except Exception as error:  # broken files raise a dozen classes
        raise _broken(error) from error
    check_pixels(file.size)
    # Of a PNG, texts and profiles may be more than the decoder takes: without them in a second attempt.
    attempts = [content, file.pixels] if isinstance(file, PngFile) else [content]
    for attempt in attempts:
        try:
            return _shrunk(attempt)
        except Exception as error:  # noqa: BLE001  broken files raise a dozen classes
            failure = error
    raise _broken(failure) from failure


def _broken(error: Exception) -> RefusedError:
    return RefusedError(f"This image does not decode ({type(error).__name__}).")


def _shrunk(content: bytes) -> bytes:
    from PIL import Image

    made = io.BytesIO()
    with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
        image.draft("RGB", _PIXELS)
        image.thumbnail(_PIXELS)
        small = image if image.mode in ("RGB", "RGBA") else image.convert("RGB")
        small.save(made, "WEBP", quality=_QUALITY, method=2)
    return made.getvalue()
