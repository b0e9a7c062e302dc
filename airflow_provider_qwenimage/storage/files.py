"""Opens the user's storage and puts files there whole: a name appears with all of its content, or not at all."""

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

from airflow_provider_qwenimage.rules.arguments import check_output_path
from airflow_provider_qwenimage.storage.libraries import (
    DELETE,
    LIST,
    LOCAL,
    READ,
    WRITE,
    bucket_of,
    content_type_arguments,
    explaining,
    is_object_store,
    library_of,
    reason_of,
    what_to_check,
)

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import ObjectStoragePath

_URL = re.compile(r"[a-z][a-z0-9+.-]+:/", re.IGNORECASE)
_LOCAL_URL = re.compile(r"(?:file|local):(?://)?(?=/)", re.IGNORECASE)

# What a file may have that is read or checked whole: far more than an image of the API.
MOST_BYTES = 1024**3
# A sidecar, or a record of a submission, has some kilobytes.
_MOST_JSON_BYTES = 1024**2
_CHUNK_BYTES = 64 * 1024**2


def open_output_path(output_path: str) -> ObjectStoragePath:
    """Return the folder for images, made if it did not exist. A bucket or container is never made.

    Call it before a submission: storage that cannot be reached should fail before anything is paid. Looks
    connections up, so call it while a task runs, never while a DAG is parsed.

    Args:
        output_path: A folder, as a path or a URL that Airflow's object storage knows (``file:///data``,
            ``s3://aws_default@bucket/images``, …).

    Raises:
        ValueError: If it is not the path of a folder, no file system is installed for its scheme, or its bucket does
            not exist.
        OSError: If the storage cannot be reached, or does not let it be listed.
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
        _make(folder)
    elif not bucket_of(folder):
        raise ValueError(f"output_path is {output_path!r}, which names no bucket; write it as scheme://bucket/folder.")
    elif ".." in folder.path.split("/"):
        raise ValueError(
            f"output_path is {output_path!r}; in an object store .. leads nowhere. Write the folder without it."
        )
    else:
        _holds_anything(folder)
    return folder


def _make(folder: ObjectStoragePath) -> None:
    try:
        with explaining(WRITE, folder):
            folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise NotADirectoryError(
            errno.ENOTDIR,
            "It cannot be made a folder: a file, or a link that leads nowhere, has its name or the name of a folder "
            "above it; move that away, or choose another folder",
            str(folder),
        ) from error


def check_storing(folder: ObjectStoragePath, writer: str = "") -> None:
    """Check that files can be stored in a folder, by storing a small one and removing it again.

    Call it before a submission: what cannot be stored should not be paid.

    Args:
        folder: The folder.
        writer: Who writes; see `writer_of`.

    Raises:
        ValueError: If its bucket or container does not exist.
        OSError: If nothing can be written there.
    """
    # As long as the longest name of a stored file: a path that is too long for one should not pass.
    file = folder / f".check-that-images-can-be-stored-in-this-folder-{writer or uuid.uuid4().hex}.json"
    try:
        put_json({"about": "Written to check that images can be stored here. It may be deleted."}, file, writer=writer)
    except FileNotFoundError as error:
        if not is_object_store(folder):
            raise
        raise ValueError(f"output_path: {error}") from error
    # Images need no right to delete.
    with suppress(OSError):
        remove_file(file)


def is_empty(folder: ObjectStoragePath) -> bool:
    """Whether a folder holds nothing. In an object store this takes one request, however much it holds."""
    if is_object_store(folder):
        return not _holds_anything(folder)
    with explaining(LIST, folder):
        return next(iter(folder.iterdir()), None) is None


def _holds_anything(folder: ObjectStoragePath) -> bool:
    """Whether an object store has anything below a prefix. Fails if it does not let that be seen."""
    filesystem = folder.fs
    # What other processes have stored since counts as well.
    filesystem.invalidate_cache(folder.path)
    try:
        with explaining(LIST, folder):
            if library_of(filesystem) != "s3fs":
                filesystem.info(folder.path)
                return True
            # A listing alone tells an empty prefix from a bucket that does not exist, and needs no other right.
            bucket, key, _ = filesystem.split_path(folder.path)
            prefix = f"{key}/" if key and not key.endswith("/") else key
            listing = filesystem.call_s3("list_objects_v2", filesystem.kwargs, Bucket=bucket, Prefix=prefix, MaxKeys=1)
            return bool(listing.get("Contents"))
    except FileNotFoundError as error:
        if library_of(filesystem) == "s3fs":
            raise ValueError(
                f"output_path is {str(folder)!r}, and there is no bucket {bucket_of(folder)!r} ({reason_of(error)}). "
                "Correct its name, or make the bucket; a task never makes one."
            ) from error
        return False


def path_of(location: str) -> ObjectStoragePath:
    """Return a path of Airflow's object storage; a connection that its URL names is looked up.

    Args:
        location: A URL, or a path of this machine, which may begin at home (``~``) or where the worker runs.

    Raises:
        ValueError: If it is no URL of a storage, or begins at a home folder that does not exist.
        ImportError: If what talks to that storage is not installed.
        OSError: If its connection cannot be used.
    """
    from airflow.providers.common.compat.sdk import ObjectStoragePath

    location = location.strip()
    local = _LOCAL_URL.match(location)
    if local is not None and "/../" in f"{location}/":
        location = f"{local[0]}{_absolute(location[local.end() :])}"
    elif _URL.match(location) is None:
        location = str(_absolute(location))
    path = ObjectStoragePath(location)
    try:
        _ = path.fs
    except (ValueError, ImportError):
        raise
    except Exception as error:  # the libraries' own, where a connection first has to ask for credentials
        raise OSError(f"{location} cannot be opened ({reason_of(error)}). {what_to_check(location)}") from error
    return path


def _absolute(path: str) -> Path:
    """Return where a plain path leads: some versions of Airflow take a relative one for one at the root."""
    try:
        found = Path(path).expanduser().absolute()
    except RuntimeError as error:
        raise ValueError(f"{path.partition('/')[0]} is no home folder on this machine") from error
    # What is recorded for the gallery leads nowhere else once a link changes.
    return found.resolve() if ".." in found.parts else found


def put_file(local: Path, target: ObjectStoragePath, *, writer: str = "") -> None:
    """Put a local file into storage, whole; what stood there before is replaced.

    Args:
        local: The file on this machine.
        target: Its final name.
        writer: Who writes, for `remove_leftovers`; see `writer_of`.

    Raises:
        OSError: If it cannot be written, or what stands there is no file.
    """
    with explaining(WRITE, target):
        if is_object_store(target):
            target.fs.put_file(str(local), target.path, **content_type_arguments(target))
            return
        with local.open("rb") as source, _replacing(target, writer) as stream:
            shutil.copyfileobj(source, stream)


def put_bytes(content: bytes, target: ObjectStoragePath, *, writer: str = "") -> None:
    """Put a file into storage, whole; what stood there before is replaced.

    Args:
        content: All of its bytes.
        target: Its final name.
        writer: Who writes, for `remove_leftovers`; see `writer_of`.

    Raises:
        OSError: If it cannot be written, or what stands there is no file.
    """
    with explaining(WRITE, target):
        if is_object_store(target):
            target.fs.pipe_file(target.path, content, **content_type_arguments(target))
            return
        with _replacing(target, writer) as stream:
            stream.write(content)


def put_json(
    content: Mapping[str, Any], target: ObjectStoragePath, *, writer: str = "", indent: int | None = None
) -> None:
    """Put a JSON object into storage, whole; what stood there before is replaced.

    Args:
        content: The object.
        target: Its final name.
        writer: Who writes, for `remove_leftovers`; see `writer_of`.
        indent: How far lines are indented, for people; None puts it into one line.
    """
    put_bytes(json.dumps(content, indent=indent).encode("ascii") + b"\n", target, writer=writer)


def remove_leftovers(folder: ObjectStoragePath, writer: str) -> None:
    """Remove what earlier tries of a task have left half written, because they were killed.

    Args:
        folder: The folder.
        writer: Who has written it; see `writer_of`.
    """
    if is_object_store(folder):
        return
    left = re.compile(rf"\..*\.{re.escape(writer)}-[0-9a-f]{{32}}\.part")
    for file in folder.iterdir():
        if left.fullmatch(file.name):
            remove_file(file)


def read_bytes(source: ObjectStoragePath, most: int = MOST_BYTES) -> bytes | None:
    """Return all of a stored file, or None where there is no file.

    Args:
        source: The file.
        most: How many bytes it may have.

    Raises:
        OSError: If it cannot be read, is no regular file, or has more bytes.
    """
    content = _read_part(source, 0, most + 1)
    if content is not None and len(content) > most:
        raise OSError(errno.EFBIG, f"It has more than the {most} bytes that are read of such a file", str(source))
    return content


def read_beginning(source: ObjectStoragePath, most: int) -> bytes | None:
    """Return the first bytes of a stored file, or None where there is no file; see `read_bytes`."""
    return _read_part(source, 0, most)


def _read_part(source: ObjectStoragePath, start: int, end: int) -> bytes | None:
    _check_regular(source)
    filesystem = source.fs
    try:
        with explaining(READ, source):
            try:
                # In one piece, and by its bounds: without them, or with a file object, some stores trust a listing
                # that another process has made stale.
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
    """Whether a file is shorter: a store refuses to read a range of which nothing exists."""
    source.fs.invalidate_cache(source.path)
    facts = source.fs.info(source.path)
    return facts.get("type") == "file" and int(facts.get("size") or 0) < length


def read_json(source: ObjectStoragePath) -> dict[str, Any] | None:
    """Return a JSON object from storage, None where there is no file, or an empty one for a file of something else.

    Raises:
        OSError: If it cannot be read, or is no regular file.
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
    """Return the SHA-256 of a stored file in hexadecimal, or None where there is no file, or a longer one.

    Args:
        source: The file.
        most: How many bytes it may have.
    """
    digest = hashlib.sha256()
    start = 0
    while True:
        end = min(start + _CHUNK_BYTES, most + 1)
        content = _read_part(source, start, end)
        if content is None:
            return None
        digest.update(content)
        start += len(content)
        if start > most:
            return None
        if len(content) < _CHUNK_BYTES and start < end:
            return digest.hexdigest()


def remove_file(target: ObjectStoragePath) -> None:
    """Remove a file from storage, if it is there."""
    with suppress(FileNotFoundError), explaining(DELETE, target):
        target.fs.rm_file(target.path)


def check_replaceable(target: ObjectStoragePath) -> None:
    """Check that no folder, pipe or device has the name that a file is to get.

    Raises:
        FileExistsError: If one has.
    """
    if target.protocol not in LOCAL:
        return
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(Path(target.path).stat().st_mode):
            raise FileExistsError(
                errno.EEXIST, "It is no regular file, so no file takes its place; move it away", str(target)
            )


def _check_regular(source: ObjectStoragePath) -> None:
    """Refuse what never ends or never begins, such as a device or a pipe, before it is opened."""
    if source.protocol not in LOCAL:
        return
    with suppress(FileNotFoundError):
        mode = Path(source.path).stat().st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, "It is a folder; move it away", str(source))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "It is no regular file; move it away", str(source))


@contextmanager
def _replacing(target: ObjectStoragePath, writer: str) -> Iterator[IO[bytes]]:
    """Open a hidden file that takes the place of another one when it is complete."""
    filesystem = target.fs
    check_replaceable(target)
    parent, separator, name = target.path.rpartition("/")
    hidden = f"{parent}{separator}.{name}.{writer}-{uuid.uuid4().hex}.part"
    try:
        with filesystem.open(hidden, "wb") as stream:
            yield stream
            if target.protocol in LOCAL:
                # It has to survive a machine that loses power, not only a process that is killed.
                stream.flush()
                os.fsync(stream.fileno())
        filesystem.mv(hidden, target.path)
    except BaseException:
        if filesystem.exists(hidden):
            filesystem.rm_file(hidden)
        raise
