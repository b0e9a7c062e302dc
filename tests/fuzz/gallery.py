"""XComs, manifests and sidecars as the gallery reads them: anybody who can write a DAG can forge them."""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from airflow_provider_qwenimage.batch_totals import manifest_name, rows_name
from airflow_provider_qwenimage.plugin.records import OPERATORS, XCOM_KEYS, TaskInstance, with_waits
from airflow_provider_qwenimage.storage import writer_of
from tests.fuzz.junk import json_bytes, json_values, mutated

_PLACE: dict[str, Any] = {"dag_id": "foxes", "run_id": "manual__1", "task_id": "draw", "map_index": -1}
_WRITER = writer_of(_PLACE)
_IMAGE = "a-fox.jpg"
_CONTENT = b"not an image"
_REQUEST = {"prompt": "A fox", "size": "1024*1024", "seed": 7, "output_format": "jpeg"}
_RETURNED = {
    "task_id": "n43abcqwenimg",
    "status": "SUCCESS",
    "image_urls": ["https://cdn.example/1.jpeg"],
    "paths": ["/images/a-fox.jpg"],
    "consumed_credits": 5,
    "seed": 7,
    "reused": False,
}
_XCOMS: dict[str, Any] = {
    "request": _REQUEST,
    "task_id": "n43abcqwenimg",
    "return_value": _RETURNED,
    "consumed_credits": 5,
    "error": {"error": "QwenImageTimeoutError", "message": "too late"},
    "progress": {"requests": 2, "done": 1, "failed": 0, "in_flight": 1, "consumed_credits": 5, "rows": "rows"},
    "manifest": "manifest",
}
_ROW = _REQUEST | _RETURNED | {"writer": _WRITER, "stored_at": "2026-11-25T08:00:00+00:00"}
_SIDECAR = {
    "image": _IMAGE,
    "task_id": "n43abcqwenimg",
    "sha256": hashlib.sha256(_CONTENT).hexdigest(),
    "size_bytes": len(_CONTENT),
    "made_by": _PLACE,
    "request": _REQUEST,
    "image_urls": ["https://cdn.example/1.jpeg"],
}
_STATES = (None, "success", "failed", "running", "deferred", "skipped", "upstream_failed", "up_for_retry", "removed")
_MOST_ITEM_BYTES = 64 * 1024


@dataclass(frozen=True)
class Forged:
    """What one task instance left behind, and what stands in storage.

    Args:
        state: Airflow's state of it.
        operator: The name of its operator's class.
        xcoms: What it pushed, by key.
        manifest: What is in its manifest, or in the file of its rows so far.
        sidecar: What is beside its image.
    """

    state: str | None
    operator: str
    xcoms: dict[str, Any]
    manifest: bytes
    sidecar: bytes


@st.composite
def forged(draw: st.DrawFn) -> Forged:
    """Return what a task may have left, honest or not."""
    xcoms = draw(mutated(_XCOMS))
    if draw(st.integers(0, 4)) == 0:
        xcoms = draw(st.dictionaries(st.sampled_from(XCOM_KEYS), json_values()))
    rows = st.one_of(mutated(_ROW), json_values())
    manifest = b"\n".join(draw(st.lists(json_bytes(rows), max_size=4)))
    sidecar = draw(st.one_of(json_bytes(mutated(_SIDECAR)), json_bytes(json_values()), st.binary(max_size=50)))
    operator = draw(st.sampled_from((*OPERATORS, "Derived")))
    return Forged(draw(st.sampled_from(_STATES)), operator, xcoms, manifest, sidecar)


@contextlib.contextmanager
def prepare() -> Iterator[Callable[[Forged], None]]:
    """Yield the check of one task instance."""
    from starlette.requests import Request

    from airflow_provider_qwenimage.plugin import app, runs, stored_images
    from airflow_provider_qwenimage.plugin.storage_access import RefusedError

    request = Request({"type": "http", "root_path": "/qwenimage", "headers": [], "method": "GET", "path": "/"})
    window = app._read_window(limit=200)
    with tempfile.TemporaryDirectory(prefix="qwenimage-fuzz-") as name:
        folder = Path(name)
        manifest, listed = folder / manifest_name(-1), folder / rows_name(_WRITER)
        image = folder / _IMAGE
        image.write_bytes(_CONTENT)

        def check(left: Forged) -> None:
            for file in (manifest, listed):
                file.write_bytes(left.manifest)
            image.with_suffix(".json").write_bytes(left.sidecar)
            task = TaskInstance(
                **_PLACE, state=left.state, operator=left.operator, try_number=1, changed_at="2026-11-25T08:00:00+00:00"
            )
            read = runs._records(task, _in_storage(left.xcoms, manifest, listed, image))
            images = with_waits(read.images)
            shown = app._listing(request, window, type(read)(images, read.batches), is_active=True)
            assert len(shown.body) <= _MOST_ITEM_BYTES * (1 + min(200, len(images)) + len(read.batches))
            for record in images:
                record.matches("done", ["fox"])
                if record.path != str(image):
                    continue
                with contextlib.suppress(RefusedError):
                    stored_images.read_image(record, stored_images.read_sidecar(record, lambda _: True))

        yield check


def _in_storage(xcoms: dict[str, Any], manifest: Path, listed: Path, image: Path) -> dict[str, Any]:
    """Return the XComs with the paths of what is really in storage, wherever they were left honest."""
    found = dict(xcoms)
    if found.get("manifest") == "manifest":
        found["manifest"] = str(manifest)
    if isinstance(found.get("progress"), dict) and found["progress"].get("rows") == "rows":
        found["progress"] = found["progress"] | {"rows": str(listed)}
    if isinstance(found.get("return_value"), dict) and found["return_value"].get("paths") == ["/images/a-fox.jpg"]:
        found["return_value"] = found["return_value"] | {"paths": [str(image)]}
    return found
