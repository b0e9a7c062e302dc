"""The rows that a batch lists for users and for the gallery: their status, their fields and the names of their files.

The status of a row is the API's SUCCESS or FAILED if there is one. A row without one is UNKNOWN (its submission may
have been accepted), UNFINISHED (it is paid, and its image is not stored yet) or NOT_SUBMITTED; and, while the batch
runs, IN_PROGRESS. No I/O.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from enum import StrEnum
from itertools import islice
from typing import Any

from airflow_provider_qwenimage.rules.made_by import is_mapped
from airflow_provider_qwenimage.text.storable import MAX_MESSAGE_CHARACTERS, storable_text

# Messages name so many rows and count the others.
NAMED_ROWS = 20


class RowNumbers:
    """Some rows, for messages: their count, and the first numbers of them.

    Args:
        numbers: The rows, counted from 1.
    """

    def __init__(self, numbers: Iterable[int] = ()) -> None:
        self.count = 0
        self._named: list[int] = []
        for number in numbers:
            self.add(number)

    def add(self, number: int) -> None:
        """Add a row."""
        self.count += 1
        if len(self._named) < NAMED_ROWS:
            self._named.append(number)

    def __len__(self) -> int:
        return self.count

    def __add__(self, other: RowNumbers) -> RowNumbers:
        both = RowNumbers(sorted(self._named + other._named))
        both.count = self.count + other.count
        return both

    @classmethod
    def some(cls, numbers: Iterable[int], count: int) -> RowNumbers:
        """Return so many rows, whose numbers are read only as far as messages name them."""
        rows = cls(islice(numbers, min(count, NAMED_ROWS)))
        rows.count = count
        return rows

    def __str__(self) -> str:
        if not self._named:
            return f"{self.count} row{'' if self.count == 1 else 's'}"
        names = [str(number) for number in sorted(self._named)]
        left = self.count - len(names)
        *most, last = [*names, f"{left} more"] if left else names
        return f"{'rows' if self.count > 1 else 'row'} {', '.join(most)}{' and ' if most else ''}{last}"


class RowStatus(StrEnum):
    """The status of a row."""

    SUCCESS = "SUCCESS"
    FAILED = "FAILED"
    UNKNOWN = "UNKNOWN"
    UNFINISHED = "UNFINISHED"
    NOT_SUBMITTED = "NOT_SUBMITTED"
    IN_PROGRESS = "IN_PROGRESS"


def manifest_name(map_index: int | None, iteration: int | None = None) -> str:
    """Return the file name of a batch's manifest.

    Args:
        map_index: The map index of the Airflow task; -1 or None if it is not mapped.
        iteration: The iteration of the loop that the task is in, or None.
    """
    mapped = f"-{map_index}" if is_mapped(map_index) else ""
    return f"manifest{_in_loop(iteration)}{mapped}.jsonl"


def contact_sheet_name(map_index: int | None, iteration: int | None = None, page: int = 1) -> str:
    """Return the file name of a batch's contact sheet, next to its manifest.

    Args:
        map_index: As for `manifest_name`. It has a letter, so that the second page of a batch is not the first one of
            another batch.
        iteration: As for `manifest_name`.
        page: Counted from 1.
    """
    return f"{_sheet_stem(map_index, iteration)}{'' if page == 1 else f'-{page}'}.jpg"


def page_of_contact_sheet(name: str, map_index: int | None, iteration: int | None = None) -> int | None:
    """Return which page of a batch's contact sheet has a file name; None if none has it. See `contact_sheet_name`."""
    found = re.fullmatch(rf"{_sheet_stem(map_index, iteration)}(?:-([1-9]\d{{0,8}}))?\.jpg", name, re.ASCII)
    if found is None or found[1] == "1":
        return None
    return int(found[1] or 1)


def _sheet_stem(map_index: int | None, iteration: int | None) -> str:
    mapped = f"-m{map_index}" if is_mapped(map_index) else ""
    return f"contact-sheet{_in_loop(iteration)}{mapped}"


def _in_loop(iteration: int | None) -> str:
    return "" if iteration is None else f"-i{iteration}"


def rows_name(writer: str) -> str:
    """Return the name of the hidden file that lists a batch's rows while it runs.

    Args:
        writer: The Airflow task that writes it; see `writer_of`.
    """
    return f".rows-{writer}.jsonl"


def manifest_row(
    number: int, request: Mapping[str, Any], outcome: Mapping[str, Any] | None, writer: str
) -> dict[str, Any]:
    """Return a row of the manifest.

    Args:
        number: The number of the row, counted from 1.
        request: The fields that describe the image.
        outcome: The outcome so far, or None if nothing was begun.
        writer: The Airflow task that writes it; see `writer_of`.
    """
    return {"row": number, "status": str(RowStatus.NOT_SUBMITTED), **request, **(outcome or {}), "writer": writer}


def first_row(beginning: bytes) -> dict[str, Any] | None:
    """Return the first row of a file in JSON Lines, by the first bytes of the file; None if it has none."""
    try:
        row = json.loads(beginning.partition(b"\n")[0])
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def row_error(error: BaseException) -> dict[str, Any]:
    """Return the fields of a row of the manifest that describe an error."""
    return {"error": type(error).__name__, "message": storable_text(str(error), MAX_MESSAGE_CHARACTERS)}
