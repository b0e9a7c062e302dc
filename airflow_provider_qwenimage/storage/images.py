"""Brings a finished image into the user's storage, whole and verified, or not at all; and finds it there again.

Only an image that decodes, in the format and pixel size that were asked for, gets a name there, and its ``.json``
sidecar follows.
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
# What a sidecar may tell: more than the API does, and nothing that another part stumbles over.
_MOST_CREDITS = 1e9
_LONGEST_LINE = 8192
_SUFFIXES = {"jpeg": ".jpg", "png": ".png", "webp": ".webp"}


def file_stem(request: GenerateRequest, place: int = 0) -> str:
    """Return the file name, without suffix, of the image that a request asks for.

    Args:
        request: The request.
        place: The request's place among its like; see `GenerateRequest.fingerprint`.

    Returns:
        The prompt's first words, for people, and 16 hexadecimal digits of the fingerprint.
    """
    plain = unicodedata.normalize("NFKD", request.prompt).encode("ascii", "ignore").decode("ascii")
    words = "-".join(re.findall(r"[a-z0-9]+", plain.lower()))[:40].strip("-")
    return f"{words or 'image'}-{request.fingerprint(place)[:16]}"


@dataclass(frozen=True, kw_only=True)
class StoredImages:
    """The verified images of one request, as they stand in storage.

    Attributes:
        image_task_id: The API's id of the task that drew them.
        paths: Where they are.
        image_urls: Where they came from, without user, password and query, which may grant access.
        consumed_credits: What they cost, or None where the API did not say.
        made_by: The Airflow task that stored them; see `save_images`.
        stored_at: When that was, in ISO 8601, if it is known.
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
    place: int = 0,
    max_image_bytes: int = DEFAULT_MAX_IMAGE_BYTES,
    made_by: Mapping[str, Any] | None = None,
    verify: bool | str = True,
) -> list[str]:
    """Download, verify and store every image of a finished task.

    Args:
        snapshot: The task's snapshot with status ``SUCCESS``.
        request: What was asked for.
        folder: Where the images go; see `storage.open_output_path`.
        place: The request's place among its like; see `GenerateRequest.fingerprint`.
        max_image_bytes: A longer download is refused.
        made_by: What the sidecar tells of the Airflow task that stores them: plain JSON.
        verify: How the image host's TLS certificate is checked; see `ConnectionSettings`.

    Returns:
        The final path of each image, in the order of the snapshot's URLs.

    Raises:
        QwenImageImageError: If an image does not come, or is not what was asked for. Nothing of it
            stands under a final name then.
    """
    with ImageClient(verify) as client:
        paths = []
        for number, url in enumerate(snapshot.image_urls, start=1):
            content, facts = fetch(client, url, request, max_image_bytes)
            paths.append(
                store_image(content, facts, snapshot, request, folder, number=number, place=place, made_by=made_by)
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
    place: int = 0,
    made_by: Mapping[str, Any] | None = None,
) -> str:
    """Store one image of a finished task, and its sidecar.

    Args:
        content: The bytes of the file.
        facts: What was verified of them.
        snapshot: The task's snapshot.
        request: What was asked for.
        folder: Where it goes; see `storage.open_output_path`.
        number: Its place among the snapshot's URLs, counted from 1.
        place: The request's place among its like; see `GenerateRequest.fingerprint`.
        made_by: What the sidecar tells of the Airflow task that stores it: plain JSON.

    Returns:
        Its final path.

    Raises:
        QwenImageImageError: If what stands there is not what was stored.
    """
    image, sidecar = _names(request, folder, place, number)
    description = {
        "image": image.name,
        "image_number": number,
        "image_count": len(snapshot.image_urls),
        "request": request.description(),
        "fingerprint": request.fingerprint(place),
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


def find_images(request: GenerateRequest, folder: ObjectStoragePath, *, place: int = 0) -> StoredImages | None:
    """Return what `save_images` stored for a request, if it stands there whole and unchanged.

    Args:
        request: What is asked for.
        folder: Where the images are.
        place: The request's place among its like; see `GenerateRequest.fingerprint`.

    Returns:
        The images, or None if there are none, or one of them is not the file that was verified.

    Raises:
        OSError: If storage cannot be read, or something else than a file has the name of the image or its sidecar.
    """
    image, sidecar = _names(request, folder, place, 1)
    # Before anything is paid that could not be stored.
    check_replaceable(image)
    first = read_json(sidecar)
    if first is None:
        return None
    count = first.get("image_count", 1)
    paths: list[str] = []
    urls: list[str] = []
    while len(paths) < (count if isinstance(count, int) else 1) or not paths:
        image, sidecar = _names(request, folder, place, len(paths) + 1)
        description = read_json(sidecar) if paths else first
        if not _describes(description, image, first, request.fingerprint(place)):
            log.warning("%s is missing, or not the file that its sidecar describes: it counts as not stored.", image)
            return None
        paths.append(str(image))
        urls.append(displayed_url(description["image_url"]))
    return StoredImages(
        image_task_id=first["task_id"],
        paths=tuple(paths),
        image_urls=tuple(urls),
        consumed_credits=_known(first.get("consumed_credits"), _is_number),
        made_by=_known(first.get("made_by"), _is_object) or {},
        stored_at=_known(first.get("stored_at"), _is_line),
    )


def _describes(
    description: dict[str, Any] | None, image: ObjectStoragePath, first: Mapping[str, Any], fingerprint: str
) -> TypeGuard[dict[str, Any]]:
    """Whether a sidecar, which anybody may have edited, is of this request and its image stands beside it."""
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
    """Return how many bytes an image has by its sidecar: no more of it is read."""
    size = description.get("size_bytes")
    return size if isinstance(size, int) and 0 <= size <= MOST_BYTES else MOST_BYTES


def _known(value: Any, is_what_it_should_be: Callable[[Any], bool]) -> Any:
    """Return what a sidecar tells, or None if it is nothing that could be pushed as an XCom or added up."""
    return value if is_what_it_should_be(value) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= _MOST_CREDITS


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _is_line(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable() and len(value) <= _LONGEST_LINE


def _names(
    request: GenerateRequest, folder: ObjectStoragePath, place: int, number: int
) -> tuple[ObjectStoragePath, ObjectStoragePath]:
    """Return the final names of an image and its sidecar; `number` counts the images of one task from 1."""
    stem = file_stem(request, place)
    name = stem if number == 1 else f"{stem}-{number}"
    return folder / f"{name}{_SUFFIXES[request.output_format]}", folder / f"{name}.json"


def _put_pair(
    content: bytes, image: ObjectStoragePath, description: Mapping[str, Any], sidecar: ObjectStoragePath, writer: str
) -> None:
    """Put an image and its sidecar into storage, and read them back.

    Another task may put its own image under the same names meanwhile. Whoever writes last also reads
    last, so no image is left beside the sidecar of another one.
    """
    for _ in range(_PUT_TRIES):
        began = time.monotonic()
        put_bytes(content, image, writer=writer)
        put_json(description, sidecar, writer=writer, indent=2)
        stands = read_json(sidecar)
        if stands is not None and stands.get("sha256") == sha256_of(image, len(content)):
            return
        # Out of step with the other writer: by up to several times what a write takes here.
        longest = _PUT_PAUSE_SECONDS + 4 * (time.monotonic() - began)
        time.sleep(random.uniform(0, longest))  # noqa: S311  no secret
    raise QwenImageImageError(
        f"{image} was stored {_PUT_TRIES} times, and what was read back is not what its sidecar describes. Check that "
        "the storage is sound, and that nothing else writes to these names."
    )
