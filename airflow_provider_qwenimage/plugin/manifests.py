"""Reads the rows of a batch from its manifest."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow_provider_qwenimage.contract import MAX_IMAGES
from airflow_provider_qwenimage.plugin.bounded_cache import BoundedCache
from airflow_provider_qwenimage.plugin.bounds import MOST_IMAGES_OF_A_BATCH, json_value, path
from airflow_provider_qwenimage.plugin.image_records import UnreadableXCom
from airflow_provider_qwenimage.plugin.storage_access import (
    RefusedError,
    open_recorded,
    read_file,
    refusing_errors,
    storage_of,
    version_of,
)
from airflow_provider_qwenimage.rules.batch_rows import manifest_name, rows_name

if TYPE_CHECKING:
    from airflow_provider_qwenimage.plugin.image_records import TaskInstance
    from airflow_provider_qwenimage.plugin.time_limits import TimeLimitedReads

Rows = Sequence[Mapping[str, Any]]

# About 100,000 rows.
MOST_BYTES = 100 * 1024 * 1024
MOST_ROWS = MOST_IMAGES_OF_A_BATCH
# Several times the size of a row.
_MOST_ROW_BYTES = 256 * 1024
_MOST_CACHED_MANIFESTS = 16
_MOST_CACHED_BYTES = 256 * 1024 * 1024
# The fields of a row that the gallery needs.
_FIELDS = (
    "status",
    "prompt",
    "size",
    "seed",
    "output_format",
    "label",
    "task_id",
    "paths",
    "image_urls",
    "consumed_credits",
    "reused",
    "error",
    "message",
    "stored_at",
    "writer",
)


@dataclass(frozen=True)
class _Manifest:
    """The content of a file.

    Attributes:
        version: A value that changes when the file does.
        size: The size of the file in bytes.
        is_cut: Whether the file has more rows.
    """

    version: object
    rows: Rows
    size: int
    is_cut: bool


_cache: BoundedCache[_Manifest] = BoundedCache(
    lambda manifest: manifest.size, most_weight=_MOST_CACHED_BYTES, most_values=_MOST_CACHED_MANIFESTS
)


def read_rows(
    task: TaskInstance, xcoms: Mapping[str, Any], reads: TimeLimitedReads, deadline: float | None = None
) -> tuple[Rows, str | None]:
    """Return the rows of a batch's manifest, or while the batch runs those listed so far.

    Args:
        task: The task instance of the batch.
        xcoms: What it pushed, by key, including the paths of these files.
        deadline: When all reads of the page must have ended; see `TimeLimitedReads.run`.

    Returns:
        The rows, and why some or all are missing, as a sentence for the page, or None.
    """
    # It is the hash of all that names the task: not for each of the rows.
    writer = task.writer
    progress = xcoms.get("progress")
    listed = progress.get("rows") if isinstance(progress, Mapping) else None
    manifest = xcoms.get("manifest")
    if isinstance(manifest, str):
        recorded, name = path(manifest), manifest_name(task.map_index, task.iteration)
    elif isinstance(listed, str):
        recorded, name = path(listed), rows_name(writer)
    else:
        return (), next((value.reason for value in (manifest, progress) if isinstance(value, UnreadableXCom)), None)
    if recorded is None:
        return (), "The recorded path is not one that this package records."
    try:
        found = reads.run(task.dag_id, storage_of(recorded), lambda: _read(recorded, name), deadline)
    except RefusedError as refusal:
        return (), str(refusal)
    own = [row for row in found.rows if row.get("writer") == writer]
    if found.rows and not own:
        return (), (
            "A later batch replaced the manifest of this one. To keep the images of each run in the gallery, give each "
            "run its own folder, for example with {{ ds }} in output_path."
        )
    return own, f"{name} has more than {MOST_ROWS:,} rows; only the first ones are shown." if found.is_cut else None


def _read(recorded: str, name: str) -> _Manifest:
    file = open_recorded(recorded)
    if file.name != name:
        raise RefusedError(f"The recorded path is that of {file.name}; this task writes {name}.")
    content = None
    with refusing_errors(file, recorded), suppress(FileNotFoundError):
        version = version_of(file)
        cached = _cache.get(recorded)
        if cached is not None and cached.version == version:
            return cached
        content = read_file(file, MOST_BYTES)
    if content is None:
        raise RefusedError(f"{file.name} no longer exists.")
    if len(content) > MOST_BYTES:
        raise RefusedError(f"{file.name} is larger than {MOST_BYTES // 2**20} MiB, the limit of the gallery.")
    rows, is_cut = _parsed(content)
    manifest = _Manifest(version, rows, len(content), is_cut)
    _cache.put(recorded, manifest)
    return manifest


def _parsed(content: bytes) -> tuple[Rows, bool]:
    """Return the rows of a manifest, limited to what is shown, and whether there are more."""
    # Invalid lines count as well, because a file may have a hundred million of them.
    with io.BytesIO(content) as lines:
        rows = [_row(line) for line in itertools.islice(lines, MOST_ROWS)]
        is_cut = bool(lines.read(1))
    return [row for row in rows if row], is_cut


def _row(line: bytes) -> Mapping[str, Any] | None:
    if len(line.rstrip(b"\n")) > _MOST_ROW_BYTES:
        return None
    try:
        row = json.loads(line) if line.strip() else None
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict):
        return None
    # All rows of a manifest are in memory, so a row is limited to as many images as the package accepts of an answer.
    fields = {name: row[name] for name in _FIELDS if name in row}
    limited = {name: value[:MAX_IMAGES] if isinstance(value, list) else value for name, value in fields.items()}
    return {name: json_value(value) for name, value in limited.items()}
