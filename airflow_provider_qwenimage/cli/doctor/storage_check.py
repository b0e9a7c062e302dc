"""Checks a storage with a small file of its own: write, refuse to replace, read, list, delete."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from airflow_provider_qwenimage.cli.doctor.findings import FAILED, OK, SKIPPED, WARNING, Finding
from airflow_provider_qwenimage.rules.arguments import check_output_path
from airflow_provider_qwenimage.rules.templates import is_template
from airflow_provider_qwenimage.storage.files import (
    create_json,
    creates_exclusively,
    list_names,
    read_json,
    remove_file,
)
from airflow_provider_qwenimage.storage.libraries import library_of
from airflow_provider_qwenimage.storage.local_files import local_file
from airflow_provider_qwenimage.storage.paths import open_output_path, path_of
from airflow_provider_qwenimage.text.messages import shown

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import ObjectStoragePath

_ABOUT = "Written by `airflow qwenimage doctor` to check this storage. It may be deleted."


def storage_library(output_path: str | None) -> str:
    """Return the package that accesses a path; "" for the local disk, or if it is not known."""
    if output_path is None:
        return ""
    with suppress(Exception):
        return library_of(path_of(output_path).fs)
    return ""


def check_storage(output_path: str | None) -> Finding:
    """Check that images can be stored below a path, and found again. Nothing is left behind.

    Args:
        output_path: The folder, as the operator's `output_path`; None skips the check.
    """
    if output_path is None:
        return Finding(SKIPPED, "Give --output-path to check where images are stored.")
    if is_template(output_path):
        raise ValueError(f"output_path is {shown(output_path)}, which is a template; give the path that it renders to.")
    check_output_path(output_path)
    with _new_folders_removed(output_path):
        folder = open_output_path(output_path)
        probe = folder / f".qwenimage-doctor-{uuid.uuid4().hex}.json"
        try:
            finding = _probe(folder, probe)
        finally:
            left = _remove(probe)
    if left and finding.state == OK:
        return Finding(WARNING, f"Images can be stored, but {left} Delete {probe} yourself.")
    return finding


@contextmanager
def _new_folders_removed(output_path: str) -> Iterator[None]:
    """Remove the local folders that do not exist before the block."""
    local = local_file(path_of(output_path))
    missing = [] if local is None else [path for path in (Path(local), *Path(local).parents) if not path.exists()]
    try:
        yield
    finally:
        # Somebody may have stored a file there meanwhile.
        with suppress(OSError):
            for path in missing:
                path.rmdir()


def _probe(folder: ObjectStoragePath, probe: ObjectStoragePath) -> Finding:
    first = {"about": _ABOUT, "written_by": uuid.uuid4().hex}
    create_json(first, probe)
    if read_json(probe) != first:
        return Finding(FAILED, f"{probe} was written, but it cannot be read again. Use another storage for images.")
    if probe.name not in list_names(folder, probe.name[:-1]):
        return Finding(
            FAILED, f"{probe} was written, but {folder} does not list it. Use a storage whose listings are up to date."
        )
    refuses = not create_json(first | {"written_by": uuid.uuid4().hex}, probe)
    is_kept = read_json(probe) == first
    # Storing images does not need the right to delete: the caller tries again, and reports why it may not.
    if not _remove(probe) and read_json(probe) is not None:
        return Finding(FAILED, f"{probe} was deleted, but it can still be read. Use another storage for images.")
    if not refuses or not is_kept:
        return Finding(
            WARNING,
            f"{folder} can be used, but it replaces a file that it was asked to create only if none exists. Of two "
            "tasks that ask for the same image at the same time, both may pay. Use a storage that honours "
            "If-None-Match, or let only one task at a time write to a folder.",
        )
    if not creates_exclusively(folder):
        return Finding(
            WARNING,
            f"{folder} can be used, but its library cannot create a file only if none exists. Of two tasks that ask "
            "for the same image at the same time, both may pay. Upgrade the library, or let only one task at a time "
            "write to a folder.",
        )
    return Finding(OK, f"{folder}: write, read, list and delete work, and an existing file is not replaced.")


def _remove(probe: ObjectStoragePath) -> str:
    """Remove the file if it still exists, and return why it may be left."""
    try:
        remove_file(probe)
    except OSError as error:
        return str(error)
    return ""
