"""Stores images under the same name, one after the other, for processes that do so at the same time."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from airflow_provider_qwenimage.contract import GenerateRequest, TaskSnapshot
from airflow_provider_qwenimage.rules.image_identity import ImageIdentity
from airflow_provider_qwenimage.storage import image_pairs, images
from airflow_provider_qwenimage.storage.paths import open_output_path


def store_each(
    snapshots: Sequence[Mapping[str, Any]], request: GenerateRequest, folders: Sequence[Path], number_of_writers: int
) -> list[str]:
    """Store each snapshot's image in its folder, at the same time as the other writers.

    Returns:
        The final path of each.
    """
    # A shorter pause, because writing to a local disk is fast.
    image_pairs._PUT_PAUSE_SECONDS = 0.5
    paths = []
    for data, folder in zip(snapshots, folders, strict=True):
        snapshot = TaskSnapshot.from_data(data)
        target = open_output_path(f"file://{folder}")
        (folder / f".{snapshot.task_id}.ready").touch()
        while len(list(folder.glob(".*.ready"))) < number_of_writers:
            time.sleep(0.001)
        paths += [file.path for file in images.save_images(snapshot, ImageIdentity(request), target)]
    return paths
