"""Opens the user's storage and puts files there whole: a name appears with all of its content, or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import ObjectStoragePath

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
        folder = ObjectStoragePath(output_path)
        _ = folder.fs
    except (ValueError, ImportError) as error:
        raise ValueError(
            f"output_path is {output_path!r}, which Airflow cannot open: {error}. Install the provider of that storage "
            "(for s3:// apache-airflow-providers-amazon[s3fs]), or use a file:// path."
        ) from error
    folder.mkdir(parents=True, exist_ok=True)
    return folder


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
    filesystem = target.fs
    if target.protocol in _STORES_THAT_PUT_WHOLE_OBJECTS:
        filesystem.put_file(str(local), target.path)
        return
    hidden = target.parent / f".{target.name}.{writer}-{uuid.uuid4().hex}.part"
    try:
        filesystem.put_file(str(local), hidden.path)
        if target.protocol in _LOCAL:
            _flush_to_disk(hidden.path)
        filesystem.mv(hidden.path, target.path)
    except BaseException:
        if filesystem.exists(hidden.path):
            filesystem.rm_file(hidden.path)
        raise


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


def put_json(content: Mapping[str, Any], target: ObjectStoragePath, *, writer: str = "") -> None:
    """Put a JSON object into storage, whole; what stood there before is replaced."""
    with tempfile.TemporaryDirectory(prefix="qwenimage-") as scratch:
        local = Path(scratch) / "object.json"
        local.write_text(json.dumps(content, indent=2) + "\n")
        put_file(local, target, writer=writer)


def read_json(source: ObjectStoragePath) -> dict[str, Any] | None:
    """Return a JSON object from storage, None where there is no file, or an empty one for a file of something else."""
    try:
        content = json.loads(source.fs.cat_file(source.path))
    except FileNotFoundError:
        return None
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def sha256_of(source: ObjectStoragePath) -> str | None:
    """Return the SHA-256 of a stored file in hexadecimal, or None where there is no file."""
    try:
        # In one piece: file objects of some stores trust a listing that another process has made stale.
        content = source.fs.cat_file(source.path)
    except FileNotFoundError:
        return None
    return hashlib.sha256(content).hexdigest()


def remove_file(target: ObjectStoragePath) -> None:
    """Remove a file from storage, if it is there."""
    try:
        target.fs.rm_file(target.path)
    except FileNotFoundError:
        return


def _flush_to_disk(path: str) -> None:
    """Have a file survive a machine that loses power, not only a process that is killed."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
