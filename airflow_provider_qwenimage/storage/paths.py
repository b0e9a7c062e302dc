"""Opens the user's storage: any path or URL, and the folder for images, which is checked before anything is paid."""

from __future__ import annotations

import errno
import os
import re
import uuid
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from airflow_provider_qwenimage.rules.arguments import check_output_path
from airflow_provider_qwenimage.storage.files import put_json, remove_file
from airflow_provider_qwenimage.storage.libraries import (
    LIST,
    READ,
    WRITE,
    bucket_of,
    explaining,
    is_object_store,
    library_of,
    reason_of,
    what_to_check,
)
from airflow_provider_qwenimage.storage.local_files import local_file

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import ObjectStoragePath

_URL = re.compile(r"[a-z][a-z0-9+.-]+:/", re.IGNORECASE)
_LOCAL_URL = re.compile(r"(?:file|local):(?://(?=/)|(?=/(?!/)))", re.IGNORECASE)
# With two slashes only. An @ would end the id of a connection.
_RELATIVE_URL = re.compile(r"(?:file|local)://(?=[^/@]+(?:/|\Z))", re.IGNORECASE)


def path_of(location: str) -> ObjectStoragePath:
    """Return a path of Airflow's object storage. If its URL names a connection, that is looked up.

    Args:
        location: A URL or a local path, which may begin with ``~`` or be relative to the working directory.

    Raises:
        ValueError: If it is not the URL of a storage, or begins with a home folder that does not exist.
        ImportError: If the library for that storage is not installed.
        OSError: If its connection cannot be used.
    """
    from airflow.providers.common.compat.sdk import ObjectStoragePath

    location = absolute(location)
    path = ObjectStoragePath(location)
    try:
        _ = path.fs
    except (ValueError, ImportError):
        raise
    except Exception as error:  # the libraries' own, if a connection has to ask for credentials first
        raise OSError(f"{location} cannot be opened ({reason_of(error)}). {what_to_check(location)}") from error
    return path


def absolute(location: str) -> str:
    """Return a URL, or a local path as an absolute one, without looking anything up.

    Args:
        location: As `path_of` takes it.

    Raises:
        ValueError: If it begins with a home folder that does not exist.
    """
    location = location.strip()
    relative = _RELATIVE_URL.match(location)
    if relative is not None:
        return f"{relative[0]}{_absolute(location[relative.end() :])}"
    local = _LOCAL_URL.match(location)
    if local is not None:
        # Airflow takes a path after four slashes for one that is relative to the working directory.
        path = f"/{location[local.end() :].lstrip('/')}"
        return f"{local[0]}{_absolute(path) if '/../' in f'{path}/' else path}"
    return str(_absolute(location)) if _URL.match(location) is None else location


def _absolute(path: str) -> Path:
    """Return a local path as an absolute one: some versions of Airflow resolve a relative path from the root."""
    try:
        found = Path(path).expanduser().absolute()
    except RuntimeError as error:
        raise ValueError(f"{path.partition('/')[0]} is not a home folder on this machine") from error
    # The path recorded for the gallery must keep its meaning if a link changes later.
    return found.resolve() if ".." in found.parts else found


def open_output_path(output_path: str, *, create: bool = True) -> ObjectStoragePath:
    """Return the folder for images, created if it does not exist. A bucket or container is never created.

    Call it before a submission: storage that cannot be reached should fail before anything is paid. It looks up
    connections, so call it while a task runs, never while a DAG is parsed.

    Args:
        output_path: A folder, as a path or a URL that Airflow's object storage knows (``file:///data``,
            ``s3://aws_default@bucket/images``, …).
        create: Whether to create it. Otherwise it may not exist.

    Raises:
        ValueError: If it is not the path of a folder, no file system is installed for its scheme, or its bucket does
            not exist.
        OSError: If the storage cannot be reached, or does not allow listing.
    """
    check_output_path(output_path)
    output_path = output_path.strip()
    try:
        folder = path_of(output_path)
    except (ValueError, ImportError) as error:
        what_to_do = (
            "Install the provider of that storage (for s3:// apache-airflow-providers-amazon[s3fs]), or use a file:// "
            "path."
            if _URL.match(output_path)
            else "Write the whole path of the folder."
        )
        raise ValueError(f"output_path is {output_path!r}, which Airflow cannot open: {error}. {what_to_do}") from error
    if not is_object_store(folder):
        if create:
            _make(folder)
        else:
            _check_folder(folder)
    elif not bucket_of(folder):
        raise ValueError(f"output_path is {output_path!r}, which names no bucket; write it as scheme://bucket/folder.")
    elif ".." in folder.path.split("/"):
        raise ValueError(
            f"output_path is {output_path!r}; object stores do not resolve `..`. Write the folder's path without it."
        )
    else:
        _has_objects(folder)
    return folder


def _make(folder: ObjectStoragePath) -> None:
    try:
        with explaining(WRITE, folder):
            folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise _not_a_folder(folder) from error
    except FileNotFoundError:
        # The libraries of Airflow 2 find nothing behind a dangling link above the folder.
        _check_folder(folder)
        raise


def _check_folder(folder: ObjectStoragePath) -> None:
    """Check that `_make` would find no file in its way."""
    local = local_file(folder)
    with explaining(READ, folder):
        if local is None:
            is_in_the_way = folder.exists() and not folder.is_dir()
        else:
            # A dangling link does not exist either, and no folder can be created in its place.
            lowest = next(path for path in (Path(local), *Path(local).parents) if os.path.lexists(path))
            is_in_the_way = not lowest.is_dir()
        if is_in_the_way:
            raise _not_a_folder(folder)


def _not_a_folder(folder: ObjectStoragePath) -> NotADirectoryError:
    return NotADirectoryError(
        errno.ENOTDIR,
        "The folder cannot be created: a file or a dangling link has its name, or the name of a folder above it; "
        "move that away, or choose another folder",
        str(folder),
    )


def check_storing(folder: ObjectStoragePath, writer: str = "") -> None:
    """Check that files can be stored in a folder, by storing a small one and removing it again.

    Call it before a submission: an image that cannot be stored should not be paid.

    Args:
        folder: The folder.
        writer: The Airflow task that writes; see `writer_of`.

    Raises:
        ValueError: If its bucket or container does not exist.
        OSError: If nothing can be written there.
    """
    # As long as the longest name of a stored file, so that a path that is too long for one fails here.
    file = folder / f".check-that-images-can-be-stored-in-this-folder-{writer or uuid.uuid4().hex}.json"
    try:
        put_json({"about": "Written to check that images can be stored here. It may be deleted."}, file, writer=writer)
    except FileNotFoundError as error:
        if not is_object_store(folder):
            raise
        raise ValueError(f"output_path: {error}") from error
    # Storing images does not need the right to delete.
    with suppress(OSError):
        remove_file(file)


def is_empty(folder: ObjectStoragePath) -> bool:
    """Whether a folder contains nothing, or does not exist.

    In an object store this takes one request, however much it contains.
    """
    if is_object_store(folder):
        return not _has_objects(folder)
    with suppress(FileNotFoundError), explaining(LIST, folder):
        return next(iter(folder.iterdir()), None) is None
    return True


def _has_objects(folder: ObjectStoragePath) -> bool:
    """Whether an object store has anything below a prefix.

    Raises:
        ValueError: If its bucket does not exist.
        OSError: If the store does not allow listing.
    """
    filesystem = folder.fs
    uses_s3fs = library_of(filesystem) == "s3fs"
    # Objects that other processes have stored since count as well.
    filesystem.invalidate_cache(folder.path)
    try:
        with explaining(LIST, folder):
            if not uses_s3fs:
                filesystem.info(folder.path)
                return True
            # A listing alone tells an empty prefix from a bucket that does not exist, and needs no other right.
            bucket, key, _ = filesystem.split_path(folder.path)
            prefix = f"{key}/" if key and not key.endswith("/") else key
            listing = filesystem.call_s3("list_objects_v2", filesystem.kwargs, Bucket=bucket, Prefix=prefix, MaxKeys=1)
            return bool(listing.get("Contents"))
    except FileNotFoundError as error:
        if not uses_s3fs:
            return False
        raise ValueError(
            f"output_path is {str(folder)!r}, and the bucket {bucket_of(folder)!r} does not exist "
            f"({reason_of(error)}). Correct its name, or create the bucket; a task never creates one."
        ) from error
