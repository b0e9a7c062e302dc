"""Opens files that a task has recorded, from the API server, which may reach more than any user of the gallery."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import ObjectStoragePath

log = logging.getLogger(__name__)

_URL = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
# Schemes of storages that hold images; with others the API server could be sent to ask anybody anything.
_NOT_STORAGE = frozenset({"http", "https", "ftp", "data", "github", "git", "jupyter", "cached", "simplecache", "zip"})


class RefusedError(Exception):
    """The gallery does not show a file; the message says why, to somebody who may read the DAG."""


def open_recorded(path: str) -> ObjectStoragePath:
    """Return a file of the users' storage by the path that a task has recorded. Looks connections up.

    Args:
        path: A plain absolute path, or a URL that Airflow's object storage knows.

    Raises:
        RefusedError: If it is no such path, or the API server cannot open that storage.
    """
    from airflow.providers.common.compat.sdk import ObjectStoragePath

    scheme = _URL.match(path)
    if scheme is None and not path.startswith("/"):
        raise RefusedError("The recorded path is neither absolute nor a URL.")
    if scheme is not None and scheme[1].lower() in _NOT_STORAGE:
        raise RefusedError(f"{scheme[1]}:// is not a storage for images.")
    # `..` is never recorded by a task, and could lead a store's path out of its folder.
    if any(part == ".." for part in re.split(r"[/\\]", path)) or "::" in path:
        raise RefusedError("The recorded path is not one that a task of this package records.")
    try:
        file = ObjectStoragePath(path)
        _ = file.fs
    except Exception as error:  # every storage has its own
        log.warning("Cannot open %s for the gallery: %s: %s", path, type(error).__name__, error)
        raise RefusedError(
            f"The API server cannot open this storage ({type(error).__name__}). It needs the storage's provider and "
            "connection, as the workers do."
        ) from error
    return file
