"""Lists the files of a folder, with as little of the rest of the storage as its library allows."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from airflow_provider_qwenimage.storage.libraries import LOCAL, library_of

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import ObjectStoragePath


def names_in(folder: ObjectStoragePath, prefix: str) -> Iterator[str]:
    """Yield the names of a folder's files, at least of those that begin with a prefix; with an empty one, all names.

    Raises:
        FileNotFoundError: If the folder does not exist.
        Exception: Any error of the storage's library.
    """
    if folder.protocol in LOCAL:
        with os.scandir(folder.path) as entries:
            yield from (entry.name for entry in entries if not entry.is_dir())
        return
    filesystem = folder.fs
    # Files that other processes have stored since count as well.
    filesystem.invalidate_cache(folder.path)
    library = library_of(filesystem)
    # The folder's own path may end with a slash or not.
    start = (folder / prefix).path if prefix else f"{folder.path.rstrip('/')}/"
    if library == "s3fs":
        yield from (key.rpartition("/")[2] for key in _keys_of_s3(filesystem, start))
    elif library == "adlfs":
        depth = start.count("/")
        found = filesystem.find(folder.path, prefix=prefix)
        yield from (path.rpartition("/")[2] for path in found if path.count("/") == depth)
    else:
        arguments = {"prefix": prefix} if library == "gcsfs" and prefix else {}
        for entry in filesystem.ls(folder.path, detail=True, **arguments):
            if entry["type"] != "directory":
                yield entry["name"].rpartition("/")[2]


def _keys_of_s3(filesystem: Any, start: str) -> Iterator[str]:
    bucket, prefix, _ = filesystem.split_path(start)
    more: dict[str, str] = {}
    while True:
        # A page has up to 1000 keys.
        page = filesystem.call_s3(
            "list_objects_v2", filesystem.kwargs, Bucket=bucket, Prefix=prefix, Delimiter="/", **more
        )
        yield from (found["Key"] for found in page.get("Contents", []))
        if not page.get("NextContinuationToken"):
            return
        more = {"ContinuationToken": page["NextContinuationToken"]}
