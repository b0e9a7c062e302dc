"""Reads a stored image for somebody who may see it: only what its own sidecar vouches for, and only images."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow_provider_qwenimage.plugin.storage_access import RefusedError, open_recorded
from airflow_provider_qwenimage.storage import read_bytes, read_json

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import ObjectStoragePath

    from airflow_provider_qwenimage.plugin.records import ImageRecord

# Twice what the operators accept by default; an image is read whole, because it is checked whole.
MOST_BYTES = 100 * 1024 * 1024
_SUFFIX = re.compile(r"\.(jpg|png|webp)", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_MEDIA_TYPES = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp"}


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


def read_sidecar(record: ImageRecord, may_read_dag: Callable[[str], bool]) -> Mapping[str, Any]:
    """Return the sidecar of an image, if the image is one that the record's DAG may show.

    Args:
        record: What a task has recorded.
        may_read_dag: Whether the user may read another DAG, for an image that was drawn there and used again.

    Raises:
        RefusedError: If it is not.
    """
    image = _open(record)
    sidecar = read_json(image.parent / f"{image.stem}.json")
    if not sidecar:
        raise RefusedError("There is no sidecar beside this image any more, so nothing vouches for it.")
    made_by = sidecar.get("made_by")
    drawn_in = made_by.get("dag_id") if isinstance(made_by, Mapping) else None
    if sidecar.get("image") != image.name or sidecar.get("task_id") != record.image_task_id:
        raise RefusedError("Another image has taken the place of this one.")
    if drawn_in != record.task.dag_id and not (record.reused and isinstance(drawn_in, str) and may_read_dag(drawn_in)):
        raise RefusedError("This image was drawn in another DAG.")
    if not _SHA256.fullmatch(str(sidecar.get("sha256"))) or not isinstance(sidecar.get("size_bytes"), int):
        raise RefusedError("The sidecar beside this image does not describe it.")
    return sidecar


def read_image(record: ImageRecord, sidecar: Mapping[str, Any]) -> StoredImage:
    """Return a stored image, whole and unchanged.

    Args:
        record: What a task has recorded.
        sidecar: What `read_sidecar` returned for it.

    Raises:
        RefusedError: If it is gone, is not the file that was verified, or is no image.
    """
    image = _open(record)
    if sidecar["size_bytes"] > MOST_BYTES:
        raise RefusedError(f"This image has more than {MOST_BYTES // 2**20} MiB, which is too much to show.")
    content = read_bytes(image)
    if content is None:
        raise RefusedError("This image is not in storage any more.")
    if hashlib.sha256(content).hexdigest() != sidecar["sha256"]:
        raise RefusedError("This is not the file that was verified when it was stored.")
    return StoredImage(image.name, _media_type(content), content)


def _open(record: ImageRecord) -> ObjectStoragePath:
    if record.path is None:
        raise RefusedError("This image is not stored.")
    image = open_recorded(record.path)
    if not _SUFFIX.fullmatch(image.suffix):
        raise RefusedError("This is not the name of an image.")
    return image


def _media_type(content: bytes) -> str:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content), formats=list(_MEDIA_TYPES)) as opened:
            return _MEDIA_TYPES[str(opened.format)]
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise RefusedError("This file is no image.") from error
