"""Opens files that a task has recorded, from the API server, which may reach more than any user of the gallery."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from airflow_provider_qwenimage.plugin.bounds import MOST_PATH, MOST_PIXELS
from airflow_provider_qwenimage.storage.files import read_beginning
from airflow_provider_qwenimage.storage.libraries import LOCAL
from airflow_provider_qwenimage.text.messages import printable, shorten

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import ObjectStoragePath

log = logging.getLogger(__name__)

_URL = re.compile(r"([a-z][a-z0-9+.-]*)://([^/]*)", re.IGNORECASE)
# Schemes of storages that hold images; with others the API server could be sent to ask anybody anything.
_NOT_STORAGE = frozenset({"http", "https", "ftp", "data", "github", "git", "jupyter", "cached", "simplecache", "zip"})
# What changes with a file differs between the storages.
_MARKS = ("size", "mtime", "ETag", "etag", "LastModified", "last_modified", "updated", "created")
_LOGGED_CHARACTERS = 3000
_PIECE_BYTES = 1024 * 1024
# A local path's first folders: what is mounted is one storage.
_FOLDERS_OF_A_MOUNT = 3


class RefusedError(Exception):
    """The gallery does not show a file; the message says why, to somebody who may read the DAG."""


def check_pixels(size: tuple[int, int]) -> None:
    """Check the size that an image's header says, before any memory is taken for its pixels.

    Raises:
        RefusedError: If it has more pixels than are shown.
    """
    if size[0] * size[1] > MOST_PIXELS:
        raise RefusedError(f"This image has more than {MOST_PIXELS:,} pixels, which is too much to show.")


@contextlib.contextmanager
def refusing_what_fails(file: ObjectStoragePath, recorded: object) -> Iterator[None]:
    """Refuse a file that cannot be read: every storage, and every compression, has errors of its own.

    Args:
        file: What the block reads.
        recorded: The path or URL that was recorded, for the log.

    Raises:
        RefusedError: If it cannot be read.
    """
    try:
        yield
    except RefusedError:
        raise
    except Exception as error:
        log_problem("read", recorded, error)
        raise RefusedError(f"{file.name} cannot be read by the API server ({type(error).__name__}).") from error


def log_problem(verb: str, path: object, error: Exception) -> None:
    """Log why a recorded file cannot be read or opened: as one line, whatever somebody has recorded.

    Args:
        verb: What cannot be done.
        path: The path or URL.
        error: What a storage's library raised.
    """
    told = printable(f"{path} for the gallery: {type(error).__name__}: {error}")
    log.warning("Cannot %s %s", verb, shorten(told, _LOGGED_CHARACTERS))


def storage_of(path: str) -> str:
    """Return a name for the storage that a recorded path is in: what hangs together has the same."""
    scheme = _URL.match(path)
    if scheme is not None and scheme[1].lower() not in LOCAL:
        return scheme[0].lower()
    folders = (path[scheme.end() :] if scheme else path).split("/")
    return "/".join(folders[: 1 + _FOLDERS_OF_A_MOUNT][:-1])


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
    if any(part == ".." for part in re.split(r"[/\\]", path)) or "::" in path or "\0" in path or len(path) > MOST_PATH:
        raise RefusedError("The recorded path is not one that a task of this package records.")
    try:
        if scheme is not None:
            _connect(scheme[1].lower(), scheme[2].rpartition("@")[0] or None)
        file = ObjectStoragePath(path)
        _ = file.fs
    except Exception as error:  # every storage has its own
        log_problem("open", path, error)
        raise RefusedError(
            f"The API server cannot open this storage ({type(error).__name__}). It needs the storage's provider and "
            "connection, as the workers do."
        ) from error
    return file


def _connect(protocol: str, conn_id: str | None) -> None:
    """Have the file system of a storage made, apart from those of others.

    Left to Airflow, all wait while one connects to something that does not respond: Python 3.11 holds one lock for the
    cached properties of all instances of a class.
    """
    from airflow.sdk.io import attach, get_fs

    store = attach(protocol, conn_id)
    if "fs" not in vars(store):
        vars(store)["fs"] = get_fs(protocol, conn_id)


def read_file(file: ObjectStoragePath, most: int) -> bytes | None:
    """Return a file's bytes, or None where there is no file.

    Args:
        file: The file.
        most: No more bytes than this and one are read: a longer file is told by its length.

    Raises:
        RefusedError: If it is no regular file.
        OSError: If it cannot be read.
    """
    if file.protocol not in LOCAL:
        return read_beginning(file, most + 1)
    try:
        with _opened(file) as descriptor:
            pieces = []
            left = most + 1
            while left and (piece := os.read(descriptor, min(left, _PIECE_BYTES))):
                pieces.append(piece)
                left -= len(piece)
            return b"".join(pieces)
    except FileNotFoundError:
        return None


def mark_of(file: ObjectStoragePath) -> tuple[object, ...]:
    """Return what changes whenever a file does.

    Raises:
        RefusedError: If it is no regular file.
        OSError: If it cannot be read, or there is none.
    """
    if file.protocol in LOCAL:
        with _opened(file) as descriptor:
            facts = os.fstat(descriptor)
            return facts.st_ino, facts.st_size, facts.st_mtime_ns
    with contextlib.suppress(Exception):
        # What another process has stored since counts.
        file.fs.invalidate_cache(file.path)
    known = file.fs.info(file.path)
    return tuple(str(known.get(name)) for name in _MARKS)


@contextlib.contextmanager
def _opened(file: ObjectStoragePath) -> Iterator[int]:
    """Open a file of this machine, and nothing that never begins or never ends, such as a pipe or a device."""
    # Looked at before it is opened, which alone has effects on some devices, and after, when nobody can exchange it.
    _check_regular(file, Path(file.path).stat())
    descriptor = os.open(file.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    try:
        _check_regular(file, os.fstat(descriptor))
        yield descriptor
    finally:
        os.close(descriptor)


def _check_regular(file: ObjectStoragePath, facts: os.stat_result) -> None:
    if not stat.S_ISREG(facts.st_mode):
        raise RefusedError(f"{file.name} is no regular file.")
