"""A list on disk, read by index."""

from __future__ import annotations

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


def test_ten_thousand_rows_take_next_to_no_memory() -> None:
    with closing(Spool()) as spool:
        tracemalloc.start()
        for _ in range(10_000):
            spool.append({"prompt": "x" * 500})
        taken, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert taken < 200_000
