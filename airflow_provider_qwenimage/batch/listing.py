"""Lists the folder of a batch once, so that rows of which it has nothing need no look of their own."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from airflow_provider_qwenimage.storage.files import list_names
from airflow_provider_qwenimage.storage.libraries import LOCAL
from airflow_provider_qwenimage.storage.paths import is_empty
from airflow_provider_qwenimage.tasks.records import names_by_key
from airflow_provider_qwenimage.tasks.stores import RECORDS_PREFIX, recorded_names

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import ObjectStoragePath

    from airflow_provider_qwenimage.rules.image_identity import ImageIdentity


@dataclass(frozen=True, kw_only=True)
class FolderListing:
    """What a folder had when it was listed.

    Attributes:
        is_empty: Whether it had nothing at all.
        records: The names of the facts about submissions; see `stores.recorded_names`.
        records_by_key: The same by the key of the image; see `ImageIdentity`.
        stems: The names, without suffix, of files that may be images or sidecars; None if they were not listed.
    """

    is_empty: bool = True
    records: frozenset[str] = frozenset()
    records_by_key: Mapping[str, list[str]] = field(default_factory=dict)
    stems: frozenset[str] | None = None

    def has_no_image(self, identity: ImageIdentity) -> bool:
        """Whether it surely had neither the image nor its sidecar."""
        return self.is_empty or (self.stems is not None and identity.stem not in self.stems)


def list_records(folder: ObjectStoragePath) -> FolderListing:
    """List the records of a folder.

    Raises:
        OSError: If the storage does not allow listing.
    """
    return FolderListing() if is_empty(folder) else _listing(list_names(folder, RECORDS_PREFIX))


def list_records_and_images(folder: ObjectStoragePath, stems: Iterable[str]) -> FolderListing:
    """List the records of a folder, and which images it may have, if that is quicker than to look for each.

    Args:
        folder: The folder. It may not exist.
        stems: The names of the images, without suffix; others are not listed.

    Raises:
        OSError: If the storage does not allow listing.
    """
    # A look at the local disk costs less than its part of a listing, and sees folders of that name as well.
    if folder.protocol in LOCAL or is_empty(folder):
        return list_records(folder)
    wanted = frozenset(stems)
    names = list_names(folder, "", lambda name: name.startswith(RECORDS_PREFIX) or _stem_of(name) in wanted)
    return _listing(names, frozenset(map(_stem_of, names)))


def _listing(names: Collection[str], stems: frozenset[str] | None = None) -> FolderListing:
    records = recorded_names(names)
    return FolderListing(is_empty=False, records=records, records_by_key=names_by_key(records), stems=stems)


def _stem_of(name: str) -> str:
    return name.rpartition(".")[0]
