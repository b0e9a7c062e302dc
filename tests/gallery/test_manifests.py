"""Manifests and images are read within limits of bytes, rows and memory."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_qwenimage.contract import MAX_IMAGES
from airflow_provider_qwenimage.plugin import manifests
from airflow_provider_qwenimage.plugin.image_records import ImageRecord, Status, TaskInstance
from airflow_provider_qwenimage.plugin.manifests import read_rows
from airflow_provider_qwenimage.plugin.storage_access import RefusedError
from airflow_provider_qwenimage.plugin.stored_images import read_image, read_sidecar
from airflow_provider_qwenimage.plugin.time_limits import TimeLimitedReads
from airflow_provider_qwenimage.rules.made_by import writer_of

KEY_FIELDS = {"dag_id": "foxes", "run_id": "r", "task_id": "draw", "map_index": -1}
TASK = TaskInstance(**KEY_FIELDS, state="success", operator=None, try_number=1, changed_at=None)
ROW = {"row": 1, "status": "SUCCESS", "prompt": "A fox", "writer": writer_of(KEY_FIELDS)}
READS = TimeLimitedReads(100)


def rows_of(folder: Path, *lines: bytes) -> tuple[Any, str | None]:
    file = folder / "manifest.jsonl"
    file.write_bytes(b"\n".join(lines))
    return read_rows(TASK, {"manifest": str(file)}, READS)


def peak_of(function: Callable[[], Any]) -> int:
    """Return the peak memory of a function in bytes, even if it refuses."""
    tracemalloc.start()
    try:
        function()
    except RefusedError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peak


def test_one_bad_row_hides_no_other(tmp_path: Path) -> None:
    good = json.dumps(ROW).encode()
    bad = [b"[" * 100_000, b"1" * 5000, b"\xff\xfe", b'{"a": NaN', b"null", b'"x"', b"[]", b"{}", b" " * 300_000]
    rows, problem = rows_of(tmp_path, good, *bad, good)
    assert (len(rows), problem) == (2, None)


def test_an_overlong_line_is_skipped(tmp_path: Path) -> None:
    long = json.dumps(ROW | {"prompt": 10**6 * "x"}).encode()
    rows, _ = rows_of(tmp_path, json.dumps(ROW).encode(), long)
    assert len(rows) == 1


def test_rows_are_limited_to_the_fields_that_are_shown(tmp_path: Path) -> None:
    odd = ROW | {"prompt": 200_000 * "x", "more": 1000 * ["y"], "paths": 5000 * ["/a"], "seed": 10**31}
    ((row,), _) = rows_of(tmp_path, json.dumps(odd).encode())
    assert len(json.dumps(row)) < 5000
    assert "more" not in row
    assert row["paths"] == MAX_IMAGES * ["/a"]


def test_the_label_of_a_row_is_read_and_its_text_is_not(tmp_path: Path) -> None:
    ((row,), _) = rows_of(tmp_path, json.dumps(ROW | {"label": "red", "text": 10_000 * "x"}).encode())
    assert (row["label"], "text" in row) == ("red", False)


def test_rows_beyond_the_limit_are_not_read_and_the_page_reports_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifests, "MOST_ROWS", 10)
    rows, problem = rows_of(tmp_path, *[json.dumps(ROW).encode()] * 11)
    assert len(rows) == 10
    assert "more than 10 rows" in str(problem)
    assert rows_of(tmp_path, *[json.dumps(ROW).encode()] * 10)[1] is None


@pytest.mark.parametrize("line", [b"", b"{", b"[]"])
def test_invalid_lines_count_toward_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: bytes) -> None:
    """A file of 100 MiB may have a hundred million such lines."""
    monkeypatch.setattr(manifests, "MOST_ROWS", 10)
    good = json.dumps(ROW).encode()
    rows, problem = rows_of(tmp_path, good, *[line] * 9, good)
    assert len(rows) == 1
    assert "more than 10 rows" in str(problem)
    assert len(rows_of(tmp_path, good, *[line] * 8, good)[0]) == 2


def test_a_manifest_that_is_too_large_is_not_kept_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifests, "MOST_BYTES", 1024 * 1024)
    file = tmp_path / "manifest.jsonl"
    with file.open("wb") as stream:
        stream.truncate(3 * 1024**3)
    assert "the limit of the gallery" in str(read_rows(TASK, {"manifest": str(file)}, READS)[1])
    assert peak_of(lambda: read_rows(TASK, {"manifest": str(file)}, READS)) < 8 * 1024 * 1024


def test_no_more_memory_is_taken_for_an_image_than_its_sidecar_says(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    with file.open("wb") as stream:
        stream.truncate(3 * 1024**3)
    record = ImageRecord(task=TASK, status=Status.DONE, state="success", path=str(file), image_task_id="n43")
    sidecar = {"sha256": 64 * "0", "size_bytes": 100}
    with pytest.raises(RefusedError, match="changed since the image was verified"):
        read_image(record, sidecar)
    assert peak_of(lambda: read_image(record, sidecar)) < 1024 * 1024
    with file.with_suffix(".json").open("wb") as stream:
        stream.truncate(1024**3)
    assert peak_of(lambda: read_sidecar(record)) < 8 * 1024 * 1024
