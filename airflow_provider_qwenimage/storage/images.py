"""Stores finished images in the user's storage, whole and verified, and finds them there again.

An image gets its final name only if it decodes in the requested format and pixel size; its ``.json`` sidecar follows.
A file under that name that is not the image which its sidecar describes belongs to somebody else: it is never replaced
unless the user asks for it.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from airflow_provider_qwenimage.client.downloads import ImageClient, fetch
from airflow_provider_qwenimage.client.spans import span
from airflow_provider_qwenimage.contract import DEFAULT_MAX_IMAGE_BYTES, TaskSnapshot
from airflow_provider_qwenimage.exceptions import QwenImageImageError
from airflow_provider_qwenimage.rules.made_by import writer_of
from airflow_provider_qwenimage.rules.origins import displayed_url
from airflow_provider_qwenimage.rules.verification import OtherImage, examine_image
from airflow_provider_qwenimage.storage.files import check_replaceable, list_names, read_json
from airflow_provider_qwenimage.storage.image_pairs import ImagePair, exists, problem_with
from airflow_provider_qwenimage.storage.refused import keep_refused
from airflow_provider_qwenimage.storage.sidecars import (
    SUFFIXES,
    description_of_image,
    if_valid,
    image_count,
    is_line,
    is_number,
    is_object,
    names_of,
)

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import ObjectStoragePath

    from airflow_provider_qwenimage.rules.image_identity import ImageIdentity
    from airflow_provider_qwenimage.rules.verification import ImageFacts

log = logging.getLogger(__name__)

# For an image whose name is taken.
_ID_CHARACTERS = 16
_MOST_NAMES = 20


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
        sha256: The hash of the first file, if known.
    """

    image_task_id: str
    paths: tuple[str, ...]
    image_urls: tuple[str, ...]
    consumed_credits: float | None
    made_by: Mapping[str, Any]
    stored_at: str | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class StoredFile:
    """A stored image file.

    Attributes:
        path: Its path.
        sha256: Its digest in hexadecimal, if known.
    """

    path: str
    sha256: str | None


@dataclass(frozen=True)
class MarkedImage:
    """The bytes of an image with what was written beside its pixels.

    Attributes:
        content: The bytes of the file.
        description: The fields of the sidecar about it.
    """

    content: bytes
    description: Mapping[str, Any]


# Takes the bytes of a verified image, its format, the snapshot of its image task, its request and the Airflow task.
Mark: TypeAlias = Callable[[bytes, str, TaskSnapshot, "ImageIdentity", Mapping[str, Any]], MarkedImage]


@dataclass(frozen=True)
class Obstacle:
    """A file that has the name of an image and is not that image, so that it must not be replaced without consent.

    Attributes:
        path: The file.
        reason: What is wrong with it, as the end of a sentence about it.
    """

    path: str
    reason: str

    @property
    def message(self) -> str:
        """What it is, that nothing was submitted, and what to do."""
        return (
            f"{self.path} exists and {self.reason}, so it is not replaced. Nothing was submitted. Move it away, choose "
            "another name or folder for the image, or set overwrite=True to replace it."
        )


def save_images(
    snapshot: TaskSnapshot,
    identity: ImageIdentity,
    folder: ObjectStoragePath,
    *,
    max_image_bytes: int = DEFAULT_MAX_IMAGE_BYTES,
    made_by: Mapping[str, Any] | None = None,
    verify: bool | str = True,
    replace: bool = False,
    mark: Mark | None = None,
) -> list[StoredFile]:
    """Download, verify and store every image of a finished task.

    Args:
        snapshot: The task's snapshot with status ``SUCCESS``.
        identity: The request that the images must match, and the name under which they are stored.
        folder: The folder for the images; see `open_output_path`.
        max_image_bytes: A longer download is refused.
        made_by: The Airflow task that stores the images, for the sidecar: plain JSON.
        verify: How the image host's TLS certificate is checked; see `ConnectionSettings`.
        replace: Whether to replace a file of that name that is not an image of this request.
        mark: Writes something beside the pixels of each image; None to store the bytes as they came.

    Returns:
        The file of each image, in the order of the snapshot's URLs.

    Raises:
        QwenImageImageError: If an image cannot be downloaded, or is not what was requested. It then has no final name;
            see `keep_refused`.
    """
    with ImageClient(verify) as client:
        stored = [
            fetch(
                client,
                url,
                max_image_bytes,
                partial(
                    verify_and_store,
                    snapshot=snapshot,
                    identity=identity,
                    folder=folder,
                    number=number,
                    made_by=made_by,
                    replace=replace,
                    mark=mark,
                ),
                image_task_id=snapshot.task_id,
            )
            for number, url in enumerate(snapshot.image_urls, start=1)
        ]
    files: list[StoredFile] = []
    for end in stored:
        if isinstance(end, QwenImageImageError):
            raise end
        files.append(end)
    return files


def verify_and_store(
    content: bytes,
    snapshot: TaskSnapshot,
    identity: ImageIdentity,
    folder: ObjectStoragePath,
    *,
    number: int,
    made_by: Mapping[str, Any] | None = None,
    replace: bool = False,
    mark: Mark | None = None,
) -> StoredFile | QwenImageImageError:
    """Verify a download and store it; an image that was not requested is kept beside the others. Takes memory and time.

    The arguments are those of `store_image`.

    Returns:
        The file; or the error that another download would not correct, to be raised.

    Raises:
        QwenImageImageError: If the bytes are not a whole image: another download may bring it.
    """
    facts: dict[str, Any] = {"task_id": snapshot.task_id, "bytes": len(content)}
    with span("verify", **facts) as verifying:
        found = examine_image(content, identity.request)
        if isinstance(found, OtherImage):
            refused = keep_refused(content, found, snapshot, identity, folder, number=number, made_by=made_by or {})
            verifying.fail(refused)
            return refused
    try:
        with span("store", **facts):
            return store_image(
                content, found, snapshot, identity, folder, number=number, made_by=made_by, replace=replace, mark=mark
            )
    except QwenImageImageError as error:
        # Its frames hold the bytes of the file.
        return error.with_traceback(None)


def store_image(
    content: bytes,
    facts: ImageFacts,
    snapshot: TaskSnapshot,
    identity: ImageIdentity,
    folder: ObjectStoragePath,
    *,
    number: int,
    made_by: Mapping[str, Any] | None = None,
    replace: bool = False,
    mark: Mark | None = None,
) -> StoredFile:
    """Store one image of a finished task, and its sidecar.

    A file of that name is replaced if it is a whole image of the same request. Any other one stays as it is, and the
    image gets a name with the API's task id in it.

    Args:
        content: The bytes of the file.
        facts: The facts verified about them.
        snapshot: The task's snapshot.
        identity: The request that the image matches, and the name under which it is stored.
        folder: The folder for the image; see `open_output_path`.
        number: The number of its URL in the snapshot, counted from 1.
        made_by: The Airflow task that stores the image, for the sidecar: plain JSON.
        replace: Whether to replace a file of that name in any case.
        mark: Writes something beside the pixels; None to store the bytes as they came.

    Returns:
        The file.

    Raises:
        QwenImageImageError: If reading it back does not return what was stored.
    """
    description = description_of_image(facts, snapshot, identity, number=number, made_by=made_by or {})
    description["fingerprint"] = identity.fingerprint
    downloaded = content
    if mark is not None:
        marked = mark(content, facts.output_format, snapshot, identity, made_by or {})
        content = marked.content
        description |= marked.description
        description["downloaded_sha256"] = facts.sha256
        description |= {"size_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    taken: ObjectStoragePath | None = None
    for stem in _stems(identity, snapshot.task_id):
        image, sidecar = names_of(stem, identity.request.output_format, folder, number)
        named = {"image": image.name} | description
        pair = ImagePair(content, image, named, sidecar, writer_of(made_by or {}), downloaded)
        if pair.put(replace=replace):
            if taken is not None:
                log.warning(
                    "%s exists and is not an image of this request, so it was not replaced: image task %s is stored "
                    "as %s.",
                    taken,
                    snapshot.task_id,
                    image,
                )
            return StoredFile(str(image), description["sha256"])
        taken = taken or image
    raise FileExistsError(f"{taken} and {_MOST_NAMES} more names are taken by other files. Move them away.")


def _stems(identity: ImageIdentity, image_task_id: str) -> Iterator[str]:
    yield identity.stem
    short_id = re.sub("[^0-9A-Za-z]", "", image_task_id)[:_ID_CHARACTERS]
    for number in range(1, _MOST_NAMES + 1):
        yield "-".join([identity.stem, *([short_id] if short_id else []), *([str(number)] if number > 1 else [])])


def find_images(identity: ImageIdentity, folder: ObjectStoragePath) -> StoredImages | Obstacle | None:
    """Return the images that `save_images` stored for a request, if they are whole and unchanged.

    Args:
        identity: The request, and the name under which its image is stored.
        folder: The folder of the images.

    Returns:
        The images; None if there are none, or one of them does not exist; or a file that must not be replaced.

    Raises:
        OSError: If storage cannot be read, or something other than a file has the name of the image or its sidecar.
    """
    found = _find(identity, folder, identity.stem)
    if not isinstance(found, Obstacle):
        return found
    # The file was in the way already when the image was stored.
    other = re.compile(rf"({re.escape(identity.stem)}-[0-9A-Za-z]{{1,{_ID_CHARACTERS}}}(?:-\d+)?)\.json", re.ASCII)
    stems = (match[1] for name in list_names(folder, f"{identity.stem}-") if (match := other.fullmatch(name)))
    for stem, _ in zip(stems, range(_MOST_NAMES), strict=False):
        beside = _find(identity, folder, stem)
        if isinstance(beside, StoredImages):
            return beside
    return found


def _find(identity: ImageIdentity, folder: ObjectStoragePath, stem: str) -> StoredImages | Obstacle | None:
    image, sidecar = names_of(stem, identity.request.output_format, folder, 1)
    # Before anything is paid that could not be stored.
    check_replaceable(image)
    first = read_json(sidecar)
    if first is None and not exists(image):
        return None
    stored: list[tuple[str, str]] = []
    for number in range(1, image_count(first or {}) + 1):
        image, sidecar = names_of(stem, identity.request.output_format, folder, number)
        description = first if number == 1 else read_json(sidecar)
        problem = problem_with(description, image, first, identity.fingerprint)
        if problem is not None or description is None:
            obstacle = _obstacle(image, problem or "", identity, description)
            if obstacle is None and stem == identity.stem:
                log.warning("%s is missing, though it has a sidecar: it counts as not stored.", image)
            return obstacle
        stored.append((str(image), displayed_url(description["image_url"])))
    first = first or {}
    return StoredImages(
        image_task_id=first["task_id"],
        paths=tuple(path for path, _ in stored),
        image_urls=tuple(url for _, url in stored),
        consumed_credits=if_valid(first.get("consumed_credits"), is_number),
        made_by=if_valid(first.get("made_by"), is_object) or {},
        stored_at=if_valid(first.get("stored_at"), is_line),
        sha256=first["sha256"],
    )


def _obstacle(
    image: ObjectStoragePath, problem: str, identity: ImageIdentity, description: Mapping[str, Any] | None
) -> Obstacle | None:
    if exists(image):
        return Obstacle(str(image), problem)
    if identity.name is None or description is None or description.get("fingerprint") == identity.fingerprint:
        return None
    if "fingerprint" not in description:
        return Obstacle(str(image.parent / f"{image.stem}.json"), "is not the sidecar of an image")
    if description["fingerprint"]:
        # The image of another request may have another format; its sidecar has the same name.
        for other in (image.parent / f"{image.stem}{suffix}" for suffix in SUFFIXES.values()):
            if exists(other):
                return Obstacle(str(other), problem)
    return None
