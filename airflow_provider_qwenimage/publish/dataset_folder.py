"""Checks that the folder of a batch can be a dataset, and stores the ``metadata.jsonl`` that makes it one."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_provider_qwenimage.publish.imagefolder import (
    FIRST_LINE_BYTES,
    METADATA_NAME,
    OTHER_METADATA_NAMES,
    has_split_word,
    is_metadata,
    metadata_line,
    metadata_records,
)
from airflow_provider_qwenimage.rules.made_by import is_mapped, iteration_in, writer_of
from airflow_provider_qwenimage.storage.files import check_own, check_replaceable, create_json, put_file, read_beginning

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import ObjectStoragePath

log = logging.getLogger(__name__)


def check_dataset(folder: ObjectStoragePath) -> None:
    """Check that a dataset replaces nothing but a dataset of this package, and that the folder can be loaded.

    Raises:
        ValueError: If it would replace another file, or another file would keep `datasets` from loading the folder.
        OSError: If a file cannot be read, or something other than a file has that name.
    """
    check_replaceable(folder / METADATA_NAME)
    check_own(folder, METADATA_NAME, FIRST_LINE_BYTES, is_metadata, "was not written by this package")
    for name in OTHER_METADATA_NAMES:
        if read_beginning(folder / name, 1) is not None:
            raise ValueError(
                f"output_path is {str(folder)!r}, and has a file {name}: the library datasets does not load a folder "
                f"with both {name} and {METADATA_NAME}. Move that file away, or store the images in another folder."
            )


def claim_folder(folder: ObjectStoragePath, made_by: Mapping[str, Any]) -> None:
    """Check that no other task instance of a mapped task or a loop makes a dataset of the folder in the same run.

    The first one leaves a hidden file there, which stays: its siblings may run after it has ended.

    Raises:
        ValueError: If another one does: each would replace the rows of the other.
        OSError: If the file cannot be written.
    """
    own = {"map_index": made_by["map_index"], "iteration": iteration_in(made_by)}
    if not is_mapped(own["map_index"]) and own["iteration"] is None:
        return
    siblings = json.dumps([made_by[name] for name in ("dag_id", "run_id", "task_id")]).encode()
    claim = folder / f".dataset-{hashlib.sha256(siblings).hexdigest()[:16]}.json"
    if not create_json(own, claim, writer=writer_of(made_by)):
        raise ValueError(
            f"output_path is {str(folder)!r}, and another map index or iteration of this task stores its dataset there "
            f"in this run ({claim.name} says which): each would replace the other's {METADATA_NAME}. Nothing was "
            "submitted. Give each a folder of its own, such as …/{{ ti.map_index }}, or draw all images in one batch."
        )


def put_dataset(
    folder: ObjectStoragePath, rows: Iterable[Mapping[str, Any]], made_by: Mapping[str, Any], scratch: Path
) -> str:
    """Store the ``metadata.jsonl`` of the images that are stored, whole or not at all.

    Args:
        folder: The folder of the images.
        rows: The rows of the manifest.
        made_by: The description of the Airflow task; see `made_by.description_of`.
        scratch: A local folder for temporary files.

    Returns:
        Its path.

    Raises:
        OSError: If it cannot be written.
    """
    target = folder / METADATA_NAME
    local = scratch / METADATA_NAME
    split_words = 0
    with local.open("wb") as stream:
        for record in metadata_records(rows):
            split_words += has_split_word(record["file_name"])
            stream.write(metadata_line(record))
    put_file(local, target, writer=writer_of(made_by))
    if split_words:
        log.warning(
            'The names of %d images have a word such as train or test, by which load_dataset("imagefolder", '
            'data_dir=…) splits a folder: load it with load_dataset("imagefolder", data_files="…/%s").',
            split_words,
            METADATA_NAME,
        )
    return str(target)
