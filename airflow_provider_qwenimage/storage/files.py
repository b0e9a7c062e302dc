"""Reads and writes whole files in the user's storage: a name appears with all of its content, or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import random
import re
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeAlias

from airflow_provider_qwenimage.storage import local_files
from airflow_provider_qwenimage.storage.folders import names_in
from airflow_provider_qwenimage.storage.libraries import (
    DELETE,
    LIST,
    READ,
    WRITE,
    content_type_arguments,
    exclusive_arguments,
    explaining,
    is_conflict,
    is_denied,
    is_object_store,
    is_unsupported,
    unchanged_arguments,
)
from airflow_provider_qwenimage.storage.local_files import CREATE_PAUSE_SECONDS, CREATE_TRIES, HIDDEN_TRIES, local_file

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import ObjectStoragePath

_Write: TypeAlias = Callable[[IO[bytes]], object]

# The longest file that is read or checked whole: far longer than an image of the API.
MOST_BYTES = 1024**3
# A sidecar or a record of a submission has some kilobytes.
_MOST_JSON_BYTES = 1024**2
_CHUNK_BYTES = 64 * 1024**2
# Of as many processes that change a file at the same time, each gets its turn.
_UPDATE_TRIES = 40
_UPDATE_PAUSE_SECONDS = 0.1


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
        if (file := local_file(target)) is not None:
            local_files.replace(local, file, writer)
            return
        if is_object_store(target):
            target.fs.put_file(str(local), target.path, **content_type_arguments(target))
            return

        def copy(stream: IO[bytes]) -> None:
            with local.open("rb") as source:
                shutil.copyfileobj(source, stream)

        _replace(target, writer, copy)


def put_bytes(content: bytes, target: ObjectStoragePath, *, writer: str = "") -> None:
    """Put all bytes of a file into storage, as `put_file` does."""
    with explaining(WRITE, target):
        if (file := local_file(target)) is not None:
            local_files.replace(content, file, writer)
            return
        if is_object_store(target):
            target.fs.pipe_file(target.path, content, **content_type_arguments(target))
            return
        _replace(target, writer, lambda stream: stream.write(content))


def put_json(
    content: Mapping[str, Any], target: ObjectStoragePath, *, writer: str = "", indent: int | None = None
) -> None:
    """Put a JSON object into storage, as `put_file` does; with `indent` in a line for each field, otherwise in one."""
    put_bytes(_json_bytes(content, indent), target, writer=writer)


def _json_bytes(content: Mapping[str, Any], indent: int | None = None) -> bytes:
    if indent is None:
        return json.dumps(content).encode("ascii") + b"\n"
    # One line for each field: Python's own indentation is written in Python, and takes as long as a poll.
    fields = (f"{' ' * indent}{json.dumps(name)}: {json.dumps(value)}" for name, value in content.items())
    return "{{\n{}\n}}\n".format(",\n".join(fields)).encode("ascii")


def creates_exclusively(path: ObjectStoragePath) -> bool:
    """Whether `create_bytes` is exclusive in a storage: of writers at the same time, exactly one creates the file.

    That is so on the local disk, and on S3, Google Cloud Storage and Azure with current libraries. Elsewhere it looks
    for the file and then writes it.
    """
    return local_file(path) is not None or exclusive_arguments(path) is not None


def create_json(
    content: Mapping[str, Any], target: ObjectStoragePath, *, writer: str = "", indent: int | None = None
) -> bool:
    """Put a JSON object into storage as `create_bytes` does.

    Args:
        content: The object. It has to contain something that no other writer's object contains.
        target: Its final name.
        writer: As for `put_file`.
        indent: As for `put_json`.
    """
    return create_bytes(_json_bytes(content, indent), target, writer=writer)


def create_bytes(content: bytes, target: ObjectStoragePath, *, writer: str = "") -> bool:
    """Put all bytes of a file into storage, whole, if no file has that name; a file of that name is never changed.

    Libraries repeat requests, so a storage may report as existing what this call has just stored: the content decides.

    Args:
        content: The content.
        target: Its final name.
        writer: The Airflow task that writes, for `remove_leftovers`; see `writer_of`.

    Returns:
        Whether a file with exactly this content has the name now. False means that another file has it.

    Raises:
        OSError: If it cannot be written, or something other than a file has that name.
    """
    if (file := local_file(target)) is not None:
        with explaining(WRITE, target):
            return local_files.create(content, file, writer)
    exclusive = creates_exclusively(target)
    for tries_left in reversed(range(CREATE_TRIES)):
        failure: OSError | None = None
        found = None if exclusive else read_beginning(target, len(content) + 1)
        if found is None:
            try:
                with explaining(WRITE, target):
                    _create(content, target, writer, exclusive=exclusive)
                if exclusive:
                    return True
            except OSError as error:
                failure = error
            if failure is not None and is_denied(failure):
                raise failure
            found = _found_after(failure, target, len(content) + 1)
        if found is not None:
            return found == content
        if failure is not None and is_unsupported(failure):
            exclusive = False
        elif failure is not None and not (tries_left and is_conflict(failure)):
            raise failure
        time.sleep(random.uniform(0, CREATE_PAUSE_SECONDS))  # noqa: S311  no secret
    raise OSError(errno.EBUSY, "It was removed each time that it had been stored", str(target))


def _create(content: bytes, target: ObjectStoragePath, writer: str, *, exclusive: bool) -> None:
    """Store a file that does not exist; `exclusive` if the storage is to refuse to replace one."""
    if is_object_store(target):
        arguments = (exclusive_arguments(target) or {}) if exclusive else {}
        target.fs.pipe_file(target.path, content, **content_type_arguments(target), **arguments)
    else:
        _replace(target, writer, lambda stream: stream.write(content))


def _found_after(failure: OSError | None, target: ObjectStoragePath, most: int) -> bytes | None:
    """Return the beginning of a file after an attempt to create it; if it cannot be read, the first error counts."""
    try:
        return read_beginning(target, most)
    except OSError:
        if failure is None:
            raise
    raise failure


def list_names(folder: ObjectStoragePath, prefix: str, is_wanted: Callable[[str], bool] = lambda _: True) -> list[str]:
    """Return the names of a folder's files that begin with a prefix, sorted. Files in folders below it do not count.

    In an object store, only the objects with the prefix are listed, whatever else the bucket contains.

    Args:
        folder: The folder. It may not exist.
        prefix: The beginning of the names, without a slash; empty for all names.
        is_wanted: Whether to return a name. Names that are not wanted take no memory.

    Raises:
        OSError: If the storage does not allow listing.
    """
    with suppress(FileNotFoundError), explaining(LIST, folder):
        return sorted(name for name in names_in(folder, prefix) if name.startswith(prefix) and is_wanted(name))
    return []


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
    try:
        with explaining(READ, source):
            if (file := local_file(source)) is not None:
                return local_files.read(file, start, end)
            filesystem = source.fs
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
    return _object_in(read_beginning(source, _MOST_JSON_BYTES + 1))


def _object_in(written: bytes | None) -> dict[str, Any] | None:
    if written is None:
        return None
    try:
        content = json.loads(written) if len(written) <= _MOST_JSON_BYTES else None
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def update_json(
    target: ObjectStoragePath,
    change: Callable[[dict[str, Any] | None], Mapping[str, Any] | None],
    *,
    writer: str = "",
    indent: int | None = None,
) -> None:
    """Replace a JSON object by what a function makes of it.

    On the local disk and on S3, a file that another process has replaced meanwhile is not replaced, but read and
    changed again. On the local disk, processes that call this function wait for each other, and a file of any other one
    is compared right before it is replaced. Elsewhere the last writer wins.

    Args:
        target: The file.
        change: Takes what `read_json` returns, and returns the new object, or None to leave the file as it is. It may
            be called again.
        writer: As for `put_file`.
        indent: As for `put_json`.

    Raises:
        OSError: If it cannot be read or written, or is not a regular file.
    """
    for _ in range(_UPDATE_TRIES):
        with explaining(READ, target):
            condition = unchanged_arguments(target)
        written = read_beginning(target, _MOST_JSON_BYTES + 1)
        content = change(_object_in(written))
        if content is None or _is_replaced(_json_bytes(content, indent), target, writer, written, condition):
            return
        time.sleep(random.uniform(0, _UPDATE_PAUSE_SECONDS))  # noqa: S311  no secret
    raise OSError(errno.EBUSY, "It was replaced each time that it was about to be changed", str(target))


def _is_replaced(
    content: bytes, target: ObjectStoragePath, writer: str, expected: bytes | None, condition: Mapping[str, Any]
) -> bool:
    """Replace a file, and return False if it is no longer the one that was read."""
    if (file := local_file(target)) is not None:
        with explaining(WRITE, target), local_files.locked(file) as is_locked:
            return is_locked and local_files.replace(content, file, writer, expected)
    if condition:
        try:
            with explaining(WRITE, target):
                target.fs.pipe_file(target.path, content, **content_type_arguments(target), **condition)
        except OSError as error:
            # It may have been removed meanwhile.
            if is_conflict(error) or isinstance(error, FileNotFoundError):
                return False
            if not is_unsupported(error):
                raise
        else:
            return True
    put_bytes(content, target, writer=writer)
    return True


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
        if (file := local_file(target)) is not None:
            Path(file).unlink()
        else:
            target.fs.rm_file(target.path)


def check_replaceable(target: ObjectStoragePath) -> None:
    """Check that no folder, pipe or device has the name under which a file will be stored.

    Raises:
        FileExistsError: If one has.
    """
    if (file := local_file(target)) is not None:
        local_files.check_replaceable(file)


def check_own(folder: ObjectStoragePath, name: str, most: int, is_own: Callable[[bytes], bool], problem: str) -> None:
    """Check that a file of a folder, if it exists, is one that this package has written and may replace.

    Args:
        folder: The `output_path` of a task.
        name: The name of the file.
        most: How many of its first bytes tell.
        is_own: Whether these bytes are those of such a file. A file without any is nobody's.
        problem: What another file is, for the error: "is not the manifest of a batch".

    Raises:
        ValueError: If it is another file.
        OSError: If it cannot be read.
    """
    beginning = read_beginning(folder / name, most)
    if beginning and not is_own(beginning):
        raise ValueError(
            f"output_path is {str(folder)!r}, and its file {name} {problem}, so it is not replaced. Move that file "
            "away, or store the images in another folder."
        )


def _replace(target: ObjectStoragePath, writer: str, write: _Write) -> None:
    """Write a hidden file that replaces the target once it is complete; after an exception it is removed.

    Another process of the same task may take the file for a leftover and remove it: then it is written again.
    """
    for tries_left in reversed(range(HIDDEN_TRIES)):
        hidden = local_files.hidden_name(target.path, writer)
        try:
            with target.fs.open(hidden, "wb") as stream:
                write(stream)
            target.fs.mv(hidden, target.path)
        except BaseException as error:
            with suppress(Exception):
                target.fs.rm_file(hidden)
            if not (tries_left and isinstance(error, FileNotFoundError)):
                raise
        else:
            return
