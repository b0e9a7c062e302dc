"""Reads XComs as they are stored: within bounds, also those that an XCom backend has put into object storage."""

from __future__ import annotations

import io
import json
import threading
from collections import OrderedDict
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import conf

from airflow_provider_qwenimage.plugin.image_records import Unseen
from airflow_provider_qwenimage.plugin.storage_access import (
    RefusedError,
    open_recorded,
    read_file,
    refusing_what_fails,
    storage_of,
)

if TYPE_CHECKING:
    from airflow_provider_qwenimage.plugin.image_records import TaskInstance
    from airflow_provider_qwenimage.plugin.time_limits import TimeLimitedReads

# As it is stored: several times what the tasks of this package push.
MOST_BYTES = 256 * 1024
_KEPT_CHARACTERS = 32 * 1024 * 1024
_OBJECTS = frozenset({"request", "error", "progress"})
_TOO_LARGE = Unseen(
    f"An XCom of this task has more than {MOST_BYTES // 1024} KiB, or those of its run are too many, which is too much "
    "to show."
)
_FOREIGN = Unseen(
    "The XCom backend of this Airflow stores values where the gallery does not look; it reads those in Airflow's "
    "database, and those that XComObjectStorageBackend stores."
)

_kept: OrderedDict[str, str] = OrderedDict()
_lock = threading.Lock()


def read_values(
    task: TaskInstance, stored: Mapping[str, str | None], reads: TimeLimitedReads, deadline: float | None = None
) -> dict[str, Any]:
    """Return what a task has pushed, by key; `Unseen` for what cannot be read here.

    Args:
        task: Its task instance.
        stored: The XComs as JSON, as Airflow's database has them; None for one that is too large.
        reads: What reads storage.
        deadline: When all reads of the page must have ended; see `TimeLimitedReads.run`.
    """
    values = {key: _TOO_LARGE if value is None else decoded(value) for key, value in stored.items()}
    backend = _backend()
    if backend == "":
        return values
    for key, value in values.items():
        if isinstance(value, str) and backend is not None and _may_be_a_path(value):
            values[key] = _read(task, value, backend, reads, deadline)
    if any(isinstance(values.get(key), str) for key in _OBJECTS):
        # Then texts are not what was pushed, but where the backend has it.
        return {key: _FOREIGN if isinstance(value, str) else value for key, value in values.items()}
    return values


def decoded(value: str) -> Any:
    """Return an XCom as it was pushed; Airflow stores it as JSON, or as a text of JSON."""
    try:
        found = json.loads(value)
        if isinstance(found, str) and found[:1] in ("{", "[", '"'):
            found = json.loads(found)
    except (ValueError, RecursionError):
        return Unseen("An XCom of this task is no JSON that can be shown.")
    return found


@cache
def _backend() -> str | None:
    """Return where the object storage backend stores values; "" without a backend, None with another one."""
    name = conf.get("core", "xcom_backend", fallback="") or "BaseXCom"
    module, _, class_name = name.rpartition(".")
    if class_name == "BaseXCom":
        return ""
    try:
        backend = getattr(import_module(module), class_name)
    except (ImportError, AttributeError, ValueError):
        return None
    kinds = {f"{kind.__module__}.{kind.__name__}" for kind in backend.__mro__}
    if "airflow.providers.common.io.xcom.backend.XComObjectStorageBackend" in kinds:
        return str(conf.get("common.io", "xcom_objectstorage_path", fallback="") or "").rstrip("/") or None
    return None


def _may_be_a_path(value: str) -> bool:
    return "/" in value and len(value) <= MOST_BYTES


def _read(task: TaskInstance, value: str, base: str, reads: TimeLimitedReads, deadline: float | None) -> Any:
    with _lock:
        kept = _kept.get(value)
    if kept is not None and _is_own(task, value, base):
        return decoded(kept)

    def read() -> str | None:
        from airflow.providers.common.compat.sdk import ObjectStoragePath

        # Spelt as the backend spells what it stores.
        if not any(_is_own(task, value, start) for start in (base, str(ObjectStoragePath(base)).rstrip("/"))):
            return None
        return _content(value)

    try:
        content = reads.run(task.dag_id, storage_of(base), read, deadline)
    except RefusedError as refusal:
        return Unseen(f"An XCom of this task is in object storage, and cannot be read: {refusal}", may_come=True)
    if content is None:
        # A text like any other, or the path of somebody else's.
        return value
    with _lock:
        _kept[value] = content
        while sum(map(len, _kept.values())) > _KEPT_CHARACTERS:
            _kept.popitem(last=False)
    return decoded(content)


def _is_own(task: TaskInstance, value: str, start: str) -> bool:
    """Whether a path is where the backend stores what this task pushes: anybody can push a path."""
    if not value.startswith(f"{start}/"):
        return False
    folders = value[len(start) + 1 :].split("/")[:-1]
    return folders[:1] == [task.dag_id] and task.run_id in folders and task.task_id in folders


def _content(value: str) -> str:
    from fsspec.compression import compr
    from fsspec.utils import infer_compression

    file = open_recorded(value)
    with refusing_what_fails(file, value):
        content = read_file(file, MOST_BYTES)
        compression = infer_compression(file.name)
        if compression is not None and content is not None and len(content) <= MOST_BYTES:
            # However much it unpacks to.
            content = compr[compression](io.BytesIO(content), mode="rb").read(MOST_BYTES + 1)
    if content is None:
        raise RefusedError(f"{file.name} is not there any more.")
    if len(content) > MOST_BYTES:
        raise RefusedError(_TOO_LARGE.reason)
    return content.decode("utf-8", "replace")
