"""Makes of a batch that has ended what its operator asks for besides the images and the manifest."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from airflow.providers.common.compat.sdk import ObjectStoragePath

    from airflow_provider_qwenimage.batch.manifest import BatchManifest
    from airflow_provider_qwenimage.publish.contact_sheets import ContactSheets

log = logging.getLogger(__name__)


class Publishing:
    """The contact sheet and the dataset of a batch.

    Nothing of the package `publish` is loaded by a batch that asks for neither.

    Args:
        folder: The folder of the batch.
        manifest: The list of its rows.
        made_by: The description of the Airflow task; see `made_by.description_of`.
        scratch: A local folder for temporary files.
        contact_sheet: Whether to make a contact sheet.
        dataset: The form of the dataset, or None.
        is_marked: Whether the contact sheet, like the images, says in its file that a generative model made them.
    """

    def __init__(
        self,
        folder: ObjectStoragePath,
        manifest: BatchManifest,
        made_by: Mapping[str, Any],
        scratch: Path,
        *,
        contact_sheet: bool,
        dataset: str | None,
        is_marked: bool = True,
    ) -> None:
        self._folder = folder
        self._manifest = manifest
        self._made_by = made_by
        self._scratch = scratch
        self._contact_sheets = self._open_contact_sheets(is_marked=is_marked) if contact_sheet else None
        self._dataset = dataset
        # For the events of assets.
        self.facts: dict[str, Any] = {}

    def check(self) -> None:
        """Check, before anything is paid, that what is asked for can be stored and replaces nothing of anybody else.

        Raises:
            ValueError: If a file that something else has stored is in the way.
            OSError: If it cannot be read.
        """
        if self._contact_sheets is not None:
            self._contact_sheets.check(self._manifest.number_of_rows)
        if self._dataset is not None:
            from airflow_provider_qwenimage.publish.dataset_folder import check_dataset, claim_folder

            check_dataset(self._folder)
            claim_folder(self._folder, self._made_by)

    def stop(self) -> None:
        """End within seconds what is being made."""
        if self._contact_sheets is not None:
            self._contact_sheets.stop()

    def put_dataset(self) -> None:
        """Store the dataset of the images that are stored, if one is asked for, once the batch has succeeded."""
        if self._dataset is not None:
            from airflow_provider_qwenimage.publish.dataset_folder import put_dataset

            path = put_dataset(self._folder, self._manifest.rows(), self._made_by, self._scratch)
            self.facts |= {"dataset": self._dataset, "metadata": path}

    def put_contact_sheet(self) -> list[str]:
        """Store the contact sheet, if one is asked for, however the batch has ended. It raises nothing.

        Returns:
            The paths of its pages.
        """
        if self._contact_sheets is None:
            return []
        try:
            paths = self._contact_sheets.put()
        except Exception:  # any storage's; the images are what was asked for first
            log.warning("The contact sheet could not be stored. Images and manifest are not affected.", exc_info=True)
            return []
        # The others are named after the first page.
        self.facts |= {"contact_sheet": paths[0]} if paths else {}
        return paths

    def _open_contact_sheets(self, *, is_marked: bool) -> ContactSheets:
        from airflow_provider_qwenimage.publish.contact_sheets import ContactSheets

        return ContactSheets(self._folder, self._manifest.rows, self._made_by, is_marked=is_marked)
