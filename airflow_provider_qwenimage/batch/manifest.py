"""Lists the outcome of each request of a batch: at its end for users, and while it runs for the gallery."""

from __future__ import annotations

import hashlib
import json
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_provider_qwenimage.rules.batch_rows import first_row, manifest_name, manifest_row, rows_name
from airflow_provider_qwenimage.rules.made_by import iteration_in, writer_of
from airflow_provider_qwenimage.storage.files import (
    check_own,
    check_replaceable,
    put_file,
    remove_file,
    remove_leftovers,
)
from airflow_provider_qwenimage.storage.paths import check_storing

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from airflow.providers.common.compat.sdk import ObjectStoragePath

    from airflow_provider_qwenimage.batch.run import Batch

# While the batch runs, its rows are written at most this often, and writing them takes at most this share of the time.
_LISTING_INTERVAL_SECONDS = 10.0
_MOST_LISTING_TIME = 0.02
# More than the longest row.
_FIRST_ROW_BYTES = 256 * 1024


class BatchManifest:
    """Writes the rows of a batch into the folder of its images.

    Args:
        folder: The folder.
        batch: The batch.
        made_by: The description of the Airflow task; see `made_by.description_of`.
        scratch: A local folder for temporary files.

    Attributes:
        sha256: The hash of the stored manifest in hexadecimal, or None before it is stored.
    """

    def __init__(self, folder: ObjectStoragePath, batch: Batch, made_by: Mapping[str, Any], scratch: Path) -> None:
        self._folder = folder
        self._batch = batch
        self._writer = writer_of(made_by)
        self._name = manifest_name(made_by["map_index"], iteration_in(made_by))
        self._scratch = scratch
        self._rows_file = folder / rows_name(self._writer)
        self._next_time = 0.0
        self._is_listed = False
        self.sha256: str | None = None

    def check(self) -> None:
        """Check, before anything is paid, that the manifest can be stored and replaces nothing but a manifest.

        Raises:
            ValueError: If a file of that name is not a manifest, or the bucket does not exist.
            OSError: If nothing can be stored there.
        """
        check_manifest(self._folder, self._name)
        check_storing(self._folder, self._writer)

    def list_rows(self) -> str | None:
        """Write the rows so far into a hidden file for the gallery, unless that was done a short time ago.

        Returns:
            Its path, or None if it could not be written yet, which stops nothing.
        """
        began = time.monotonic()
        if began >= self._next_time:
            with suppress(Exception):
                self._put(self._rows_file)
                self._is_listed = True
            took = time.monotonic() - began
            self._next_time = began + max(_LISTING_INTERVAL_SECONDS, took / _MOST_LISTING_TIME)
        return str(self._rows_file) if self._is_listed else None

    def put(self, *, is_first_try: bool) -> str:
        """Write the manifest, and remove the list of rows and files that killed tries have left half-written.

        Args:
            is_first_try: Whether no earlier try can have left anything.

        Returns:
            Its path.
        """
        target = self._folder / self._name
        self.sha256 = self._put(target)
        # Hidden files, which do no harm if they stay.
        with suppress(Exception):
            if self._is_listed or not is_first_try:
                remove_file(self._rows_file)
            if not is_first_try:
                remove_leftovers(self._folder, self._writer)
        return str(target)

    @property
    def number_of_rows(self) -> int:
        """How many rows it has."""
        return len(self._batch.requests)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield its rows as they are now, in the order of the requests."""
        return map(self._row, range(len(self._batch.requests)))

    def _put(self, target: ObjectStoragePath) -> str:
        """Write the rows so far, and return the hash of the file."""
        local = self._scratch / "rows.jsonl"
        digest = hashlib.sha256()
        with local.open("wb") as stream:
            for row in self.rows():
                line = (json.dumps(row, ensure_ascii=False) + "\n").encode()
                digest.update(line)
                stream.write(line)
        put_file(local, target, writer=self._writer)
        return digest.hexdigest()

    def _row(self, number: int) -> dict[str, Any]:
        item = self._batch.requests[number]
        if item.same_as is None:
            outcome = self._batch.outcome(number)
        else:
            outcome = self._batch.outcome(item.same_as)
            if outcome is not None:
                outcome = {**outcome, "same_as": item.same_as + 1, "consumed_credits": 0}
        return manifest_row(number + 1, item.description(), outcome, self._writer)


def check_manifest(folder: ObjectStoragePath, name: str) -> None:
    """Check that a manifest of that name replaces nothing but a manifest.

    Raises:
        ValueError: If a file of that name is not a manifest.
        OSError: If it cannot be read, or something other than a file has that name.
    """
    check_replaceable(folder / name)
    check_own(folder, name, _FIRST_ROW_BYTES, _is_a_row, "is not the manifest of a batch")


def _is_a_row(beginning: bytes) -> bool:
    """Whether a file begins with a row of a manifest, of this version of the package or an earlier one."""
    row = first_row(beginning)
    return row is not None and "row" in row and "status" in row
