"""Makes the contact sheet of a batch: reads its images a few at a time, draws page after page, and stores them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from airflow_provider_qwenimage.configuration import text_option
from airflow_provider_qwenimage.publish.provenance import mark_composite
from airflow_provider_qwenimage.publish.sheet_cells import (
    Cell,
    cell_of,
    counted,
    heading_of,
    number_of_pages,
    totals_of,
)
from airflow_provider_qwenimage.rules.batch_rows import contact_sheet_name, page_of_contact_sheet
from airflow_provider_qwenimage.rules.contact_sheets import COMMENT_BYTES, ROWS_OF_A_PAGE, SheetComment, read_comment
from airflow_provider_qwenimage.rules.made_by import iteration_in, writer_of
from airflow_provider_qwenimage.rules.reduced_images import reduced_image
from airflow_provider_qwenimage.rules.verification import MOST_PIXELS, open_image
from airflow_provider_qwenimage.storage.files import (
    check_own,
    check_replaceable,
    list_names,
    put_bytes,
    read_beginning,
    read_bytes,
    read_json,
    remove_file,
)

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import ObjectStoragePath
    from PIL import Image

    from airflow_provider_qwenimage.lettering.drawn_texts import Lettering
    from airflow_provider_qwenimage.publish.sheet_drawing import Layout

log = logging.getLogger(__name__)

Rows = Callable[[], Iterator[Mapping[str, Any]]]

# Reads at once, for storage that answers slowly.
_READERS = 8
# Far more than an image of the API has; so many times the number of readers are in memory at most.
_MOST_IMAGE_BYTES = 32 * 1024**2
_QUIET_SECONDS = 10.0
_UNREADABLE = "UNREADABLE"
_GONE = "NOT FOUND"


@dataclass(frozen=True)
class _Picture:
    """An image for a cell.

    Attributes:
        image: It, reduced; None if it cannot be shown.
        problem: Why not, for its cell.
        error: Why it cannot be read, for the log.
        other_dag: The DAG that drew it, if it was reused; None if that is not known.
    """

    image: Image.Image | None
    problem: str = ""
    error: str | None = None
    other_dag: str | None = None


class ContactSheets:
    """The contact sheet of a batch, as one or several JPEG files next to its manifest.

    Args:
        folder: The folder of the batch.
        rows: Returns the rows of its manifest, as they are now.
        made_by: The description of the Airflow task; see `made_by.description_of`.
        is_marked: Whether the files say that they are composed of generated images.
    """

    def __init__(
        self, folder: ObjectStoragePath, rows: Rows, made_by: Mapping[str, Any], *, is_marked: bool = True
    ) -> None:
        self._folder = folder
        self._rows = rows
        self._made_by = made_by
        self._is_marked = is_marked
        self._writer = writer_of(made_by)
        self._instance = made_by["map_index"], iteration_in(made_by)
        self._stopped = threading.Event()
        # The pixels of one image are in memory at a time.
        self._decoding = threading.Lock()
        # Why images cannot be shown.
        self._problems: list[str] = []

    def check(self, number_of_rows: int) -> None:
        """Check, before anything is paid, that the sheet replaces nothing but a contact sheet.

        Raises:
            ValueError: If a file that is not a contact sheet has one of its names.
            OSError: If it cannot be read, or something other than a file has that name.
        """
        last = number_of_pages(number_of_rows)
        for page in range(1, last + 1):
            check_replaceable(self._file(page))
        for page in self._stored_pages():
            if page <= last:
                self._check_own(page)

    def stop(self) -> None:
        """End the making of it within seconds, from another thread or a signal handler."""
        self._stopped.set()

    def put(self) -> list[str]:
        """Draw and store all pages, and remove those of an earlier, longer batch of the same task.

        Returns:
            The paths of the pages, without those that were not made because `stop` was called.

        Raises:
            Exception: Any error of the storage or the drawing.
        """
        from airflow_provider_qwenimage.lettering.drawn_texts import Lettering

        totals = totals_of(self._rows())
        lettering = Lettering(text_option("contact_sheet_font"))
        paths: list[str] = []
        logged_at = time.monotonic()
        with _readers() as readers:
            rows = self._rows()
            while page_rows := list(islice(rows, ROWS_OF_A_PAGE)):
                number = len(paths) + 1
                cells = [cell_of(row) for row in page_rows]
                head = *heading_of(self._made_by), totals.text(), _position_of(number, totals.pages)
                content = self._drawn(cells, head, min(totals.rows, ROWS_OF_A_PAGE), lettering, readers)
                if content is None:
                    log.warning("The contact sheet was not finished, because the task was ended from outside.")
                    return paths
                self._check_own(number)
                put_bytes(content, self._file(number), writer=self._writer)
                paths.append(str(self._file(number)))
                if time.monotonic() - logged_at > _QUIET_SECONDS:
                    logged_at = time.monotonic()
                    log.info("Page %d of %d of the contact sheet is stored.", number, totals.pages)
        self._remove_pages_after(len(paths))
        lettering.report()
        if self._problems:
            log.warning(
                "The contact sheet shows %s as unreadable. The first one is %s.",
                counted(len(self._problems), "image"),
                self._problems[0],
            )
        log.info("Contact sheet: %s%s.", paths[0], f" and {len(paths) - 1} more" if paths[1:] else "")
        return paths

    def _drawn(
        self,
        cells: list[Cell],
        head: tuple[str, str, str, str],
        most_cells: int,
        lettering: Lettering,
        readers: ThreadPoolExecutor,
    ) -> bytes | None:
        """Return a page as a JPEG file; None if `stop` was called."""
        if self._stopped.is_set():
            return None
        from airflow_provider_qwenimage.publish.sheet_drawing import Layout, Page

        layout = Layout.of(cells, most_cells)
        page = Page(layout, lettering, len(cells))
        page.add_head(*head)
        other_dags: set[str] | None = set()
        pictures = readers.map(lambda cell: self._picture(cell, layout), cells)
        for position, (cell, picture) in enumerate(zip(cells, pictures, strict=True)):
            page.add_cell(position, cell, picture.image, picture.problem)
            if picture.error is not None:
                self._problems.append(picture.error)
            if picture.image is not None and cell.reused and other_dags is not None:
                other_dags = None if picture.other_dag is None else other_dags | {picture.other_dag}
        known = None if other_dags is None else frozenset(other_dags) - {self._made_by["dag_id"]}
        if self._stopped.is_set():
            return None
        content = page.to_jpeg(SheetComment(self._writer, known).to_bytes())
        return mark_composite(content) if self._is_marked else content

    def _picture(self, cell: Cell, layout: Layout) -> _Picture:
        if cell.image is None or self._stopped.is_set():
            return _Picture(None, cell.problem)
        file = self._folder / cell.image
        try:
            content = read_bytes(file, _MOST_IMAGE_BYTES)
            if content is None:
                return _Picture(None, _GONE)
            with self._decoding:
                image = _reduced(content, layout.thumbnail)
            return _Picture(image, other_dag=_drawn_in(file) if cell.reused else None)
        except Exception as error:  # noqa: BLE001  any storage's, and broken files raise a dozen classes
            return _Picture(None, _UNREADABLE, error=f"{cell.image} ({type(error).__name__}: {error})")

    def _file(self, page: int) -> ObjectStoragePath:
        return self._folder / contact_sheet_name(*self._instance, page)

    def _stored_pages(self) -> list[int]:
        prefix = contact_sheet_name(*self._instance).rpartition(".")[0]
        names = list_names(self._folder, prefix, lambda name: self._page_of(name) is not None)
        return sorted(page for name in names if (page := self._page_of(name)) is not None)

    def _page_of(self, name: str) -> int | None:
        return page_of_contact_sheet(name, *self._instance)

    def _check_own(self, page: int) -> None:
        name = contact_sheet_name(*self._instance, page)
        check_own(self._folder, name, COMMENT_BYTES, _is_sheet, "is not the contact sheet of a batch")

    def _remove_pages_after(self, last: int) -> None:
        for page in self._stored_pages():
            beginning = read_beginning(self._file(page), COMMENT_BYTES) if page > last else None
            if beginning and _is_sheet(beginning):
                remove_file(self._file(page))


def _is_sheet(beginning: bytes) -> bool:
    return read_comment(beginning) is not None


@contextmanager
def _readers() -> Iterator[ThreadPoolExecutor]:
    readers = ThreadPoolExecutor(_READERS, thread_name_prefix="qwenimage-contact-sheet")
    try:
        yield readers
    finally:
        # The task may be ended while storage does not answer.
        readers.shutdown(wait=False, cancel_futures=True)


def _position_of(page: int, pages: int) -> str:
    return f"page {page:,} of {pages:,}" if pages > 1 else ""


def _reduced(content: bytes, box: tuple[int, int]) -> Image.Image:
    _, file = open_image(content)
    if file.size[0] * file.size[1] > MOST_PIXELS:
        raise ValueError(f"it has more than {MOST_PIXELS:,} pixels")
    return reduced_image(content, file, box)


def _drawn_in(image: ObjectStoragePath) -> str | None:
    """Return the DAG that drew an image, or None if its sidecar does not say so."""
    sidecar = read_json(image.parent / f"{image.stem}.json") or {}
    made_by = sidecar.get("made_by")
    dag_id = made_by.get("dag_id") if isinstance(made_by, dict) else None
    return dag_id if isinstance(dag_id, str) and dag_id else None
