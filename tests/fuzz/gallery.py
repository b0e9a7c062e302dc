"""XComs, manifests and sidecars for the gallery, which anybody who can write a DAG can forge."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import sqlite3
import tempfile
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import requests
from hypothesis import strategies as st

from airflow_provider_qwenimage.plugin.task_kinds import OPERATORS, XCOM_KEYS
from airflow_provider_qwenimage.rules.batch_rows import manifest_name, rows_name
from airflow_provider_qwenimage.rules.made_by import writer_of
from tests.fuzz.junk import json_bytes, json_values, mutated

_INSTANCE: dict[str, Any] = {"dag_id": "foxes", "run_id": "manual__1", "task_id": "draw", "map_index": -1}
_WRITER = writer_of(_INSTANCE)
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
    "candidates": [_REQUEST | {"task_id": "n43abcqwenimg", "path": "/images/a-fox.jpg", "label": "Fox"}],
    "question": {"at_least": 1, "at_most": None, "deadline": 1_795_000_000.0, "problem": None},
    "verdict": {"chosen": [1], "by": {"id": "7", "name": "Ann"}, "at": "2026-11-25T08:00:00Z", "timed_out": False},
}
_ROW = _REQUEST | _RETURNED | {"writer": _WRITER, "stored_at": "2026-11-25T08:00:00+00:00"}
_SIDECAR = {
    "image": _IMAGE,
    "task_id": "n43abcqwenimg",
    "sha256": hashlib.sha256(_CONTENT).hexdigest(),
    "size_bytes": len(_CONTENT),
    "made_by": _INSTANCE,
    "request": _REQUEST,
    "image_urls": ["https://cdn.example/1.jpeg"],
    "verdicts": [{"chosen": True, "by": None, "at": "2026-11-25T08:00:00Z", "timed_out": True, "task": _INSTANCE}],
}
_STATES = (
    None,
    "success",
    "failed",
    "running",
    "deferred",
    "awaiting_input",
    "skipped",
    "upstream_failed",
    "up_for_retry",
    "removed",
)
_MOST_ITEM_BYTES = 64 * 1024
_OK, _SERVER_ERROR = 200, 500
_IDS = itertools.count(1_000_000)


@dataclass(frozen=True)
class Forged:
    """The XComs and files of one task instance.

    Args:
        state: Its state in Airflow.
        operator: The class name of its operator.
        manifest: The content of its manifest and of the file of its rows so far.
        sidecar: The content of the sidecar of its image.
    """

    state: str | None
    operator: str
    xcoms: dict[str, Any]
    manifest: bytes
    sidecar: bytes


@st.composite
def forged(draw: st.DrawFn) -> Forged:
    """Return XComs and files of a task, genuine or forged."""
    xcoms = draw(mutated(_XCOMS))
    if draw(st.integers(0, 4)) == 0:
        xcoms = draw(st.dictionaries(st.sampled_from(XCOM_KEYS), json_values()))
    # The gallery reads no other keys.
    xcoms = {key: value for key, value in xcoms.items() if key in XCOM_KEYS}
    rows = st.one_of(mutated(_ROW), json_values())
    manifest = b"\n".join(draw(st.lists(json_bytes(rows), max_size=4)))
    sidecar = draw(st.one_of(json_bytes(mutated(_SIDECAR)), json_bytes(json_values()), st.binary(max_size=50)))
    operator = draw(st.sampled_from((*OPERATORS, "Derived")))
    return Forged(draw(st.sampled_from(_STATES)), operator, xcoms, manifest, sidecar)


@contextlib.contextmanager
def prepare() -> Iterator[Callable[[Forged], None]]:
    """Yield the check of one task instance, through Airflow's API server and database."""
    from airflow.utils.db import initdb

    from tests.gallery.airflow_server import serving, token

    home = Path(os.environ["AIRFLOW_HOME"])
    initdb()
    with (
        tempfile.TemporaryDirectory(prefix="qwenimage-fuzz-") as name,
        # Rows are inserted directly, because Airflow's models would refuse forged ones.
        contextlib.closing(sqlite3.connect(home / "airflow.db", timeout=60, isolation_level=None)) as database,
        serving(home) as server,
        requests.Session() as session,
    ):
        session.headers["Authorization"] = f"Bearer {token('*')}"
        folder, numbers = Path(name), itertools.count()
        image = folder / _IMAGE
        image.write_bytes(_CONTENT)

        def check(example: Forged) -> None:
            # Each example has its own run, because the gallery caches a run for a moment.
            run_id = f"manual__{next(numbers)}"
            writer = writer_of(_INSTANCE | {"run_id": run_id})
            manifest, listed = folder / manifest_name(-1), folder / rows_name(writer)
            image.with_suffix(".json").write_bytes(example.sidecar)
            for file in (manifest, listed):
                file.write_bytes(example.manifest.replace(_WRITER.encode(), writer.encode()))
            with _stored(database, run_id, example, _with_real_paths(example.xcoms, manifest, listed, image)):
                run = f"{server.url}/qwenimage/dags/foxes/runs/{run_id}"
                for page in (run, f"{run}/tasks/draw"):
                    answer = session.get(f"{page}/data?limit=200", timeout=60)
                    assert answer.status_code == _OK, f"{answer.status_code}: {answer.text[:500]}"
                    shown = answer.json()
                    assert len(answer.content) <= _MOST_ITEM_BYTES * (1 + len(shown["items"]) + len(shown["batches"]))
                    for item in shown["items"][:2]:
                        for address in {item[kind] for kind in ("image", "thumbnail", "details")}:
                            if isinstance(address, str) and address.startswith("/"):
                                sent = session.get(f"{server.url}{address}", timeout=60)
                                assert sent.status_code < _SERVER_ERROR, f"{address}: {sent.status_code}"
                for picture in ("1", "note"):
                    sent = session.get(f"{run}/tasks/draw/candidates/{picture}", timeout=60)
                    assert sent.status_code == _OK, f"{picture}: {sent.status_code}"
            listed.unlink()

        yield check


@contextlib.contextmanager
def _stored(database: sqlite3.Connection, run_id: str, example: Forged, xcoms: dict[str, Any]) -> Iterator[None]:
    """Keep a run with one task instance and its XComs in Airflow's database during the block."""
    run_number = next(_IDS)
    now = datetime.now(UTC).replace(tzinfo=None).isoformat(" ")
    key = {"dag_id": "foxes", "run_id": run_id, "task_id": "draw", "map_index": -1}
    run = {"id": run_number, "dag_id": "foxes", "run_id": run_id, "state": "success", "run_type": "manual"}
    instance = key | {
        "id": uuid.uuid4().hex,
        "state": example.state,
        "operator": example.operator,
        "try_number": 1,
        "start_date": now,
        "updated_at": now,
    }
    _insert(database, "dag_run", run, now)
    _insert(database, "task_instance", instance, now)
    for name, value in xcoms.items():
        # As Airflow writes it, in ASCII.
        _insert(database, "xcom", key | {"dag_run_id": run_number, "key": name, "value": json.dumps(value)}, now)
    try:
        yield
    finally:
        for table in ("xcom", "task_instance", "dag_run"):
            database.execute(f"DELETE FROM {table} WHERE run_id = ?", (run_id,))  # noqa: S608  names of this module


def _insert(database: sqlite3.Connection, table: str, values: dict[str, Any], now: str) -> None:
    """Insert a row, with a placeholder in each other column that requires a value."""
    row = dict(values)
    for _, column, kind, is_required, default, _ in database.execute(f"PRAGMA table_info({table})"):
        if is_required and default is None and column not in row:
            row[column] = now if "TIME" in kind.upper() else 0 if "INT" in kind.upper() else "x"
    names, marks = ", ".join(row), ", ".join("?" * len(row))
    database.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", tuple(row.values()))  # noqa: S608


def _with_real_paths(xcoms: dict[str, Any], manifest: Path, listed: Path, image: Path) -> dict[str, Any]:
    """Return the XComs with the paths of the real files, except where they are forged."""
    found = dict(xcoms)
    if found.get("manifest") == "manifest":
        found["manifest"] = str(manifest)
    if isinstance(found.get("progress"), dict) and found["progress"].get("rows") == "rows":
        found["progress"] = found["progress"] | {"rows": str(listed)}
    if isinstance(found.get("return_value"), dict) and found["return_value"].get("paths") == ["/images/a-fox.jpg"]:
        found["return_value"] = found["return_value"] | {"paths": [str(image)]}
    offered = found.get("candidates")
    if isinstance(offered, list) and offered and offered[0] == _XCOMS["candidates"][0]:
        found["candidates"] = [offered[0] | {"path": str(image)}, *offered[1:]]
    return found
