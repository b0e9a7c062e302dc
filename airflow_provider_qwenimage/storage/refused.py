"""Keeps what was paid and is not what was asked for: an image of another format or size, beside the stored images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from airflow_provider_qwenimage.exceptions import QwenImageImageError
from airflow_provider_qwenimage.rules.made_by import writer_of
from airflow_provider_qwenimage.storage.files import create_bytes, create_json, read_json
from airflow_provider_qwenimage.storage.sidecars import description_of_image, names_of

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import ObjectStoragePath

    from airflow_provider_qwenimage.contract import TaskSnapshot
    from airflow_provider_qwenimage.rules.image_identity import ImageIdentity
    from airflow_provider_qwenimage.rules.verification import OtherImage

_MOST_FILES = 100


def keep_refused(
    content: bytes,
    other: OtherImage,
    snapshot: TaskSnapshot,
    identity: ImageIdentity,
    folder: ObjectStoragePath,
    *,
    number: int,
    made_by: Mapping[str, Any],
) -> QwenImageImageError:
    """Keep an image that was not requested as ``….refused.<ext>``, with a sidecar that says why.

    The same bytes are kept once; others get the names ``….refused-2`` and so on. `find_images` never takes such a file
    for a stored image, and no name that a user may choose is among these.

    Args:
        content: The bytes of the file.
        other: What was found instead of the requested image.
        snapshot: The snapshot of the image task.
        identity: The request, and the name under which its image would have been stored.
        folder: The folder of the images.
        number: The number of the image's URL in the snapshot, counted from 1.
        made_by: The Airflow task that asked for the image, for the sidecar: plain JSON.

    Returns:
        The error to raise, which names the file.

    Raises:
        OSError: If it cannot be stored. Another try may download it again, which costs nothing.
    """
    facts, reason = other.facts, other.difference
    width, height = identity.request.pixel_size
    description = description_of_image(facts, snapshot, identity, number=number, made_by=made_by) | {
        "refused": reason,
        "requested": {"width": width, "height": height, "output_format": identity.request.output_format},
    }
    stem = identity.stem if number == 1 else f"{identity.stem}-{number}"
    writer = writer_of(made_by)
    for copy in range(1, _MOST_FILES + 1):
        end = "refused" if copy == 1 else f"refused-{copy}"
        image, sidecar = names_of(f"{stem}.{end}", facts.output_format, folder, 1)
        there = read_json(sidecar)
        if there is not None and there.get("sha256") != facts.sha256:
            continue
        if create_bytes(content, image, writer=writer):
            create_json({"image": image.name} | description, sidecar, writer=writer, indent=2)
            return QwenImageImageError(
                f"{reason} It is kept as {image}; {sidecar.name} beside it says what was requested.",
                permanent=True,
            )
    return QwenImageImageError(
        f"{reason} It is not kept: {folder} has {_MOST_FILES} such images of this request already. Move them away.",
        permanent=True,
    )
