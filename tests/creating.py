"""Creates files one after the other, for processes that do so at the same time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from airflow_provider_qwenimage.storage import files as storage
from airflow_provider_qwenimage.storage.paths import open_output_path


def create_each(writer: str, files: Sequence[Path], number_of_writers: int) -> list[bool]:
    """Create each file, at the same time as the other writers.

    Returns:
        For each file, whether this writer created it.
    """
    created = []
    for file in files:
        target = open_output_path(f"file://{file.parent}") / file.name
        file.with_name(f".{file.stem}-{writer}.ready").touch()
        while len(list(file.parent.glob(f".{file.stem}-*.ready"))) < number_of_writers:
            time.sleep(0.0005)
        created.append(storage.create_json({"by": writer, "filler": "x" * 2000}, target))
    return created
