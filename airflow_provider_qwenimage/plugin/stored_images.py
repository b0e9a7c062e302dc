"""Reads stored images: only files that match their sidecar, and only images."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow_provider_qwenimage.plugin.bounds import MOST_NAME, json_value, text
from airflow_provider_qwenimage.plugin.storage_access import (
    RefusedError,
    check_pixels,
    open_recorded,
    read_file,
    refusing_errors,
)
from airflow_provider_qwenimage.rules.choices import VERDICTS
from airflow_provider_qwenimage.rules.verification import open_image

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import ObjectStoragePath

    from airflow_provider_qwenimage.plugin.image_records import ImageRecord

# Twice what the operators accept by default. An image is read completely, because its SHA-256 is checked.
MOST_BYTES = 100 * 1024 * 1024
# A sidecar usually has a few kilobytes.
_MOST_SIDECAR_BYTES = 1024 * 1024
DRAWN_ELSEWHERE = "This image was drawn in another DAG."
_SUFFIX = re.compile(r"\.(jpg|png|webp)", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
# The fields of a sidecar that the gallery sends.
_FIELDS = (
    "image",
    "image_number",
    "image_count",
    "request",
    "fingerprint",
    "task_id",
    "status",
    "consumed_credits",
    "image_url",
    "width",
    "height",
    "output_format",
    "size_bytes",
    "sha256",
    "provenance",
    "not_marked_because",
    "created_at",
    "stored_at",
    "made_by",
    "package_version",
    VERDICTS,
)


@dataclass(frozen=True)
class StoredImage:
    """A stored image with its file name."""

    name: str
    media_type: str
    content: bytes


def read_sidecar(record: ImageRecord) -> Mapping[str, Any]:
    """Return the sidecar of an image, limited in size.

    Raises:
        RefusedError: If it cannot be read, or belongs to another image.
    """
    image = _open(record)
    content = _read(image.parent / f"{image.stem}.json", _MOST_SIDECAR_BYTES)
    try:
        sidecar = json.loads(content) if content and len(content) <= _MOST_SIDECAR_BYTES else None
    except (ValueError, RecursionError):
        sidecar = None
    if not isinstance(sidecar, Mapping) or not sidecar:
        raise RefusedError("This image has no readable sidecar, so the gallery cannot verify it.")
    if sidecar.get("image") != image.name or text(sidecar.get("task_id"), MOST_NAME) != record.image_task_id:
        raise RefusedError("This image was replaced by another one.")
    if not _SHA256.fullmatch(str(sidecar.get("sha256"))) or type(sidecar.get("size_bytes")) is not int:
        raise RefusedError("The sidecar of this image has no valid SHA-256 or size.")
    return {name: json_value(sidecar[name]) for name in _FIELDS if name in sidecar}


def drawn_in(record: ImageRecord, sidecar: Mapping[str, Any]) -> str | None:
    """Return the DAG that drew a reused image, if it is another one: only users who may read that DAG may see it.

    Raises:
        RefusedError: If the image was drawn in another DAG and not reused in this one.
    """
    made_by = sidecar.get("made_by")
    dag_id = made_by.get("dag_id") if isinstance(made_by, Mapping) else None
    if dag_id == record.task.dag_id:
        return None
    if not record.reused or not isinstance(dag_id, str):
        raise RefusedError(DRAWN_ELSEWHERE)
    return dag_id


def read_image(record: ImageRecord, sidecar: Mapping[str, Any]) -> StoredImage:
    """Return a stored image, complete and unchanged.

    Args:
        sidecar: The result of `read_sidecar` for the image.

    Raises:
        RefusedError: If the file does not exist, has changed since it was verified, or is not an image.
    """
    image = _open(record)
    size = sidecar["size_bytes"]
    if not isinstance(size, int) or size > MOST_BYTES:
        raise RefusedError(f"This image is larger than {MOST_BYTES // 2**20} MiB, the limit of the gallery.")
    # No more than the sidecar states: a longer file is not the image.
    content = _read(image, max(size, 0))
    if content is None:
        raise RefusedError("This image no longer exists in the storage.")
    if len(content) != size or hashlib.sha256(content).hexdigest() != sidecar["sha256"]:
        raise RefusedError("This file has changed since the image was verified and stored.")
    return StoredImage(image.name, media_type_of(content), content)


def _read(file: ObjectStoragePath, most: int) -> bytes | None:
    with refusing_errors(file, file):
        return read_file(file, most)


def _open(record: ImageRecord) -> ObjectStoragePath:
    if record.path is None:
        raise RefusedError("This image is not stored.")
    image = open_recorded(record.path)
    if not _SUFFIX.fullmatch(image.suffix):
        raise RefusedError("The recorded path is not that of an image (.jpg, .png or .webp).")
    return image


def media_type_of(content: bytes) -> str:
    """Return the media type of an image.

    Raises:
        RefusedError: If it is not an image, or has too many pixels.
    """
    try:
        kind, file = open_image(content)
    except Exception as error:  # broken files raise many classes
        raise RefusedError("This file is not an image.") from error
    check_pixels(file.size)
    return f"image/{kind}"
