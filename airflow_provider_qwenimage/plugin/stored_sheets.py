"""Reads the contact sheets of batches: only files that the batch itself has stored next to its manifest."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from airflow_provider_qwenimage.plugin.storage_access import (
    RefusedError,
    open_recorded,
    read_file,
    refusing_errors,
    version_of,
)
from airflow_provider_qwenimage.plugin.stored_images import media_type_of
from airflow_provider_qwenimage.rules.contact_sheets import COMMENT_BYTES, SheetComment, read_comment

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import ObjectStoragePath

# Several times the size of a page.
MOST_BYTES = 32 * 1024 * 1024
MEDIA_TYPE = "image/jpeg"


@dataclass(frozen=True)
class StoredSheet:
    """A page of a contact sheet.

    Attributes:
        path: Its path or URL.
        writer: The task that must have made it; see `made_by.writer_of`.
    """

    path: str
    writer: str

    def comment(self) -> SheetComment:
        """Return what the file records about itself.

        Raises:
            RefusedError: If it cannot be read, or is not the contact sheet of this task.
        """
        return self._checked(self._read(COMMENT_BYTES))

    def version(self) -> str:
        """Return a value that changes whenever the file does, as 64 hexadecimal digits."""
        file = open_recorded(self.path)
        with refusing_errors(file, self.path):
            return hashlib.sha256(repr(version_of(file)).encode()).hexdigest()

    def content(self) -> bytes:
        """Return the file, complete.

        Raises:
            RefusedError: As for `comment`, or if it is too large, or not a JPEG.
        """
        content = self._read(MOST_BYTES)
        if content is not None and len(content) > MOST_BYTES:
            raise RefusedError(
                f"This contact sheet is larger than {MOST_BYTES // 2**20} MiB, the limit of the gallery."
            )
        # Again, since another batch may just have replaced it.
        self._checked(content)
        if media_type_of(content or b"") != MEDIA_TYPE:
            raise RefusedError("This file is not a JPEG.")
        return content or b""

    def _read(self, most: int) -> bytes | None:
        file: ObjectStoragePath = open_recorded(self.path)
        with refusing_errors(file, self.path):
            return read_file(file, most)

    def _checked(self, content: bytes | None) -> SheetComment:
        if content is None:
            raise RefusedError("This contact sheet no longer exists in the storage.")
        comment = read_comment(content[:COMMENT_BYTES])
        if comment is None:
            raise RefusedError("This file is not a contact sheet.")
        if comment.writer != self.writer:
            raise RefusedError("A later batch replaced the contact sheet of this one.")
        return comment
