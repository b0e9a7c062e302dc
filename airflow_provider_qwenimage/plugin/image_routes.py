"""Stored images, their thumbnails and their details; and the contact sheets of batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import quote

from airflow.api_fastapi.core_api.security import GetUserDep
from airflow.configuration import AIRFLOW_HOME
from fastapi import APIRouter, Depends, HTTPException, Request, Response
from fastapi.responses import JSONResponse

from airflow_provider_qwenimage.configuration import text_option, whole_option
from airflow_provider_qwenimage.plugin import stored_images, stored_sheets
from airflow_provider_qwenimage.plugin.access import may_read_every_dag, may_read_xcoms
from airflow_provider_qwenimage.plugin.bounds import mapping, sequence
from airflow_provider_qwenimage.plugin.data_routes import RegionDep
from airflow_provider_qwenimage.plugin.image_records import ImageRecord
from airflow_provider_qwenimage.plugin.runs import READS, RUNS, ImageKey
from airflow_provider_qwenimage.plugin.storage_access import RefusedError, storage_of
from airflow_provider_qwenimage.plugin.thumbnails import MEDIA_TYPE, ThumbnailCache
from airflow_provider_qwenimage.plugin.time_limits import Shares
from airflow_provider_qwenimage.rules.choices import VERDICTS
from airflow_provider_qwenimage.rules.made_by import Region

Result = TypeVar("Result")

_IMAGE = "/dags/{dag_id}/runs/{run_id}/tasks/{task_id}/images/{number}"
_SHEET = "/dags/{dag_id}/runs/{run_id}/tasks/{task_id}/sheets/{page}"
HEADERS = {
    # Nothing runs and nothing loads; a browser scales an image that is opened by itself with inline styles.
    "Content-Security-Policy": "default-src 'none'; img-src 'self'; style-src 'unsafe-inline'; sandbox",
    # The image at an address never changes, and whoever has seen it may see it again for a while.
    "Cache-Control": "private, max-age=3600",
}
# Also limits how many images are in memory at once.
SHARES = Shares(6, of_dag=2)

router = APIRouter()


@cache
def _thumbnails() -> ThumbnailCache:
    folder = text_option("thumbnails_folder") or Path(AIRFLOW_HOME) / "qwenimage-thumbnails"
    return ThumbnailCache(Path(folder), whole_option("thumbnails_megabytes", at_least=1) * 2**20)


@dataclass(frozen=True)
class RequestedImage:
    """A stored image, as the user may see it.

    Attributes:
        found: Its record, if it is known already.
    """

    request: Request
    user: Any
    dag_id: str
    run_id: str
    key: ImageKey
    found: ImageRecord | None = None

    def sidecar(self) -> Mapping[str, Any]:
        """Return the sidecar of the image; see `stored_images.read_sidecar`.

        Raises:
            RefusedError: If it cannot be read in time, or the user may not see the image.
        """
        sidecar = self._read(lambda: stored_images.read_sidecar(self.record))
        other_dag = stored_images.drawn_in(self.record, sidecar)
        if other_dag is not None and not may_read_xcoms(self.request, self.user, other_dag):
            raise RefusedError(stored_images.DRAWN_ELSEWHERE)
        return sidecar

    def image(self, sidecar: Mapping[str, Any]) -> stored_images.StoredImage:
        """Return the image itself; see `stored_images.read_image`."""
        return self._read(lambda: stored_images.read_image(self.record, sidecar))

    def readable_verdicts(self, verdicts: object) -> list[Any]:
        """Return those verdicts of a sidecar that tasks of DAGs gave that the user may read."""
        found = [verdict for verdict in sequence(verdicts) if isinstance(verdict, Mapping)]
        dags = {str(mapping(verdict.get("task")).get("dag_id")) for verdict in found}
        readable = {dag_id for dag_id in dags if may_read_xcoms(self.request, self.user, dag_id)}
        return [verdict for verdict in found if str(mapping(verdict.get("task")).get("dag_id")) in readable]

    def thumbnail(self, sidecar: Mapping[str, Any]) -> bytes:
        """Return the thumbnail of the image, from the cache if it has it."""
        return _thumbnails().get(str(self.record.path), sidecar["sha256"], lambda: self.image(sidecar).content)

    def _read(self, function: Callable[[], Result]) -> Result:
        return READS.run(self.dag_id, storage_of(str(self.record.path)), function)

    @cached_property
    def record(self) -> ImageRecord:
        """The record of the image.

        Raises:
            HTTPException: If the task recorded no such image.
        """
        record = self.found or RUNS.find(self.dag_id, self.run_id, self.key)
        if record is None or record.path is None:
            raise HTTPException(404, "This task recorded no such image.")
        return record


def _requested_image(
    *,
    request: Request,
    dag_id: str,
    run_id: str,
    task_id: str,
    number: int,
    user: GetUserDep,
    region: RegionDep,
    map_index: int = -1,
) -> RequestedImage:
    return RequestedImage(request, user, dag_id, run_id, (task_id, map_index, region, number))


ImageDep = Annotated[RequestedImage, Depends(_requested_image)]


@router.get(_IMAGE)
async def send_image(request: Request, requested: ImageDep, *, download: bool = False) -> Response:
    """Send a stored image, complete and as it was verified."""

    def read() -> Response:
        sidecar = requested.sidecar()
        etag = f'"{sidecar["sha256"]}"'
        if not download and request.headers.get("if-none-match") == etag:
            return Response(status_code=304, headers={"ETag": etag, **HEADERS})
        image = requested.image(sidecar)
        disposition = f"{'attachment' if download else 'inline'}; filename*=UTF-8''{quote(image.name)}"
        headers = {"ETag": etag, "Content-Disposition": disposition, **HEADERS}
        return Response(image.content, media_type=image.media_type, headers=headers)

    return await SHARES.run(requested.dag_id, read)


@router.get(f"{_IMAGE}/thumbnail")
async def send_thumbnail(requested: ImageDep) -> Response:
    """Send the thumbnail of a stored image."""

    def read() -> Response:
        content = requested.thumbnail(requested.sidecar())
        return Response(content, media_type=MEDIA_TYPE, headers=HEADERS)

    return await SHARES.run(requested.dag_id, read)


@router.get(f"{_IMAGE}/details")
async def send_details(requested: ImageDep) -> JSONResponse:
    """Send the sidecar of a stored image, with the path of the image."""

    def read() -> JSONResponse:
        sidecar = requested.sidecar()
        if VERDICTS in sidecar:
            sidecar = {**sidecar, VERDICTS: requested.readable_verdicts(sidecar[VERDICTS])}
        return JSONResponse({**sidecar, "path": requested.record.path})

    return await SHARES.run(requested.dag_id, read)


@dataclass(frozen=True)
class _RequestedSheet:
    """A page of the contact sheet of a batch, as the user may see it."""

    request: Request
    user: Any
    dag_id: str
    run_id: str
    key: tuple[str, int, Region | None]
    page: int

    @cached_property
    def file(self) -> stored_sheets.StoredSheet:
        """The file, unopened.

        Raises:
            HTTPException: If the task recorded no such page.
        """
        batch = RUNS.find_sheet(self.dag_id, self.run_id, self.key, self.page)
        path = None if batch is None else batch.sheet(self.page)
        if batch is None or path is None:
            raise HTTPException(404, "This task recorded no such contact sheet.")
        return stored_sheets.StoredSheet(path, batch.task.writer)

    def check(self) -> None:
        """Check that the user may see all images of the sheet, also those that another DAG drew.

        Raises:
            RefusedError: If not, or the file is not the sheet of this task.
        """
        dags = self.read(self.file.comment).other_dags
        if dags is None:
            is_allowed = may_read_every_dag(self.request, self.user)
        else:
            is_allowed = all(may_read_xcoms(self.request, self.user, dag_id) for dag_id in sorted(dags))
        if not is_allowed:
            raise RefusedError("This contact sheet has images that were drawn in another DAG.")

    def read(self, function: Callable[[], Result]) -> Result:
        """Return the result of a read of storage, limited in time."""
        return READS.run(self.dag_id, storage_of(self.file.path), function)


def _requested_sheet(
    *,
    request: Request,
    dag_id: str,
    run_id: str,
    task_id: str,
    page: int,
    user: GetUserDep,
    region: RegionDep,
    map_index: int = -1,
) -> _RequestedSheet:
    return _RequestedSheet(request, user, dag_id, run_id, (task_id, map_index, region), page)


SheetDep = Annotated[_RequestedSheet, Depends(_requested_sheet)]


@router.get(_SHEET)
async def send_sheet(requested: SheetDep) -> Response:
    """Send a page of the contact sheet of a batch."""

    def read() -> Response:
        requested.check()
        content = requested.read(requested.file.content)
        return Response(content, media_type=stored_sheets.MEDIA_TYPE, headers=HEADERS)

    return await SHARES.run(requested.dag_id, read)


@router.get(f"{_SHEET}/thumbnail")
async def send_sheet_thumbnail(requested: SheetDep) -> Response:
    """Send the thumbnail of a page of the contact sheet of a batch."""

    def read() -> Response:
        requested.check()
        file = requested.file
        version = requested.read(file.version)
        content = _thumbnails().get(file.path, version, lambda: requested.read(file.content))
        return Response(content, media_type=MEDIA_TYPE, headers=HEADERS)

    return await SHARES.run(requested.dag_id, read)
