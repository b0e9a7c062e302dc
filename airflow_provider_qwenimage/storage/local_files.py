"""Reads and writes whole files on the local disk with few system calls: a batch makes dozens for each image."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import stat
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from airflow_provider_qwenimage.storage.libraries import LOCAL

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import ObjectStoragePath

_PIECE_BYTES = 8 * 1024**2
CREATE_TRIES = 5
CREATE_PAUSE_SECONDS = 0.2
HIDDEN_TRIES = 3
# A file system that cannot link answers with one of these.
_NO_LINKS = frozenset({errno.EPERM, errno.EACCES, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK})
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_ANY_USER = 0o666


def local_file(path: ObjectStoragePath) -> str | None:
    """Return the file name of a path on the local disk, or None if the path is elsewhere."""
    return str(path.path) if path.protocol in LOCAL else None


def read(file: str, start: int, end: int) -> bytes | None:
    """Return bytes of a file, as far as it has them, or None if there is no file.

    Args:
        file: The file.
        start: The offset of the first byte.
        end: The offset after the last byte.

    Raises:
        OSError: If it cannot be read, or is not a regular file: reading a pipe or a device may never end.
    """
    try:
        mode = os.stat(file).st_mode  # noqa: PTH116  a third of pathlib's time
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, "It is a folder; move it away", file)
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "It is not a regular file; move it away", file)
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        pieces: list[bytes] = []
        while start < end and (piece := os.pread(descriptor, min(end - start, _PIECE_BYTES), start)):
            pieces.append(piece)
            start += len(piece)
    finally:
        os.close(descriptor)
    return b"".join(pieces)


def hidden_name(file: str, writer: str) -> str:
    """Return a new name for an incomplete file, which `storage.files.remove_leftovers` recognizes."""
    parent, separator, name = file.rpartition("/")
    return f"{parent}{separator}.{name}.{writer}-{uuid.uuid4().hex}.part"


def check_replaceable(file: str) -> None:
    """Check that no folder, pipe or device has the name under which a file will be stored.

    Raises:
        FileExistsError: If one has.
    """
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(os.stat(file).st_mode):  # noqa: PTH116  a third of pathlib's time
            raise FileExistsError(errno.EEXIST, "It is not a regular file, so it is not replaced; move it away", file)


def replace(content: bytes | Path, file: str, writer: str, expected: bytes | None = None) -> bool:
    """Write a file, whole; one of that name is replaced.

    Args:
        content: The content, or the file that has it.
        file: Its final name.
        writer: The Airflow task that writes; see `storage.files.remove_leftovers`.
        expected: The content that the replaced file has to have, or None for any. It is compared right before the new
            file gets its name.

    Returns:
        Whether the file was written. False means that the file of that name has another content.

    Raises:
        OSError: If it cannot be written, or something other than a file has that name.
    """
    check_replaceable(file)
    for tries_left in reversed(range(HIDDEN_TRIES)):
        hidden = _write_hidden(content, file, writer)
        try:
            if expected is not None and read(file, 0, len(expected) + 1) != expected:
                _remove_quietly(hidden)
                return False
            os.replace(hidden, file)  # noqa: PTH105  a string is at hand
        except BaseException as error:
            _remove_quietly(hidden)
            if not (tries_left and isinstance(error, FileNotFoundError)):
                raise
        else:
            return True
    raise AssertionError("The last of the tries returns or raises.")


@contextmanager
def locked(file: str) -> Iterator[bool]:
    """Lock a file against other processes that lock it, and return whether that is so, without waiting for them.

    Where files cannot be locked, it is so for all of them at once. The lock ends with the file, when it is replaced.
    """
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield False
        return
    try:
        yield _is_locked(descriptor)
    finally:
        os.close(descriptor)


def _is_locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        # Some network file systems have no locks.
        return True
    return True


def create(content: bytes, file: str, writer: str) -> bool:
    """Write a file, whole, if no file has that name, and have its name survive a power failure.

    Args:
        content: The content.
        file: Its final name.
        writer: As for `replace`.

    Returns:
        Whether a file with exactly this content has the name now. False means that another file has it.

    Raises:
        OSError: If it cannot be written, or something other than a file has that name.
    """
    for _ in range(CREATE_TRIES):
        try:
            _create(content, file, writer)
        except FileExistsError as error:
            found = _found_there(error, file, len(content) + 1)
        else:
            return True
        if found is not None:
            return found == content
        time.sleep(random.uniform(0, CREATE_PAUSE_SECONDS))  # noqa: S311  no secret
    raise OSError(errno.EBUSY, "It was removed each time that another one had stored it", file)


def _found_there(failure: FileExistsError, file: str, most: int) -> bytes | None:
    """Return the beginning of the file that has a name already, or None if it is gone."""
    check_replaceable(file)
    if Path(file).is_symlink() and not Path(file).exists():
        raise FileExistsError(errno.EEXIST, "It is a link to a file that does not exist; move it away", file)
    try:
        return read(file, 0, most)
    except OSError:
        raise failure from None


def _create(content: bytes, file: str, writer: str) -> None:
    for tries_left in reversed(range(HIDDEN_TRIES)):
        hidden = _write_hidden(content, file, writer)
        try:
            os.link(hidden, file)
        except OSError as error:
            if tries_left and isinstance(error, FileNotFoundError):
                continue
            if error.errno not in _NO_LINKS:
                raise
            _create_in_place(content, file)
        finally:
            _remove_quietly(hidden)
        break
    # A record is of no use after a power failure without its name: what it records is about to be paid.
    with suppress(OSError):
        directory = os.open(os.path.dirname(file), os.O_RDONLY | os.O_CLOEXEC)  # noqa: PTH120  a string is at hand
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def _create_in_place(content: bytes, file: str) -> None:
    """Create a file on a file system that cannot link: exclusive, but not whole if this process is killed meanwhile."""
    descriptor = os.open(file, _NEW_FILE, _ANY_USER)
    try:
        _write_to_disk(descriptor, content)
    except BaseException:
        _remove_quietly(file)
        raise


def _write_hidden(content: bytes | Path, file: str, writer: str) -> str:
    """Write a hidden file next to a file, and return its name; after an exception it is removed.

    Another process of the same task may take it for a leftover and remove it: then it has to be written again.
    """
    hidden = hidden_name(file, writer)
    try:
        _write_to_disk(os.open(hidden, _NEW_FILE, _ANY_USER), content)
    except BaseException:
        _remove_quietly(hidden)
        raise
    return hidden


def _write_to_disk(descriptor: int, content: bytes | Path) -> None:
    """Write a file so that it survives a power failure, not only a killed process, and close it."""
    try:
        for piece in _pieces(content):
            left = memoryview(piece)
            while left:
                left = left[os.write(descriptor, left) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _pieces(content: bytes | Path) -> Iterator[bytes]:
    if isinstance(content, bytes):
        yield content
        return
    with content.open("rb") as stream:
        while piece := stream.read(_PIECE_BYTES):
            yield piece


def _remove_quietly(file: str) -> None:
    with suppress(OSError):
        os.unlink(file)  # noqa: PTH108  a string is at hand
