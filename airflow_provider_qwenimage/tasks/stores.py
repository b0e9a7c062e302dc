"""Stores the facts about submissions where a later try finds them: in Airflow's task state, or in files of a folder."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol

from airflow_provider_qwenimage.storage.files import create_json, list_names, put_json, read_json, remove_file

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import ObjectStoragePath

_STATE_PREFIX = "qwenimage_"
# What the names of the hidden files begin with.
RECORDS_PREFIX = ".submission-"
# The content of a file that could not be removed.
_FORGOTTEN = {"forgotten": True}


class Store(Protocol):
    """Where facts are recorded, each under a name of its own."""

    def read(self, name: str) -> object:
        """Return the fact of a name, or None."""

    def create(self, name: str, fact: dict[str, Any]) -> bool:
        """Store a fact, and return whether none of that name was there."""

    def write(self, name: str, fact: dict[str, Any], *, is_last: bool = False) -> None:
        """Store a fact; `is_last` if the submission costs nothing any more."""

    def remove(self, name: str) -> None:
        """Remove a fact, if there is one."""


class TaskStateStore:
    """Airflow's own store for the state of a task (3.3 and later): it outlives tries and Clear.

    Args:
        accessor: ``context["task_state_store"]``.
    """

    def __init__(self, accessor: Any) -> None:
        self._accessor = accessor

    def read(self, name: str) -> object:
        """Return the fact of a name, or None."""
        return self._accessor.get(_key(name))

    def create(self, name: str, fact: dict[str, Any]) -> bool:
        """Store a fact. Only this task instance writes here, so no other can be there."""
        self.write(name, fact)
        return True

    def write(self, name: str, fact: dict[str, Any], *, is_last: bool = False) -> None:
        """Store a fact for as long as the DAG run is kept, because what may be paid must not expire.

        The last fact is stored for as long as Airflow keeps task states.
        """
        from airflow.sdk import NEVER_EXPIRE  # type: ignore[attr-defined,unused-ignore]  # Airflow 3.3 and later

        retention = {} if is_last else {"retention": NEVER_EXPIRE}
        self._accessor.set(_key(name), fact, **retention)

    def remove(self, name: str) -> None:
        """Remove a fact, if there is one."""
        self._accessor.delete(_key(name))


class FolderStore:
    """Hidden files in a folder of images, shared by every task that asks for an image there.

    Args:
        folder: The folder.
        writer: See `made_by.writer_of`.
    """

    def __init__(self, folder: ObjectStoragePath, writer: str) -> None:
        self._folder = folder
        self._writer = writer

    def read(self, name: str) -> object:
        """Return the fact of a name, or None.

        Raises:
            OSError: If it cannot be read. It may be about a paid submission, so nothing may be submitted then.
        """
        file = self._file(name)
        try:
            written = read_json(file)
        except OSError as error:
            kind = PermissionError if isinstance(error, PermissionError) else OSError
            raise kind(
                f"The record of a submission cannot be read, so nothing was submitted: {error}. Make {file} readable; "
                "or, to submit and pay again, move it away."
            ) from error
        return None if written == _FORGOTTEN else written

    def create(self, name: str, fact: dict[str, Any]) -> bool:
        """Store a fact, and return whether none of that name was there."""
        file = self._file(name)
        if create_json(fact, file, writer=self._writer):
            return True
        if read_json(file) != _FORGOTTEN:
            return False
        self.write(name, fact)
        return True

    def write(self, name: str, fact: dict[str, Any], *, is_last: bool = False) -> None:  # noqa: ARG002  as in `Store`
        """Store a fact."""
        put_json(fact, self._file(name), writer=self._writer)

    def remove(self, name: str) -> None:
        """Remove a fact, if there is one.

        Raises:
            PermissionError: Without the right to delete.
        """
        remove_file(self._file(name))

    def names(self, prefix: str) -> list[str]:
        """Return the names of all facts that begin with a prefix."""
        return sorted(recorded_names(list_names(self._folder, f"{RECORDS_PREFIX}{prefix}")))

    def _file(self, name: str) -> ObjectStoragePath:
        return self._folder / record_file(name)


class ReadOnlyFolderStore(FolderStore):
    """The same files, for a plan: what a task would record or remove stays as it is."""

    def create(self, name: str, fact: dict[str, Any]) -> bool:  # noqa: ARG002  as in `Store`
        """Store nothing."""
        return True

    def write(self, name: str, fact: dict[str, Any], *, is_last: bool = False) -> None:
        """Store nothing."""

    def remove(self, name: str) -> None:
        """Remove nothing."""


def record_file(name: str) -> str:
    """Return the name of the hidden file that records a fact."""
    return f"{RECORDS_PREFIX}{name}.json"


def recorded_names(files: Iterable[str]) -> frozenset[str]:
    """Return the names of the facts that hidden files record.

    Args:
        files: Names of files.
    """
    suffix = ".json"
    return frozenset(
        file[len(RECORDS_PREFIX) : -len(suffix)]
        for file in files
        if file.startswith(RECORDS_PREFIX) and file.endswith(suffix)
    )


def _key(name: str) -> str:
    return f"{_STATE_PREFIX}{name.replace('-', '_')}"
