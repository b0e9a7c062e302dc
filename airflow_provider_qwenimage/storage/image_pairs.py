"""Stores an image together with its sidecar, without replacing what belongs to somebody else."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow_provider_qwenimage.exceptions import QwenImageImageError
from airflow_provider_qwenimage.storage.files import (
    create_bytes,
    create_json,
    creates_exclusively,
    put_bytes,
    put_json,
    read_beginning,
    read_json,
    sha256_of,
)
from airflow_provider_qwenimage.storage.sidecars import SUFFIXES, is_usable, size_in

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import ObjectStoragePath

_PUT_TRIES = 5
_PUT_PAUSE_SECONDS = 2.0


def problem_with(
    description: Mapping[str, Any] | None, image: ObjectStoragePath, first: Mapping[str, Any] | None, fingerprint: str
) -> str | None:
    """Return why a file, if it exists, is not the image of a request that its sidecar describes; None if it is.

    Args:
        description: The sidecar of the image.
        image: The file. It is read only if the sidecar is about the request.
        first: The sidecar of the first image of the same image task.
        fingerprint: The fingerprint of the request.

    Returns:
        The end of a sentence about the file.
    """
    if description is None:
        return "has no sidecar"
    if not is_usable(description):
        return "has a sidecar that cannot be used"
    if description["fingerprint"] != fingerprint:
        return "is the image of another request"
    if description["task_id"] != (first or {}).get("task_id"):
        return "is the image of another image task"
    if description["sha256"] != sha256_of(image, size_in(description)):
        return "is not the image that its sidecar describes"
    return None


def exists(file: ObjectStoragePath) -> bool:
    """Whether a file is stored."""
    return read_beginning(file, 1) is not None


@dataclass(frozen=True)
class ImagePair:
    """An image and its sidecar, to be stored.

    Another task may store its own image under the same names at the same time. The last writer also reads last, so no
    image is left next to the sidecar of another one.

    Args:
        content: The bytes of the image.
        image: Its name.
        description: The content of its sidecar.
        sidecar: The name of its sidecar.
        writer: The Airflow task that writes; see `writer_of`.
        downloaded: The bytes as they came, before anything was written beside the pixels.
    """

    content: bytes
    image: ObjectStoragePath
    description: Mapping[str, Any]
    sidecar: ObjectStoragePath
    writer: str
    downloaded: bytes

    def put(self, *, replace: bool) -> bool:
        """Store both and read them back.

        Args:
            replace: Whether to replace any file of these names. Otherwise only a whole image of the same request is.

        Returns:
            Whether they are stored. False means that a file has the name that must not be replaced.

        Raises:
            QwenImageImageError: If reading them back does not return what was stored.
        """
        for _ in range(_PUT_TRIES):
            began = time.monotonic()
            if replace:
                self._replace()
            elif not self._create():
                return False
            # The names are this writer's from now on.
            replace = True
            read_back = read_json(self.sidecar)
            if read_back is not None and read_back.get("sha256") == sha256_of(self.image, len(self.content)):
                return True
            # Get out of step with the other writer, by up to several times the duration of a write.
            longest = _PUT_PAUSE_SECONDS + 4 * (time.monotonic() - began)
            time.sleep(random.uniform(0, longest))  # noqa: S311  no secret
        raise QwenImageImageError(
            f"{self.image} was stored {_PUT_TRIES} times, and the file that was read back is not the one its sidecar "
            "describes. Check that the storage works, and that nothing else writes to these names."
        )

    def _replace(self) -> None:
        put_bytes(self.content, self.image, writer=self.writer)
        put_json(self.description, self.sidecar, writer=self.writer, indent=2)

    def _create(self) -> bool:
        if self._create_image():
            if create_json(self.description, self.sidecar, writer=self.writer, indent=2):
                return True
            if self._is_of_another_request():
                return False
            put_json(self.description, self.sidecar, writer=self.writer, indent=2)
            return True
        there = read_json(self.sidecar)
        if problem_with(there, self.image, there, self.description["fingerprint"]) is not None:
            return False
        # Another try or task has stored an image of the same request.
        self._replace()
        return True

    def _is_of_another_request(self) -> bool:
        """Whether the sidecar is that of an image in another format, which is stored."""
        there = (read_json(self.sidecar) or {}).get("image")
        others = {f"{self.image.stem}{suffix}" for suffix in SUFFIXES.values()} - {self.image.name}
        return isinstance(there, str) and there in others and exists(self.image.parent / there)

    def _create_image(self) -> bool:
        """Store the image unless another file has its name; an equal one counts as stored.

        One as it came counts, too: a try that stored it, perhaps of an earlier version, was killed before its sidecar.
        """
        is_exclusive = creates_exclusively(self.image)
        if is_exclusive and create_bytes(self.content, self.image, writer=self.writer):
            return True
        found = read_beginning(self.image, max(len(self.content), len(self.downloaded)) + 1)
        if found == self.downloaded or (found is None and not is_exclusive):
            put_bytes(self.content, self.image, writer=self.writer)
            return True
        return found == self.content
