"""Opens the user's storage and puts files there whole: a name appears with all of its content, or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import ObjectStoragePath

_URL = re.compile(r"[a-z][a-z0-9+.-]+:/", re.IGNORECASE)
_IMAGE_FILE = re.compile(r"\.(jpe?g|png|webp|gif)/?$", re.IGNORECASE)
# An object appears in these stores only once its upload is complete; elsewhere a rename does that.
_STORES_THAT_PUT_WHOLE_OBJECTS = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "adl", "az", "wasb", "wasbs"})
_LOCAL = frozenset({"file", "local", ""})


def open_output_path(output_path: str) -> ObjectStoragePath:
    """Return the folder for images, made where it did not exist.

    Call it before a submission: storage that cannot be reached should fail before anything is paid. Looks
    connections up, so call it while a task runs, never while a DAG is parsed.

    Args:
        output_path: A folder, as a path or a URL that Airflow's object storage knows (``file:///data``,
            ``s3://aws_default@bucket/images``, …).

    Raises:
        ValueError: If it is empty, names an image file, or no file system is installed for its scheme.
    """
    from airflow.providers.common.compat.sdk import ObjectStoragePath

    check_output_path(output_path)
    try:
        folder = ObjectStoragePath(output_path if _URL.match(output_path) else str(_absolute(output_path)))
        _ = folder.fs
    except (ValueError, ImportError) as error:
        raise ValueError(
            f"output_path is {output_path!r}, which Airflow cannot open: {error}. Install the provider of that storage "
            "(for s3:// apache-airflow-providers-amazon[s3fs]), or use a file:// path."
        ) from error
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _absolute(path: str) -> Path:
    """Return where a plain path leads: some versions of Airflow take a relative one for one at the root."""
    return Path(path).expanduser().absolute()


def check_output_path(output_path: object) -> None:
    """Check the text of an `output_path` without opening anything.

    Raises:
        ValueError: If it is not a text, empty, or names an image file.
    """
    if not isinstance(output_path, str) or not output_path.strip():
        raise ValueError(f"output_path is {output_path!r}; allowed is the path or URL of a folder.")
    if _IMAGE_FILE.search(output_path):
        raise ValueError(
            f"output_path is {output_path!r}, which looks like an image file; allowed is the path or URL of a folder. "
            "The file's own name is made from the request."
        )


def writer_of(made_by: Mapping[str, Any]) -> str:
    """Return a name for the Airflow task that writes: the same in each of its tries.

    Args:
        made_by: What tells of the task: at least `dag_id`, `run_id`, `task_id` and `map_index`, or nothing.
    """
    identity = json.dumps([made_by.get(name) for name in ("dag_id", "run_id", "task_id", "map_index")])
    return hashlib.sha256(identity.encode()).hexdigest()[:16]


def put_file(local: Path, target: ObjectStoragePath, *, writer: str = "") -> None:
    """Put a local file into storage, whole; what stood there before is replaced.

    Args:
        local: The file on this machine.
        target: Its final name.
        writer: Who writes, for `remove_leftovers`; see `writer_of`.
    """
    if target.protocol in _STORES_THAT_PUT_WHOLE_OBJECTS:
        target.fs.put_file(str(local), target.path)
        return
    with local.open("rb") as source, _replacing(target, writer) as stream:
        shutil.copyfileobj(source, stream)


def put_bytes(content: bytes, target: ObjectStoragePath, *, writer: str = "") -> None:
    """Put a file into storage, whole; what stood there before is replaced.

    Args:
        content: All of its bytes.
        target: Its final name.
        writer: Who writes, for `remove_leftovers`; see `writer_of`.
    """
    if target.protocol in _STORES_THAT_PUT_WHOLE_OBJECTS:
        target.fs.pipe_file(target.path, content)
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
    if folder.protocol in _STORES_THAT_PUT_WHOLE_OBJECTS:
        return
    left = re.compile(rf"\..*\.{re.escape(writer)}-[0-9a-f]{{32}}\.part")
    for file in folder.iterdir():
        if left.fullmatch(file.name):
            remove_file(file)


def read_bytes(source: ObjectStoragePath) -> bytes | None:
    """Return all of a stored file, or None where there is no file."""
    try:
        # In one piece: file objects of some stores trust a listing that another process has made stale.
        content: bytes = source.fs.cat_file(source.path)
    except FileNotFoundError:
        return None
    return content


def read_json(source: ObjectStoragePath) -> dict[str, Any] | None:
    """Return a JSON object from storage, None where there is no file, or an empty one for a file of something else."""
    written = read_bytes(source)
    if written is None:
        return None
    try:
        content = json.loads(written)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def sha256_of(source: ObjectStoragePath) -> str | None:
    """Return the SHA-256 of a stored file in hexadecimal, or None where there is no file."""
    content = read_bytes(source)
    return None if content is None else hashlib.sha256(content).hexdigest()


def remove_file(target: ObjectStoragePath) -> None:
    """Remove a file from storage, if it is there."""
    try:
        target.fs.rm_file(target.path)
    except FileNotFoundError:
        return


@contextmanager
def _replacing(target: ObjectStoragePath, writer: str) -> Iterator[IO[bytes]]:
    """Open a hidden file that takes the place of another one when it is complete."""
    filesystem = target.fs
    parent, separator, name = target.path.rpartition("/")
    hidden = f"{parent}{separator}.{name}.{writer}-{uuid.uuid4().hex}.part"
    try:
        with filesystem.open(hidden, "wb") as stream:
            yield stream
            if target.protocol in _LOCAL:
                # It has to survive a machine that loses power, not only a process that is killed.
                stream.flush()
                os.fsync(stream.fileno())
        filesystem.mv(hidden, target.path)
    except BaseException:
        if filesystem.exists(hidden):
            filesystem.rm_file(hidden)
        raise
