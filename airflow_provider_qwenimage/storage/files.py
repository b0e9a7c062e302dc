"""Reads and writes whole files in the user's storage: a name appears with all of its content, or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import stat
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from airflow_provider_qwenimage.storage.libraries import (
    DELETE,
    LOCAL,
    READ,
    WRITE,
    content_type_arguments,
    explaining,
    is_object_store,
)

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import ObjectStoragePath

# The longest file that is read or checked whole: far longer than an image of the API.
MOST_BYTES = 1024**3
# A sidecar or a record of a submission has some kilobytes.
_MOST_JSON_BYTES = 1024**2
_CHUNK_BYTES = 64 * 1024**2


def put_file(local: Path, target: ObjectStoragePath, *, writer: str = "") -> None:
    """Put a local file into storage, whole; a file of that name is replaced.

    Args:
        local: The file on this machine.
        target: Its final name.
        writer: The Airflow task that writes, for `remove_leftovers`; see `writer_of`.

    Raises:
        OSError: If it cannot be written, or something other than a file has that name.
    """
    with explaining(WRITE, target):
        if is_object_store(target):
            target.fs.put_file(str(local), target.path, **content_type_arguments(target))
            return
        with local.open("rb") as source, _replacing(target, writer) as stream:
            shutil.copyfileobj(source, stream)


def put_bytes(content: bytes, target: ObjectStoragePath, *, writer: str = "") -> None:
    """Put all bytes of a file into storage, as `put_file` does."""
    with explaining(WRITE, target):
        if is_object_store(target):
            target.fs.pipe_file(target.path, content, **content_type_arguments(target))
            return
        with _replacing(target, writer) as stream:
            stream.write(content)


def put_json(
    content: Mapping[str, Any], target: ObjectStoragePath, *, writer: str = "", indent: int | None = None
) -> None:
    """Put a JSON object into storage, as `put_file` does; without `indent`, in one line."""
    put_bytes(json.dumps(content, indent=indent).encode("ascii") + b"\n", target, writer=writer)


def remove_leftovers(folder: ObjectStoragePath, writer: str) -> None:
    """Remove the half-written files that killed tries of a task have left in a folder.

    Args:
        folder: The folder.
        writer: The Airflow task that wrote them; see `writer_of`.
    """
    if is_object_store(folder):
        return
    left = re.compile(rf"\..*\.{re.escape(writer)}-[0-9a-f]{{32}}\.part")
    for file in folder.iterdir():
        if left.fullmatch(file.name):
            remove_file(file)


def read_bytes(source: ObjectStoragePath, most: int = MOST_BYTES) -> bytes | None:
    """Return all of a stored file, or None if there is no file.

    Args:
        source: The file.
        most: How many bytes it may have.

    Raises:
        OSError: If it cannot be read, is not a regular file, or is longer.
    """
    content = _read_part(source, 0, most + 1)
    if content is not None and len(content) > most:
        raise OSError(errno.EFBIG, f"It has more than the {most} bytes that are read of such a file", str(source))
    return content


def read_beginning(source: ObjectStoragePath, most: int) -> bytes | None:
    """Return the first bytes of a stored file, or None if there is no file; see `read_bytes`."""
    return _read_part(source, 0, most)


def _read_part(source: ObjectStoragePath, start: int, end: int) -> bytes | None:
    _check_regular(source)
    filesystem = source.fs
    try:
        with explaining(READ, source):
            try:
                # In one piece and with bounds: otherwise some stores trust a cached listing, which another process may
                # have made stale.
                content: bytes = filesystem.cat_file(source.path, start=start, end=end)
            except FileNotFoundError:
                raise
            except Exception:
                if not is_object_store(source) or not _ends_before(source, start + 1):
                    raise
                return b""
    except FileNotFoundError:
        return None
    return content


def _ends_before(source: ObjectStoragePath, length: int) -> bool:
    """Whether a file is shorter: object stores refuse to read a range that begins after the end."""
    source.fs.invalidate_cache(source.path)
    facts = source.fs.info(source.path)
    return facts.get("type") == "file" and int(facts.get("size") or 0) < length


def read_json(source: ObjectStoragePath) -> dict[str, Any] | None:
    """Return a JSON object from storage: None if there is no file, an empty object if the file contains anything else.

    Raises:
        OSError: If it cannot be read, or is not a regular file.
    """
    written = read_beginning(source, _MOST_JSON_BYTES + 1)
    if written is None:
        return None
    try:
        content = json.loads(written) if len(written) <= _MOST_JSON_BYTES else None
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def sha256_of(source: ObjectStoragePath, most: int = MOST_BYTES) -> str | None:
    """Return the SHA-256 of a stored file in hexadecimal, or None if there is no file, or a longer one.

    Args:
        source: The file.
        most: How many bytes it may have.
    """
    digest = hashlib.sha256()
    end = most + 1
    for start in range(0, end, _CHUNK_BYTES):
        wanted = min(_CHUNK_BYTES, end - start)
        content = _read_part(source, start, start + wanted)
        if content is None:
            return None
        digest.update(content)
        if len(content) < wanted:
            return digest.hexdigest()
    return None


def remove_file(target: ObjectStoragePath) -> None:
    """Remove a file from storage, if it exists."""
    with suppress(FileNotFoundError), explaining(DELETE, target):
        target.fs.rm_file(target.path)


def check_replaceable(target: ObjectStoragePath) -> None:
    """Check that no folder, pipe or device has the name under which a file will be stored.

    Raises:
        FileExistsError: If one has.
    """
    if target.protocol not in LOCAL:
        return
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(Path(target.path).stat().st_mode):
            raise FileExistsError(
                errno.EEXIST, "It is not a regular file, so it is not replaced; move it away", str(target)
            )


def _check_regular(source: ObjectStoragePath) -> None:
    """Refuse a folder, and a device or a pipe, which may never end, before it is opened."""
    if source.protocol not in LOCAL:
        return
    with suppress(FileNotFoundError):
        mode = Path(source.path).stat().st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, "It is a folder; move it away", str(source))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "It is not a regular file; move it away", str(source))


@contextmanager
def _replacing(target: ObjectStoragePath, writer: str) -> Iterator[IO[bytes]]:
    """Open a hidden file that replaces the target once it is complete."""
    filesystem = target.fs
    check_replaceable(target)
    parent, separator, name = target.path.rpartition("/")
    hidden = f"{parent}{separator}.{name}.{writer}-{uuid.uuid4().hex}.part"
    try:
        with filesystem.open(hidden, "wb") as stream:
            yield stream
            if target.protocol in LOCAL:
                # It has to survive a power failure, not only a killed process.
                stream.flush()
                os.fsync(stream.fileno())
        filesystem.mv(hidden, target.path)
    except BaseException:
        if filesystem.exists(hidden):
            filesystem.rm_file(hidden)
        raise
