"""Finds what a folder knows of submissions by their ids: for the books, which do not know the images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow_provider_qwenimage.rules.submission_facts import End, Fact, read_id
from airflow_provider_qwenimage.storage.files import list_names, read_json
from airflow_provider_qwenimage.storage.paths import is_empty
from airflow_provider_qwenimage.tasks.records import names_by_submission, part_of_name
from airflow_provider_qwenimage.tasks.stores import RECORDS_PREFIX, record_file, recorded_names

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import ObjectStoragePath


@dataclass(frozen=True)
class Recorded:
    """What is recorded of a submission.

    Attributes:
        image_task_id: The API's id of the image task, if it is known.
        end: Its end, or None.
    """

    image_task_id: str | None = None
    end: End | None = None


class FolderFacts:
    """The ids and ends that a folder has recorded. It is listed once; only what is asked for is read.

    Args:
        folder: The folder. It may not exist.

    Raises:
        OSError: If the storage does not allow listing.
    """

    def __init__(self, folder: ObjectStoragePath) -> None:
        self._folder = folder
        names = [] if is_empty(folder) else list_names(folder, RECORDS_PREFIX)
        self._names = names_by_submission(recorded_names(names))

    def find(self, submission_id: str) -> Recorded:
        """Return what is recorded of a submission.

        Raises:
            OSError: If a record cannot be read.
        """
        image_task_id, end = None, None
        for fact, name in self._names.get(part_of_name(submission_id), ()):
            written: Any = read_json(self._folder / record_file(name))
            # The name has only a part of the id.
            if written is None or written.get("submission") != submission_id:
                continue
            if fact is Fact.END:
                end = End.from_json(written)
            image_task_id = image_task_id or read_id(written)
        return Recorded(image_task_id, end)
