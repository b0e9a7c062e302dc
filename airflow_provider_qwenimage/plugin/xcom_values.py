"""Reads stored XComs within limits, including those that an XCom backend put into object storage."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from functools import cache, partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import ObjectStoragePath, conf

from airflow_provider_qwenimage.plugin.bounded_cache import BoundedCache
from airflow_provider_qwenimage.plugin.image_records import UnreadableXCom
from airflow_provider_qwenimage.plugin.storage_access import (
    RefusedError,
    open_recorded,
    read_file,
    refusing_errors,
    storage_of,
)
from airflow_provider_qwenimage.rules.choices import CANDIDATES

if TYPE_CHECKING:
    from airflow_provider_qwenimage.plugin.image_records import TaskInstance
    from airflow_provider_qwenimage.plugin.time_limits import TimeLimitedReads

# In stored form: several times what the tasks of this package push.
MOST_BYTES = 256 * 1024
# A list of a thousand candidates is larger.
LARGE_KEYS = (CANDIDATES,)
MOST_BYTES_OF_LARGE = 4 * 1024 * 1024
_MOST_CACHED_CHARACTERS = 32 * 1024 * 1024
_MOST_CACHED_VALUES = 100_000
# The XComs that are JSON objects when they are pushed.
_OBJECTS = frozenset({"request", "error", "progress"})
_TOO_LARGE = UnreadableXCom(
    f"An XCom of this task is larger than {MOST_BYTES // 1024} KiB, or the XComs of its run together exceed the limit "
    "of the gallery."
)
_FOREIGN = UnreadableXCom(
    "The gallery cannot read values from the configured XCom backend. It reads XComs from Airflow's database and from "
    "XComObjectStorageBackend."
)

_cache: BoundedCache[str] = BoundedCache(len, most_weight=_MOST_CACHED_CHARACTERS, most_values=_MOST_CACHED_VALUES)


def read_values(
    task: TaskInstance, stored: Mapping[str, str | None], reads: TimeLimitedReads, deadline: float | None = None
) -> dict[str, Any]:
    """Return the XComs of a task by key, each as it was pushed or as an `UnreadableXCom`.

    Args:
        stored: The XComs as JSON, as Airflow's database has them; None for one that is too large.
        deadline: When all reads of the page must have ended; see `TimeLimitedReads.run`.
    """
    values = {key: _TOO_LARGE if value is None else decoded(value) for key, value in stored.items()}
    backend = _backend()
    if backend == "":
        return values
    for key, value in values.items():
        if isinstance(value, str) and backend is not None and _may_be_a_path(value):
            most = MOST_BYTES_OF_LARGE if key in LARGE_KEYS else MOST_BYTES
            values[key] = _read(task, value, backend, most, partial(reads.run, deadline=deadline))
    if any(isinstance(values.get(key), str) for key in _OBJECTS):
        # The pushed values are elsewhere, and these texts only identify them.
        return {key: _FOREIGN if isinstance(value, str) else value for key, value in values.items()}
    return values


def decoded(value: str) -> Any:
    """Return an XCom as it was pushed; Airflow stores it as JSON, or as JSON in a JSON string."""
    try:
        found = json.loads(value)
        if isinstance(found, str) and found[:1] in ("{", "[", '"'):
            found = json.loads(found)
    except (ValueError, RecursionError):
        return UnreadableXCom("An XCom of this task is not JSON that the gallery can read.")
    return found


@cache
def _backend() -> str | None:
    """Return the path of the object storage backend; "" if no backend is configured, None for another backend."""
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


def _read(task: TaskInstance, value: str, base: str, most: int, run: Callable[..., str | None]) -> Any:
    cached = _cache.get(value)
    if cached is not None and _is_own(task, value, base):
        return decoded(cached)

    def read() -> str | None:
        # The backend records paths as ObjectStoragePath formats them.
        if not any(_is_own(task, value, start) for start in (base, str(ObjectStoragePath(base)).rstrip("/"))):
            return None
        return _content(value, most)

    try:
        content = run(task.dag_id, storage_of(base), read)
    except RefusedError as refusal:
        reason = f"An XCom of this task is in object storage and cannot be read: {refusal}"
        return UnreadableXCom(reason, is_temporary=True)
    if content is None:
        # A text that is not a path of the backend, or the path of another task's value.
        return value
    _cache.put(value, content)
    return decoded(content)


def _is_own(task: TaskInstance, value: str, start: str) -> bool:
    """Whether the backend stores values of this task at a path: any task can push any path."""
    if not value.startswith(f"{start}/"):
        return False
    folders = value[len(start) + 1 :].split("/")[:-1]
    return folders[:1] == [task.dag_id] and task.run_id in folders and task.task_id in folders


def _content(value: str, most: int) -> str:
    from fsspec.compression import compr
    from fsspec.utils import infer_compression

    file = open_recorded(value)
    with refusing_errors(file, value):
        content = read_file(file, most)
        compression = infer_compression(file.name)
        if compression is not None and content is not None and len(content) <= most:
            # Limited when unpacked as well.
            content = compr[compression](io.BytesIO(content), mode="rb").read(most + 1)
    if content is None:
        raise RefusedError(f"{file.name} no longer exists.")
    if len(content) > most:
        raise RefusedError(_TOO_LARGE.reason)
    return content.decode("utf-8", "replace")
