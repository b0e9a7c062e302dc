"""Marks the folder that a batch draws into, so that a retry that finds another folder does not pay for images again.

A worker on another host may not have the folder, and a template may render another one. The mark is a hidden file in
the folder, named in Airflow's task state (3.3 and later).
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from airflow_provider_qwenimage.contract import CREDITS_PER_IMAGE
from airflow_provider_qwenimage.exceptions import QwenImageSubmissionUnknownError
from airflow_provider_qwenimage.rules.made_by import state_scope_of, writer_of
from airflow_provider_qwenimage.rules.tries import Try
from airflow_provider_qwenimage.storage.files import create_json, read_json, remove_file
from airflow_provider_qwenimage.tasks.opening import try_of
from airflow_provider_qwenimage.text.messages import printable, shorten

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context, ObjectStoragePath


class BatchMarker:
    """The mark of a batch in its folder, from its first submission until it succeeds, whatever try or Clear that takes.

    Args:
        context: The context of the Airflow task.
        folder: The folder for the images.
        instance: The task; see `made_by.description_of`.

    Attributes:
        effort: The mark: 32 hexadecimal digits.
    """

    def __init__(self, context: Context, folder: ObjectStoragePath, instance: Mapping[str, Any]) -> None:
        self._folder = folder
        self._writer = writer_of(instance)
        self._file = folder / f".batch-{self._writer}.json"
        self._made_in = try_of(context)
        self._state: Any = context.get("task_state_store")
        self._key = f"qwenimage_{state_scope_of(context['ti'])}batch"
        self._lock = threading.Lock()
        written = (read_json(self._file) or {}).get("batch")
        self._is_marked = isinstance(written, str) and written.isalnum()
        self.effort: str = str(written) if self._is_marked else uuid.uuid4().hex
        self._is_stated = False

    def check(self) -> None:
        """Check that the folder is the one that earlier tries drew into.

        Raises:
            QwenImageSubmissionUnknownError: If it is not, and the task was not cleared since.
        """
        stated = None if self._state is None else self._state.get(self._key)
        if not isinstance(stated, Mapping):
            return
        self._is_stated = self._is_marked and stated.get("batch") == self.effort
        made_in = Try.from_json(stated.get("try"))
        if self._is_stated or made_in is None:
            return
        if stated.get("reported") is True and self._made_in.was_cleared_since(made_in, ended_for_good=True):
            return
        # A Clear after this error is consent.
        with suppress(Exception):
            self._state.set(self._key, {**stated, "try": self._made_in.to_json(), "reported": True})
        raise QwenImageSubmissionUnknownError(
            f"Try {made_in.number} of this task drew into {printable(shorten(str(stated.get('folder'))))}, and "
            f"{self._folder} on this worker is not that folder: another host may have it, or output_path has changed. "
            f"Images that were paid then ({CREDITS_PER_IMAGE} credits each, as documented) would be paid again, so "
            "nothing was submitted. Run the task where that folder is, with storage that all workers share; or clear "
            "it to draw all images here."
        )

    def mark(self) -> None:
        """Mark the folder, before the first submission."""
        with self._lock:
            if not self._is_marked:
                create_json({"batch": self.effort}, self._file, writer=self._writer)
                self._is_marked = True
            if not self._is_stated and self._state is not None:
                stated = {"batch": self.effort, "folder": str(self._folder), "try": self._made_in.to_json()}
                self._state.set(self._key, stated)
            self._is_stated = True

    def remove(self) -> None:
        """Remove the mark, because the batch has succeeded: what is drawn after a Clear is new."""
        if self._is_stated and self._state is not None:
            self._state.delete(self._key)
        if self._is_marked:
            # A hidden file, which does no harm if it stays.
            with suppress(OSError):
                remove_file(self._file)
