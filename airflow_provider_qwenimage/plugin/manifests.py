"""Reads the rows that a batch has listed, from the storage of its images."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow_provider_qwenimage.contract import MAX_IMAGES
from airflow_provider_qwenimage.plugin.bounds import MOST_IMAGES_OF_A_BATCH, json_value, path
from airflow_provider_qwenimage.plugin.image_records import Unseen
from airflow_provider_qwenimage.plugin.storage_access import (
    RefusedError,
    mark_of,
    open_recorded,
    read_file,
    refusing_what_fails,
    storage_of,
)
from airflow_provider_qwenimage.rules.batch_rows import manifest_name, rows_name
from airflow_provider_qwenimage.rules.made_by import writer_of

if TYPE_CHECKING:
    from airflow_provider_qwenimage.plugin.image_records import TaskInstance
    from airflow_provider_qwenimage.plugin.time_limits import TimeLimitedReads

Rows = Sequence[Mapping[str, Any]]

# Some 100,000 rows.
MOST_BYTES = 100 * 1024 * 1024
MOST_ROWS = MOST_IMAGES_OF_A_BATCH
# More than a row has.
_MOST_ROW_BYTES = 256 * 1024
_KEPT_MANIFESTS = 16
_KEPT_BYTES = 256 * 1024 * 1024
# What the gallery tells of a row, and whose row it is.
_FIELDS = (
    "status",
    "prompt",
    "size",
    "seed",
    "output_format",
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
    """What was read of a file.

    Attributes:
        mark: What changes when the file does.
        rows: Its rows.
        size: How many bytes it has.
        is_cut: Whether it has more rows.
    """

    mark: object
    rows: Rows
    size: int
    is_cut: bool


_kept: OrderedDict[str, _Manifest] = OrderedDict()
_lock = threading.Lock()


def read_rows(
    task: TaskInstance, xcoms: Mapping[str, Any], reads: TimeLimitedReads, deadline: float | None = None
) -> tuple[Rows, str | None]:
    """Return what a batch has listed: its manifest, or while it runs the rows so far.

    Args:
        task: Its task instance.
        xcoms: What it has pushed, by key: where it has listed them.
        reads: What reads storage.
        deadline: When all reads of the page must have ended; see `TimeLimitedReads.run`.

    Returns:
        The rows, and why there are none, or not all, if that is worth telling.
    """
    writer = writer_of(
        {"dag_id": task.dag_id, "run_id": task.run_id, "task_id": task.task_id, "map_index": task.map_index}
    )
    progress = xcoms.get("progress")
    listed = progress.get("rows") if isinstance(progress, Mapping) else None
    manifest = xcoms.get("manifest")
    if isinstance(manifest, str):
        recorded, name = path(manifest), manifest_name(task.map_index)
    elif isinstance(listed, str):
        recorded, name = path(listed), rows_name(writer)
    else:
        return (), next((value.reason for value in (manifest, progress) if isinstance(value, Unseen)), None)
    if recorded is None:
        return (), "The recorded path is not one that a task of this package records."
    try:
        found = reads.run(task.dag_id, storage_of(recorded), lambda: _read(recorded, name), deadline)
    except RefusedError as refusal:
        return (), str(refusal)
    own = [row for row in found.rows if row.get("writer") == writer]
    if found.rows and not own:
        return (), (
            "A later batch has put its own manifest in the place of this one's. Give each run a folder of its own to "
            "keep its images in view, for example with {{ ds }} in output_path."
        )
    return own, f"{name} has more than {MOST_ROWS:,} rows; the first of them are shown." if found.is_cut else None


def _read(recorded: str, name: str) -> _Manifest:
    file = open_recorded(recorded)
    if file.name != name:
        raise RefusedError(f"{file.name} is not {name}, which this task writes.")
    content = None
    with refusing_what_fails(file, recorded), suppress(FileNotFoundError):
        mark = mark_of(file)
        with _lock:
            kept = _kept.get(recorded)
        if kept is not None and kept.mark == mark:
            return kept
        content = read_file(file, MOST_BYTES)
    if content is None:
        raise RefusedError(f"{file.name} is not there any more.")
    if len(content) > MOST_BYTES:
        raise RefusedError(f"{file.name} has more than {MOST_BYTES // 2**20} MiB, which is too much to show.")
    rows, is_cut = _parsed(content)
    read = _Manifest(mark, rows, len(content), is_cut)
    with _lock:
        _kept[recorded] = read
        while len(_kept) > _KEPT_MANIFESTS or sum(each.size for each in _kept.values()) > _KEPT_BYTES:
            _kept.popitem(last=False)
    return read


def _parsed(content: bytes) -> tuple[Rows, bool]:
    """Return the rows of a manifest, cut to what is shown of them, and whether there are more."""
    rows: list[Mapping[str, Any]] = []
    start = lines = 0
    while start < len(content):
        # Those that are no rows count as well: there may be a hundred million of them.
        if lines == MOST_ROWS:
            return rows, True
        lines += 1
        end = content.find(b"\n", start)
        end = len(content) if end < 0 else end
        if end - start <= _MOST_ROW_BYTES and (row := _row(content[start:end])):
            rows.append(row)
        start = end + 1
    return rows, False


def _row(line: bytes) -> Mapping[str, Any] | None:
    try:
        row = json.loads(line) if line.strip() else None
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict):
        return None
    # No more images of a row than the package reads of an answer: all rows of a manifest are kept.
    shown = {name: its[:MAX_IMAGES] if isinstance(its := row[name], list) else its for name in _FIELDS if name in row}
    return {name: json_value(its) for name, its in shown.items()}
