"""Renders the rows of a batch as the ``metadata.jsonl`` of an imagefolder of the Hugging Face library `datasets`.

No I/O, and nothing of it loads Airflow: a program without it can render the same lines.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from airflow_provider_qwenimage.contract import RANDOM_SEED
from airflow_provider_qwenimage.rules.batch_rows import RowStatus, first_row
from airflow_provider_qwenimage.text.storable import storable_text

METADATA_NAME = "metadata.jsonl"
# `datasets` loads no folder that has one of these besides.
OTHER_METADATA_NAMES = ("metadata.csv", "metadata.parquet")
# More than the longest line.
FIRST_LINE_BYTES = 256 * 1024

# Every version of this package writes these; a later one may write more.
_OWN_COLUMNS = frozenset({"file_name", "text", "prompt", "seed", "size", "output_format", "task_id", "row"})
# `datasets` puts files with such a word in their names into that split, and then loads only these.
_SPLIT_WORD = re.compile(
    r"(?:^|[-._ 0-9])(?:train|training|validation|valid|val|dev|test|testing|eval|evaluation)[-._ 0-9]"
)


def metadata_records(rows: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the record of each stored image, in the order of the rows, all with the same columns.

    Rows that share an image are one record if they have the same text, with the label of the first. The records of a
    batch that finds its images stored are those of the batch that drew them.

    Args:
        rows: The rows of the manifest.
    """
    seen: set[bytes] = set()
    for row in rows:
        if row["status"] != RowStatus.SUCCESS:
            continue
        for path in row["paths"]:
            file_name = str(path).rpartition("/")[2]
            record = _record(row, file_name)
            # Of a million rows, the texts themselves would take gigabytes.
            key = hashlib.sha256(json.dumps([file_name, record["text"]]).encode()).digest()[:16]
            if key not in seen:
                seen.add(key)
                yield record


def _record(row: Mapping[str, Any], file_name: str) -> dict[str, Any]:
    width, height = map(int, row["size"].split("*"))
    text, label = row.get("text"), row.get("label")
    return {
        "file_name": file_name,
        "text": _storable(row["prompt"] if text is None else text),
        "prompt": _storable(row["prompt"]),
        "label": None if label is None else _storable(label),
        # The API does not report which seed it has chosen.
        "seed": None if row["seed"] == RANDOM_SEED else row["seed"],
        "size": row["size"],
        "width": width,
        "height": height,
        "output_format": row["output_format"],
        "task_id": row["task_id"],
        "row": row["row"],
    }


def _storable(value: object) -> str:
    """Return a text: a column that has texts in some lines and numbers in others cannot be loaded."""
    return storable_text(str(value))


def metadata_line(record: Mapping[str, Any]) -> bytes:
    """Return the line of a record."""
    return (json.dumps(record, ensure_ascii=False) + "\n").encode()


def is_metadata(beginning: bytes) -> bool:
    """Whether a file begins with a line of this package's, of this version or an earlier one."""
    record = first_row(beginning)
    return record is not None and record.keys() >= _OWN_COLUMNS


def has_split_word(file_name: str) -> bool:
    """Whether `datasets` takes a file for one of a split, such as ``a-test-1.png``, when it is given the folder."""
    return _SPLIT_WORD.search(file_name) is not None
