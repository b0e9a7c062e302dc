"""Stores finished images in the user's storage, whole and verified, and finds them there again.

An image gets its final name only if it decodes in the requested format and pixel size; its ``.json`` sidecar follows.
"""

from __future__ import annotations

import logging
import random
import re
import time
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard

import pendulum

from airflow_provider_qwenimage._version import __version__
from airflow_provider_qwenimage.client.downloads import ImageClient, fetch
from airflow_provider_qwenimage.contract import DEFAULT_MAX_IMAGE_BYTES, GenerateRequest, TaskSnapshot
from airflow_provider_qwenimage.exceptions import QwenImageImageError
from airflow_provider_qwenimage.rules.made_by import writer_of
from airflow_provider_qwenimage.rules.origins import displayed_url
from airflow_provider_qwenimage.storage.files import (
    MOST_BYTES,
    check_replaceable,
    put_bytes,
    put_json,
    read_json,
    sha256_of,
)

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import ObjectStoragePath

    from airflow_provider_qwenimage.rules.verification import ImageFacts

log = logging.getLogger(__name__)

_PUT_TRIES = 5
_PUT_PAUSE_SECONDS = 2.0
# Bounds for values read from a sidecar: more than the API reports, and safe for XComs and sums.
_MOST_CREDITS = 1e9
_LONGEST_LINE = 8192
_SUFFIXES = {"jpeg": ".jpg", "png": ".png", "webp": ".webp"}


def file_stem(request: GenerateRequest, variant: int = 0) -> str:
    """Return the file name, without suffix, of the image that a request asks for.

    Args:
        request: The request.
        variant: The number that distinguishes equal requests with a random seed; see `GenerateRequest.fingerprint`.

    Returns:
        The prompt's first words, for people, and 16 hexadecimal digits of the fingerprint.
    """
    plain = unicodedata.normalize("NFKD", request.prompt).encode("ascii", "ignore").decode("ascii")
    words = "-".join(re.findall(r"[a-z0-9]+", plain.lower()))[:40].strip("-")
    return f"{words or 'image'}-{request.fingerprint(variant)[:16]}"


@dataclass(frozen=True, kw_only=True)
class StoredImages:
    """The verified images of one request, in storage.

    Attributes:
        image_task_id: The API's id of the task that drew them.
        paths: Their paths in storage.
        image_urls: The URLs they were downloaded from, without user, password and query, which may grant access.
        consumed_credits: Their cost, or None if the API did not report it.
        made_by: The Airflow task that stored them; see `save_images`.
        stored_at: When they were stored, in ISO 8601, if known.
    """

    image_task_id: str
    paths: tuple[str, ...]
    image_urls: tuple[str, ...]
    consumed_credits: float | None
    made_by: Mapping[str, Any]
    stored_at: str | None = None


def save_images(
    snapshot: TaskSnapshot,
    request: GenerateRequest,
    folder: ObjectStoragePath,
    *,
    variant: int = 0,
    max_image_bytes: int = DEFAULT_MAX_IMAGE_BYTES,
    made_by: Mapping[str, Any] | None = None,
    verify: bool | str = True,
) -> list[str]:
    """Download, verify and store every image of a finished task.

    Args:
        snapshot: The task's snapshot with status ``SUCCESS``.
        request: The request that the images must match.
        folder: The folder for the images; see `open_output_path`.
        variant: The number that distinguishes equal requests with a random seed; see `GenerateRequest.fingerprint`.
        max_image_bytes: A longer download is refused.
        made_by: The Airflow task that stores the images, for the sidecar: plain JSON.
        verify: How the image host's TLS certificate is checked; see `ConnectionSettings`.

    Returns:
        The final path of each image, in the order of the snapshot's URLs.

    Raises:
        QwenImageImageError: If an image cannot be downloaded, or is not what was requested. Nothing of it then has a
            final name.
    """
    with ImageClient(verify) as client:
        paths = []
        for number, url in enumerate(snapshot.image_urls, start=1):
            content, facts = fetch(client, url, request, max_image_bytes)
            paths.append(
                store_image(content, facts, snapshot, request, folder, number=number, variant=variant, made_by=made_by)
            )
    return paths


def store_image(
    content: bytes,
    facts: ImageFacts,
    snapshot: TaskSnapshot,
    request: GenerateRequest,
    folder: ObjectStoragePath,
    *,
    number: int,
    variant: int = 0,
    made_by: Mapping[str, Any] | None = None,
) -> str:
    """Store one image of a finished task, and its sidecar.

    Args:
        content: The bytes of the file.
        facts: The facts verified about them.
        snapshot: The task's snapshot.
        request: The request that the image matches.
        folder: The folder for the image; see `open_output_path`.
        number: The number of its URL in the snapshot, counted from 1.
        variant: The number that distinguishes equal requests with a random seed; see `GenerateRequest.fingerprint`.
        made_by: The Airflow task that stores the image, for the sidecar: plain JSON.

    Returns:
        Its final path.

    Raises:
        QwenImageImageError: If reading it back does not return what was stored.
    """
    image, sidecar = _names(request, folder, variant, number)
    description = {
        "image": image.name,
        "image_number": number,
        "image_count": len(snapshot.image_urls),
        "request": request.description(),
        "fingerprint": request.fingerprint(variant),
        "task_id": snapshot.task_id,
        "status": str(snapshot.status),
        "consumed_credits": snapshot.consumed_credits,
        "image_url": displayed_url(snapshot.image_urls[number - 1]),
        "width": facts.width,
        "height": facts.height,
        "output_format": facts.output_format,
        "size_bytes": facts.size_bytes,
        "sha256": facts.sha256,
        "created_at": snapshot.created_at.isoformat() if snapshot.created_at else None,
        "stored_at": pendulum.now("UTC").isoformat(),
        "made_by": dict(made_by or {}),
        "package_version": __version__,
    }
    _put_pair(content, image, description, sidecar, writer_of(made_by or {}))
    return str(image)


def find_images(request: GenerateRequest, folder: ObjectStoragePath, *, variant: int = 0) -> StoredImages | None:
    """Return the images that `save_images` stored for a request, if they are whole and unchanged.

    Args:
        request: The request.
        folder: The folder of the images.
        variant: The number that distinguishes equal requests with a random seed; see `GenerateRequest.fingerprint`.

    Returns:
        The images, or None if there are none, or one of them is not the file that was verified.

    Raises:
        OSError: If storage cannot be read, or something other than a file has the name of the image or its sidecar.
    """
    image, sidecar = _names(request, folder, variant, 1)
    # Before anything is paid that could not be stored.
    check_replaceable(image)
    first = read_json(sidecar)
    if first is None:
        return None
    paths: list[str] = []
    urls: list[str] = []
    for number in range(1, _image_count(first) + 1):
        image, sidecar = _names(request, folder, variant, number)
        description = first if number == 1 else read_json(sidecar)
        if not _describes(description, image, first, request.fingerprint(variant)):
            log.warning("%s is missing, or is not the file that its sidecar describes: it counts as not stored.", image)
            return None
        paths.append(str(image))
        urls.append(displayed_url(description["image_url"]))
    return StoredImages(
        image_task_id=first["task_id"],
        paths=tuple(paths),
        image_urls=tuple(urls),
        consumed_credits=_if_valid(first.get("consumed_credits"), _is_number),
        made_by=_if_valid(first.get("made_by"), _is_object) or {},
        stored_at=_if_valid(first.get("stored_at"), _is_line),
    )


def _image_count(sidecar: Mapping[str, Any]) -> int:
    """Return how many images a sidecar's task has drawn, at least 1; `_describes` refuses a count of another type."""
    count = sidecar.get("image_count", 1)
    return max(1, count) if isinstance(count, int) else 1


def _describes(
    description: dict[str, Any] | None, image: ObjectStoragePath, first: Mapping[str, Any], fingerprint: str
) -> TypeGuard[dict[str, Any]]:
    """Whether a sidecar, which anybody may have edited, is about this request and its image is stored next to it."""
    return (
        description is not None
        and description.get("fingerprint") == fingerprint
        and _is_line(description.get("task_id"))
        and description["task_id"] == first.get("task_id")
        and _is_line(description.get("image_url"))
        and isinstance(description.get("image_count", 1), int)
        and isinstance(description.get("sha256"), str)
        and description["sha256"] == sha256_of(image, _size_in(description))
    )


def _size_in(description: Mapping[str, Any]) -> int:
    """Return how many bytes an image has according to its sidecar: no more of it is read."""
    size = description.get("size_bytes")
    return size if isinstance(size, int) and 0 <= size <= MOST_BYTES else MOST_BYTES


def _if_valid(value: Any, is_valid: Callable[[Any], bool]) -> Any:
    """Return a value from a sidecar, or None if it could not be pushed as an XCom or added up."""
    return value if is_valid(value) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= _MOST_CREDITS


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _is_line(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable() and len(value) <= _LONGEST_LINE


def _names(
    request: GenerateRequest, folder: ObjectStoragePath, variant: int, number: int
) -> tuple[ObjectStoragePath, ObjectStoragePath]:
    """Return the final names of an image and its sidecar; `number` counts the images of one task from 1."""
    stem = file_stem(request, variant)
    name = stem if number == 1 else f"{stem}-{number}"
    return folder / f"{name}{_SUFFIXES[request.output_format]}", folder / f"{name}.json"


def _put_pair(
    content: bytes, image: ObjectStoragePath, description: Mapping[str, Any], sidecar: ObjectStoragePath, writer: str
) -> None:
    """Put an image and its sidecar into storage, and read them back.

    Another task may store its own image under the same names at the same time. The last writer also reads last, so no
    image is left next to the sidecar of another one.
    """
    for _ in range(_PUT_TRIES):
        began = time.monotonic()
        put_bytes(content, image, writer=writer)
        put_json(description, sidecar, writer=writer, indent=2)
        read_back = read_json(sidecar)
        if read_back is not None and read_back.get("sha256") == sha256_of(image, len(content)):
            return
        # Get out of step with the other writer, by up to several times the duration of a write.
        longest = _PUT_PAUSE_SECONDS + 4 * (time.monotonic() - began)
        time.sleep(random.uniform(0, longest))  # noqa: S311  no secret
    raise QwenImageImageError(
        f"{image} was stored {_PUT_TRIES} times, and the file that was read back is not the one its sidecar describes. "
        "Check that the storage works, and that nothing else writes to these names."
    )
