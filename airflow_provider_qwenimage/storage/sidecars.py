"""Names stored images and their sidecars, and checks what a sidecar contains, which anybody may have edited."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import pendulum

from airflow_provider_qwenimage._version import __version__
from airflow_provider_qwenimage.rules.origins import displayed_url
from airflow_provider_qwenimage.storage.files import MOST_BYTES

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import ObjectStoragePath

    from airflow_provider_qwenimage.contract import TaskSnapshot
    from airflow_provider_qwenimage.rules.image_identity import ImageIdentity
    from airflow_provider_qwenimage.rules.verification import ImageFacts

# By the format of an image.
SUFFIXES = {"jpeg": ".jpg", "png": ".png", "webp": ".webp"}
# Bounds for values read from a sidecar: more than the API reports, and safe for XComs and sums.
_MOST_CREDITS = 1e9
_LONGEST_LINE = 8192


def names_of(
    stem: str, output_format: str, folder: ObjectStoragePath, number: int
) -> tuple[ObjectStoragePath, ObjectStoragePath]:
    """Return the names of an image and its sidecar; `number` counts the images of one image task from 1."""
    name = stem if number == 1 else f"{stem}-{number}"
    return folder / f"{name}{SUFFIXES[output_format]}", folder / f"{name}.json"


def description_of_image(
    facts: ImageFacts, snapshot: TaskSnapshot, identity: ImageIdentity, *, number: int, made_by: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what every sidecar says about an image, as plain JSON."""
    return {
        "image_number": number,
        "image_count": len(snapshot.image_urls),
        "name": identity.name,
        "request": identity.request.description(),
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
        "made_by": dict(made_by),
        "package_version": __version__,
    }


def image_count(sidecar: Mapping[str, Any]) -> int:
    """Return how many images a sidecar's image task has drawn, at least 1; `is_usable` refuses one of another type."""
    count = sidecar.get("image_count", 1)
    return max(1, count) if isinstance(count, int) else 1


def is_usable(sidecar: Mapping[str, Any]) -> bool:
    """Whether a sidecar has the fields that a stored image is found by."""
    return (
        is_line(sidecar.get("fingerprint"))
        and is_line(sidecar.get("task_id"))
        and is_line(sidecar.get("image_url"))
        and isinstance(sidecar.get("image_count", 1), int)
        and isinstance(sidecar.get("sha256"), str)
    )


def size_in(sidecar: Mapping[str, Any]) -> int:
    """Return how many bytes an image has according to its sidecar: no more of it is read."""
    size = sidecar.get("size_bytes")
    return size if isinstance(size, int) and 0 <= size <= MOST_BYTES else MOST_BYTES


def if_valid(value: Any, is_valid: Callable[[Any], bool]) -> Any:
    """Return a value from a sidecar, or None if it could not be pushed as an XCom or added up."""
    return value if is_valid(value) else None


def is_number(value: Any) -> bool:
    """Whether a value can be a number of credits."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= _MOST_CREDITS


def is_object(value: Any) -> bool:
    """Whether a value is a JSON object."""
    return isinstance(value, dict)


def is_line(value: Any) -> bool:
    """Whether a value is a text that every database can store."""
    return isinstance(value, str) and value.isprintable() and len(value) <= _LONGEST_LINE
