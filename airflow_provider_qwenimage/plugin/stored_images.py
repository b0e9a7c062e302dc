"""Reads a stored image for somebody who may see it: only what its own sidecar vouches for, and only images."""

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
    refusing_what_fails,
)
from airflow_provider_qwenimage.rules.verification import open_image

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import ObjectStoragePath

    from airflow_provider_qwenimage.plugin.image_records import ImageRecord

# Twice what the operators accept by default; an image is read whole, because it is checked whole.
MOST_BYTES = 100 * 1024 * 1024
# A sidecar has some kilobytes.
_MOST_SIDECAR_BYTES = 1024 * 1024
DRAWN_ELSEWHERE = "This image was drawn in another DAG."
_SUFFIX = re.compile(r"\.(jpg|png|webp)", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
# What a sidecar tells.
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
    "created_at",
    "stored_at",
    "made_by",
    "package_version",
)


@dataclass(frozen=True)
class StoredImage:
    """A stored image.

    Attributes:
        name: Its file name.
        media_type: What it is.
        content: All of its bytes.
    """

    name: str
    media_type: str
    content: bytes


def read_sidecar(record: ImageRecord) -> Mapping[str, Any]:
    """Return the sidecar of an image, cut to what can be sent, if it is the sidecar of that image.

    Args:
        record: What a task has recorded.

    Raises:
        RefusedError: If it is not, or cannot be read.
    """
    image = _open(record)
    content = _read(image.parent / f"{image.stem}.json", _MOST_SIDECAR_BYTES)
    try:
        sidecar = json.loads(content) if content and len(content) <= _MOST_SIDECAR_BYTES else None
    except (ValueError, RecursionError):
        sidecar = None
    if not isinstance(sidecar, Mapping) or not sidecar:
        raise RefusedError("There is no sidecar beside this image any more, so nothing vouches for it.")
    if sidecar.get("image") != image.name or text(sidecar.get("task_id"), MOST_NAME) != record.image_task_id:
        raise RefusedError("Another image has taken the place of this one.")
    if not _SHA256.fullmatch(str(sidecar.get("sha256"))) or type(sidecar.get("size_bytes")) is not int:
        raise RefusedError("The sidecar beside this image does not describe it.")
    return {name: json_value(sidecar[name]) for name in _FIELDS if name in sidecar}


def drawn_in(record: ImageRecord, sidecar: Mapping[str, Any]) -> str | None:
    """Return the DAG that an image was drawn in, if that is another one, whose readers alone may see the image.

    Raises:
        RefusedError: If nobody may see it here: it was not drawn here, nor used again.
    """
    made_by = sidecar.get("made_by")
    dag_id = made_by.get("dag_id") if isinstance(made_by, Mapping) else None
    if dag_id == record.task.dag_id:
        return None
    if not record.reused or not isinstance(dag_id, str):
        raise RefusedError(DRAWN_ELSEWHERE)
    return dag_id


def read_image(record: ImageRecord, sidecar: Mapping[str, Any]) -> StoredImage:
    """Return a stored image, whole and unchanged.

    Args:
        record: What a task has recorded.
        sidecar: What `read_sidecar` returned for it.

    Raises:
        RefusedError: If it is gone, is not the file that was verified, or is no image.
    """
    image = _open(record)
    size = sidecar["size_bytes"]
    if not isinstance(size, int) or size > MOST_BYTES:
        raise RefusedError(f"This image has more than {MOST_BYTES // 2**20} MiB, which is too much to show.")
    # No more than its sidecar says: a longer file is another one.
    content = _read(image, max(size, 0))
    if content is None:
        raise RefusedError("This image is not in storage any more.")
    if len(content) != size or hashlib.sha256(content).hexdigest() != sidecar["sha256"]:
        raise RefusedError("This is not the file that was verified when it was stored.")
    return StoredImage(image.name, _media_type(content), content)


def _read(file: ObjectStoragePath, most: int) -> bytes | None:
    with refusing_what_fails(file, file):
        return read_file(file, most)


def _open(record: ImageRecord) -> ObjectStoragePath:
    if record.path is None:
        raise RefusedError("This image is not stored.")
    image = open_recorded(record.path)
    if not _SUFFIX.fullmatch(image.suffix):
        raise RefusedError("This is not the name of an image.")
    return image


def _media_type(content: bytes) -> str:
    try:
        kind, file = open_image(content)
    except Exception as error:  # broken files raise a dozen classes
        raise RefusedError("This file is no image.") from error
    check_pixels(file.size)
    return f"image/{kind}"
