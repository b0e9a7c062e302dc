"""A list on disk, read by index."""

from __future__ import annotations

import os
import tracemalloc
from contextlib import closing
from pathlib import Path

import pytest

from airflow_provider_qwenimage.batch.spool import Spool


def test_rows_come_back_by_their_number_in_any_order() -> None:
    with closing(Spool()) as spool:
        for number in range(100):
            spool.append({"prompt": f"Füchse {number}\n"})
        assert len(spool) == 100
        assert [spool.get(number) for number in (99, 0, 50)] == [{"prompt": f"Füchse {n}\n"} for n in (99, 0, 50)]


def test_a_row_may_be_missing_or_replaced() -> None:
    with closing(Spool()) as spool:
        spool[3] = {"a": 1}
        spool[1] = {"b": 2}
        spool[3] = {"a": 3}
        assert [spool.get(number) for number in range(5)] == [None, {"b": 2}, None, {"a": 3}, None]


def test_closing_a_spool_removes_its_file(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.append({})
    spool.close()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="closed"):
        spool.append({})


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether the disk is full: the last entry counts."""
    is_full = [False]
    write = os.pwrite

    def pwrite(descriptor: int, data: bytes, offset: int) -> int:
        if is_full[-1]:
            # The rest of a block may still fit.
            write(descriptor, data[:3], offset)
            raise OSError(28, "No space left on device")
        return write(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    return is_full


def test_a_full_disk_loses_no_row_of_a_spool_that_must_survive_it(full_disk: list[bool]) -> None:
    with closing(Spool(survives_full_disk=True)) as spool:
        spool.append({"row": 0})
        full_disk.append(True)
        spool[2] = {"row": 2, "task_id": "n43"}
        spool[0] = {"row": "new"}
        full_disk.append(False)
        spool[4] = {"row": 4}
        rows = [{"row": "new"}, None, {"row": 2, "task_id": "n43"}, None, {"row": 4}]
        assert [spool.get(number) for number in range(6)] == [*rows, None]
        spool[2] = {"row": "rewritten"}
        assert spool.get(2) == {"row": "rewritten"}


def test_a_full_disk_is_an_error_for_other_spools(full_disk: list[bool]) -> None:
    with closing(Spool()) as spool:
        spool.append({"row": 0})
        full_disk.append(True)
        with pytest.raises(OSError, match="No space left"):
            spool.append({"row": 1})
        assert (len(spool), spool.get(0)) == (1, {"row": 0})


def test_ten_thousand_rows_take_next_to_no_memory() -> None:
    with closing(Spool()) as spool:
        tracemalloc.start()
        for _ in range(10_000):
            spool.append({"prompt": "x" * 500})
        taken, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert taken < 200_000
