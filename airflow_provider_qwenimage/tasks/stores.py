"""Stores one submission so that a later try finds it: in Airflow's task state, or in a file in the output folder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from airflow_provider_qwenimage.storage.files import put_json, read_json, remove_file

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import ObjectStoragePath

_STATE_KEY = "qwenimage_submission"
# The content of a file that could not be removed; an earlier version of this package stops at it.
_FORGOTTEN = {"forgotten": True}


class Store(Protocol):
    """Where one submission is recorded."""

    def read(self) -> object:
        """Return what was last written, or None."""

    def write(self, value: dict[str, Any]) -> None:
        """Store a JSON object."""

    def settle(self, value: dict[str, Any]) -> None:
        """Store or remove a submission that is finished."""

    def erase(self) -> None:
        """Remove what was written."""


class TaskStateStore:
    """Airflow's own store for the state of a task (3.3 and later): it outlives tries and Clear.

    Args:
        accessor: ``context["task_state_store"]``.
    """

    def __init__(self, accessor: Any) -> None:
        self._accessor = accessor

    def read(self) -> object:
        """Return what was last written, or None."""
        return self._accessor.get(_STATE_KEY)

    def write(self, value: dict[str, Any]) -> None:
        """Store a JSON object for as long as the DAG run is kept: what may be paid must not expire."""
        from airflow.sdk import NEVER_EXPIRE  # type: ignore[attr-defined,unused-ignore]  # Airflow 3.3 and later

        self._accessor.set(_STATE_KEY, value, retention=NEVER_EXPIRE)

    def settle(self, value: dict[str, Any]) -> None:
        """Store a finished submission for as long as Airflow keeps task states."""
        self._accessor.set(_STATE_KEY, value)

    def erase(self) -> None:
        """Remove what was written."""
        self._accessor.delete(_STATE_KEY)


class FileStore:
    """A hidden file in the output folder, named after the Airflow task instance: for Airflow below 3.3.

    It is removed when the image and its sidecar are stored. Without the right to delete, it is overwritten with
    something that means the same to a later try.

    Args:
        writer: See `made_by.writer_of`.
    """

    def __init__(self, file: ObjectStoragePath, writer: str = "") -> None:
        self._file = file
        self._writer = writer

    def read(self) -> object:
        """Return what was last written, or None.

        Raises:
            OSError: If it cannot be read. It may record a paid submission, so nothing may be submitted then.
        """
        try:
            written = read_json(self._file)
        except OSError as error:
            kind = PermissionError if isinstance(error, PermissionError) else OSError
            raise kind(
                f"The record of this task's submissions cannot be read, so nothing was submitted: {error}. Make "
                f"{self._file} readable; or, to submit and pay again, move it away."
            ) from error
        return None if written == _FORGOTTEN else written

    def write(self, value: dict[str, Any]) -> None:
        """Store a JSON object."""
        put_json(value, self._file, writer=self._writer)

    def settle(self, value: dict[str, Any]) -> None:
        """Remove a finished submission: the sidecar records it."""
        try:
            remove_file(self._file)
        except PermissionError:
            self.write(value)

    def erase(self) -> None:
        """Remove what was written."""
        try:
            remove_file(self._file)
        except PermissionError:
            self.write(_FORGOTTEN)


class NoStore:
    """Records nothing."""

    def read(self) -> object:
        """Return None."""

    def write(self, value: dict[str, Any]) -> None:
        """Do nothing."""

    settle = write

    def erase(self) -> None:
        """Do nothing."""
