"""Reads files whose paths a task recorded, from the API server, which may reach more files than the user may see."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from airflow.providers.common.compat.sdk import ObjectStoragePath

from airflow_provider_qwenimage.rules.recorded_paths import check_recorded_path
from airflow_provider_qwenimage.rules.verification import MOST_PIXELS
from airflow_provider_qwenimage.storage.files import read_beginning
from airflow_provider_qwenimage.storage.libraries import LOCAL
from airflow_provider_qwenimage.text.messages import printable, shorten

log = logging.getLogger(__name__)

_URL = re.compile(r"([a-z][a-z0-9+.-]*)://([^/]*)", re.IGNORECASE)
# Each storage has other fields that change with a file.
_VERSION_FIELDS = ("size", "mtime", "ETag", "etag", "LastModified", "last_modified", "updated", "created")
_LOGGED_CHARACTERS = 3000
# Local paths with the same first folders count as one storage, because they may be one mount.
_FOLDERS_OF_A_MOUNT = 3


class RefusedError(Exception):
    """The gallery does not show a file, for the reason in the message, which users who may read the DAG see."""


def check_pixels(size: tuple[int, int]) -> None:
    """Check the size in an image's header, before its pixels take memory.

    Raises:
        RefusedError: If it has more than `MOST_PIXELS`.
    """
    if size[0] * size[1] > MOST_PIXELS:
        raise RefusedError(f"This image has more than {MOST_PIXELS:,} pixels, the limit of the gallery.")


@contextlib.contextmanager
def refusing_errors(file: ObjectStoragePath, recorded: object) -> Iterator[None]:
    """Log any error of the block and raise it as a `RefusedError`: each storage and compression has its own classes.

    Args:
        file: The file that the block reads.
        recorded: The path or URL that was recorded, for the log.
    """
    try:
        yield
    except RefusedError:
        raise
    except Exception as error:
        log_problem(f"read {recorded} for the gallery", error)
        raise RefusedError(
            f"The API server cannot read {file.name} ({type(error).__name__}). Its log has details."
        ) from error


def log_problem(action: str, error: Exception) -> None:
    """Log why something cannot be done, always as one line.

    Args:
        action: What, continuing "Cannot ": "read /images/fox.jpg for the gallery".
        error: Why.
    """
    message = printable(f"{action}: {type(error).__name__}: {error}")
    log.warning("Cannot %s", shorten(message, _LOGGED_CHARACTERS))


def storage_of(path: str) -> str:
    """Return a name for the storage of a recorded path: files that stop responding together have the same."""
    scheme = _URL.match(path)
    if scheme is not None and scheme[1].lower() not in LOCAL:
        return scheme[0].lower()
    folders = (path[scheme.end() :] if scheme else path).split("/")
    return "/".join(folders[: 1 + _FOLDERS_OF_A_MOUNT][:-1])


def open_recorded(path: str) -> ObjectStoragePath:
    """Return a file by the path that a task recorded. Looks connections up.

    Args:
        path: An absolute path, or a URL that Airflow's object storage supports.

    Raises:
        RefusedError: If the path is not allowed, or the API server cannot open the storage.
    """
    try:
        check_recorded_path(path)
    except ValueError as error:
        raise RefusedError(f"The recorded path {error}.") from error
    scheme = _URL.match(path)
    try:
        if scheme is not None:
            _connect(scheme[1].lower(), scheme[2].rpartition("@")[0] or None)
        file = ObjectStoragePath(path)
        _ = file.fs
    except Exception as error:  # each storage has its own classes
        log_problem(f"open {path} for the gallery", error)
        raise RefusedError(
            f"The API server cannot open this storage ({type(error).__name__}). Install the storage's provider on the "
            "API server and give it the same connection as the workers."
        ) from error
    return file


def _connect(protocol: str, conn_id: str | None) -> None:
    """Create the file system of a storage without blocking those of other storages.

    Airflow creates it in a cached property, for which Python 3.11 holds one lock for all instances of the class: while
    one connects to a storage that does not respond, all others would wait.
    """
    from airflow.sdk.io import attach, get_fs

    store = attach(protocol, conn_id)
    if "fs" not in vars(store):
        vars(store)["fs"] = get_fs(protocol, conn_id)


def read_file(file: ObjectStoragePath, most: int) -> bytes | None:
    """Return a file's bytes, or None if it does not exist.

    Args:
        most: At most one byte more than this is read, by which the caller recognizes a longer file.

    Raises:
        RefusedError: If it is not a regular file.
        OSError: If it cannot be read.
    """
    if file.protocol not in LOCAL:
        return read_beginning(file, most + 1)
    try:
        with _opened(file) as descriptor, os.fdopen(descriptor, "rb", closefd=False) as stream:
            # Memory is taken for as many bytes as are requested.
            return stream.read(min(most, os.fstat(descriptor).st_size) + 1)
    except FileNotFoundError:
        return None


def version_of(file: ObjectStoragePath) -> tuple[object, ...]:
    """Return a value that changes whenever the file does.

    Raises:
        RefusedError: If it is not a regular file.
        OSError: If it cannot be read, or does not exist.
    """
    if file.protocol in LOCAL:
        with _opened(file) as descriptor:
            facts = os.fstat(descriptor)
            return facts.st_ino, facts.st_size, facts.st_mtime_ns
    with contextlib.suppress(Exception):
        # Cached listings do not have what other processes have stored since.
        file.fs.invalidate_cache(file.path)
    known = file.fs.info(file.path)
    return tuple(str(known.get(name)) for name in _VERSION_FIELDS)


@contextlib.contextmanager
def _opened(file: ObjectStoragePath) -> Iterator[int]:
    """Open a local file if it is a regular one: a pipe or a device might never respond or never end."""
    # Checked before opening, because opening some devices has effects, and after, when it can no longer be replaced.
    _check_regular(file, Path(file.path).stat())
    descriptor = os.open(file.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    try:
        _check_regular(file, os.fstat(descriptor))
        yield descriptor
    finally:
        os.close(descriptor)


def _check_regular(file: ObjectStoragePath, facts: os.stat_result) -> None:
    if not stat.S_ISREG(facts.st_mode):
        raise RefusedError(f"{file.name} is not a regular file.")
