"""Reads the rows that a batch has listed, from the storage of its images."""

from __future__ import annotations

import json
import logging
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow_provider_qwenimage.batch_totals import manifest_name, rows_name
from airflow_provider_qwenimage.plugin.storage_access import RefusedError, open_recorded
from airflow_provider_qwenimage.storage import read_bytes, writer_of

if TYPE_CHECKING:
    from airflow_provider_qwenimage.plugin.records import TaskInstance

log = logging.getLogger(__name__)

Rows = Sequence[Mapping[str, Any]]

# Some 100,000 rows.
_MOST_BYTES = 100 * 1024 * 1024
_KEPT_MANIFESTS = 16
_MARKS = ("size", "mtime", "ETag", "etag", "LastModified", "last_modified", "updated", "created")

_kept: OrderedDict[str, tuple[object, list[Mapping[str, Any]]]] = OrderedDict()
_lock = threading.Lock()


def read_rows(task: TaskInstance, xcoms: Mapping[str, Any]) -> tuple[Rows, str | None]:
    """Return what a batch has listed: its manifest, or while it runs the rows so far.

    Args:
        task: Its task instance.
        xcoms: What it has pushed, by key: where it has listed them.

    Returns:
        The rows, and why there are none, if that is worth telling.
    """
    writer = writer_of(
        {"dag_id": task.dag_id, "run_id": task.run_id, "task_id": task.task_id, "map_index": task.map_index}
    )
    progress = xcoms.get("progress")
    listed = progress.get("rows") if isinstance(progress, Mapping) else None
    manifest = xcoms.get("manifest")
    try:
        if isinstance(manifest, str):
            rows = _read(manifest, manifest_name(task.map_index))
        elif isinstance(listed, str):
            rows = _read(listed, rows_name(writer))
        else:
            return (), None
    except RefusedError as refusal:
        return (), str(refusal)
    own = [row for row in rows if row.get("writer") == writer]
    if rows and not own:
        return (), (
            "A later batch has put its own manifest in the place of this one's. Give each run a folder of its own to "
            "keep its images in view, for example with {{ ds }} in output_path."
        )
    return own, None


def _read(path: str, name: str) -> list[Mapping[str, Any]]:
    file = open_recorded(path)
    if file.name != name:
        raise RefusedError(f"{file.name} is not {name}, which this task writes.")
    try:
        # A listing that something else in the API server has asked for may be remembered.
        file.fs.invalidate_cache(file.path)
        facts = file.fs.info(file.path)
        if facts.get("size", 0) > _MOST_BYTES:
            raise RefusedError(f"{file.name} has more than {_MOST_BYTES // 2**20} MiB, which is too much to show.")
        # What changes with the file differs between the storages.
        mark = tuple(str(facts.get(name)) for name in _MARKS)
        with _lock:
            kept = _kept.get(path)
        if kept is not None and kept[0] == mark:
            return kept[1]
        rows = _parsed(read_bytes(file, _MOST_BYTES) or b"")
    except FileNotFoundError:
        raise RefusedError(f"{file.name} is not there any more.") from None
    except OSError as error:
        log.warning("Cannot read %s for the gallery: %s", path, error)
        raise RefusedError(f"{file.name} cannot be read by the API server ({type(error).__name__}).") from error
    with _lock:
        _kept[path] = (mark, rows)
        while len(_kept) > _KEPT_MANIFESTS:
            _kept.popitem(last=False)
    return rows


def _parsed(content: bytes) -> list[Mapping[str, Any]]:
    rows: list[Mapping[str, Any]] = []
    for line in content.split(b"\n"):
        try:
            row = json.loads(line) if line.strip() else None
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows
