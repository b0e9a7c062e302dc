"""Recognizes the contact sheets that batches store: by a comment in the JPEG file, near its beginning. No I/O."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass

from airflow_provider_qwenimage.rules.jpeg_file import next_segment

# The images of a page.
ROWS_OF_A_PAGE = 100
# So much of a file has the comment.
COMMENT_BYTES = 70_000
_KIND = "contact sheet of airflow-provider-qwenimage"
# A JPEG comment has at most 65,533 bytes.
_MOST_DAG_CHARACTERS = 8_000
_APP_SEGMENTS = range(0xE0, 0xF0)
_COMMENT = 0xFE
_START = b"\xff\xd8"


@dataclass(frozen=True)
class SheetComment:
    """What a contact sheet records about itself.

    Attributes:
        writer: The Airflow task that made it; see `made_by.writer_of`.
        other_dags: The other DAGs that drew images of it, which the batch reused: who may not see theirs may not see
            the sheet. None if they are not known.
    """

    writer: str
    other_dags: frozenset[str] | None

    def to_bytes(self) -> bytes:
        """Return it as the comment of a JPEG file."""
        dags = None if self.other_dags is None else sorted(self.other_dags)
        if dags is not None and sum(map(len, dags)) > _MOST_DAG_CHARACTERS:
            dags = None
        return json.dumps({"kind": _KIND, "writer": self.writer, "other_dags": dags}).encode("ascii")


def read_comment(beginning: bytes) -> SheetComment | None:
    """Return what a contact sheet records about itself; None if a file is not one.

    Args:
        beginning: The first `COMMENT_BYTES` of the file.
    """
    try:
        found = json.loads(_comment_of(beginning))
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or found.get("kind") != _KIND or not isinstance(found.get("writer"), str):
        return None
    return SheetComment(found["writer"], _texts(found.get("other_dags")))


def _texts(value: object) -> frozenset[str] | None:
    if not isinstance(value, Collection) or not all(isinstance(text, str) and text for text in value):
        return None
    return None if isinstance(value, str | dict) else frozenset(value)


def _comment_of(beginning: bytes) -> bytes:
    """Return the first comment of a JPEG file, if only application data precede it.

    Raises:
        ValueError: If there is none.
    """
    at = len(_START)
    if not beginning.startswith(_START):
        raise ValueError("not a JPEG")
    while True:
        marker, start, end = next_segment(beginning, at)
        if marker == _COMMENT:
            return beginning[start + 4 : end]
        if marker not in _APP_SEGMENTS:
            raise ValueError("no comment before the image")
        at = end
