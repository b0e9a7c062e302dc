"""The gallery's pages: who may see what of which DAG, and in which form it is sent."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import quote, urlsplit

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
from airflow.api_fastapi.core_api.security import GetUserDep, requires_access_dag
from airflow.configuration import AIRFLOW_HOME
from airflow.providers.common.compat.sdk import conf
from fastapi import Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.exception_handlers import http_exception_handler
from fastapi.responses import HTMLResponse, JSONResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException as StarletteHTTPException

from airflow_provider_qwenimage._version import __version__
from airflow_provider_qwenimage.plugin import stored_images
from airflow_provider_qwenimage.plugin.addresses import hosts_in
from airflow_provider_qwenimage.plugin.image_records import ImageRecord, Records, Status
from airflow_provider_qwenimage.plugin.listings import Place, Window, listing
from airflow_provider_qwenimage.plugin.runs import READS, Run, Runs
from airflow_provider_qwenimage.plugin.storage_access import RefusedError, storage_of
from airflow_provider_qwenimage.plugin.thumbnails import MEDIA_TYPE, MOST_BYTES, ThumbnailCache
from airflow_provider_qwenimage.plugin.time_limits import BusyError, Shares
from airflow_provider_qwenimage.rules.gallery_urls import PREFIX, dag_page, quoted, run_page

Result = TypeVar("Result")

_STATIC = Path(__file__).with_name("static")
_STATIC_TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
_MOST_ITEMS = 200
_MOST_TEXT = 200

_HEADERS = {
    # Nothing comes from elsewhere, and nothing is inline: see `addresses` for images.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
        "frame-ancestors 'self'; base-uri 'none'; form-action 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "SAMEORIGIN",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_IMAGE_HEADERS = {
    # Nothing runs and nothing loads; browsers center and scale an image that is opened by itself with inline styles.
    "Content-Security-Policy": "default-src 'none'; img-src 'self'; style-src 'unsafe-inline'; sandbox",
    # An image by its URL stays the same; whoever has seen it may see it again for a while.
    "Cache-Control": "private, max-age=3600",
}


class _Headers:
    """Puts the headers on every answer, errors as well, that has not its own."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, send_with_headers)


# The gallery shows XComs, so whoever may not see those of a DAG does not see its images.
app = FastAPI(
    title="Qwen-Image gallery",
    dependencies=[Depends(requires_access_dag("GET", DagAccessEntity.XCOM))],
    docs_url=None,
    redoc_url=None,
    openapi_url=None,
)
app.add_middleware(_Headers)

_runs = Runs()
# Apart from the threads of Airflow's own pages: however many images are asked for, those go on answering, and no more
# images than this are in memory. A DAG whose storage does not respond leaves room for the others.
_listings = Shares(6, of_dag=2)
_images = Shares(6, of_dag=2)
# The page of all DAGs has a share of its own.
_ALL = ""


@cache
def _thumbnails() -> ThumbnailCache:
    folder = conf.get("qwenimage", "thumbnails_folder", fallback="") or Path(AIRFLOW_HOME) / "qwenimage-thumbnails"
    most_bytes = conf.getint("qwenimage", "thumbnails_megabytes", fallback=MOST_BYTES // 2**20) * 2**20
    return ThumbnailCache(Path(folder), most_bytes)


@cache
def _templates() -> Environment:
    return Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")), autoescape=True, undefined=StrictUndefined
    )


def _page(request: Request, title: str, scope: str, path: str, query: str = "") -> HTMLResponse:
    root = request.scope.get("root_path", "")
    html = (
        _templates()
        .get_template("gallery.html")
        .render(
            title=title,
            static=f"{root}/static",
            data_url=f"{root}{path}/data{query}",
            scope=scope,
            version=__version__,
        )
    )
    return HTMLResponse(html)


@app.get("/")
async def show_all(request: Request) -> HTMLResponse:
    """Show the page of the newest images of all DAGs that the user may read."""
    return _page(request, "Generated images", "all", "")


@app.get("/dags/{dag_id}")
async def show_dag(request: Request, dag_id: str) -> HTMLResponse:
    """Show the page of a DAG's newest images."""
    return _page(request, dag_id, "dag", dag_page(dag_id))


@app.get("/dags/{dag_id}/runs/{run_id}")
async def show_run(request: Request, dag_id: str, run_id: str) -> HTMLResponse:
    """Show the page of a DAG run's images."""
    return _page(request, f"{dag_id} {run_id}", "run", run_page(dag_id, run_id))


@app.get("/dags/{dag_id}/runs/{run_id}/tasks/{task_id}")
async def show_task(request: Request, dag_id: str, run_id: str, task_id: str, map_index: str = "") -> HTMLResponse:
    """Show the page of a task instance's images."""
    index = _map_index(map_index)
    query = "" if index is None else f"?map_index={index}"
    return _page(request, task_id, "task", f"{run_page(dag_id, run_id)}/tasks/{quoted(task_id)}", query)


def _map_index(text: str) -> int | None:
    """Return a map index from a URL, in which Airflow leaves its placeholder where a task is not mapped."""
    return int(text) if re.fullmatch(r"-1|\d{1,9}", text, re.ASCII) else None


# Functions rather than classes: the FastAPI of Airflow 3.1 cannot resolve the annotations of a class.
def _read_window(
    offset: Annotated[int, Query(ge=0)] = 0,
    limit: Annotated[int, Query(ge=0, le=_MOST_ITEMS)] = 60,
    status: Annotated[str, Query(max_length=_MOST_TEXT)] = "",
    text: Annotated[str, Query(max_length=_MOST_TEXT)] = "",
) -> Window:
    if status and status not in set(Status):
        raise HTTPException(422, f"status is {status!r}; allowed are {', '.join(Status)}.")
    return Window(offset, limit, status, text.casefold().split())


WindowDep = Annotated[Window, Depends(_read_window)]


@app.get("/data")
async def list_all(request: Request, window: WindowDep, user: GetUserDep) -> JSONResponse:
    """List the newest images of all DAGs whose XComs the user may read."""

    def read() -> JSONResponse:
        dag_ids = get_auth_manager().get_authorized_dag_ids(user=user, method="GET")
        return _list_newest(request, window, dag_ids, lambda dag_id: _may_read_xcoms(request, user, dag_id))

    return await _listings.run(_ALL, read)


@app.get("/dags/{dag_id}/data")
async def list_dag(request: Request, dag_id: str, window: WindowDep) -> JSONResponse:
    """List the newest images of a DAG."""
    return await _listings.run(dag_id, lambda: _list_newest(request, window, {dag_id}, lambda _: True))


@app.get("/dags/{dag_id}/runs/{run_id}/data")
async def list_run(request: Request, dag_id: str, run_id: str, window: WindowDep) -> JSONResponse:
    """List the images of a DAG run."""

    def read() -> JSONResponse:
        run = _runs.get(dag_id, run_id)
        return _listing(request, window, run.records, is_active=run.is_active, note=_note_of(run))

    return await _listings.run(dag_id, read)


@app.get("/dags/{dag_id}/runs/{run_id}/tasks/{task_id}/data")
async def list_task(
    *, request: Request, dag_id: str, run_id: str, task_id: str, window: WindowDep, map_index: int | None = None
) -> JSONResponse:
    """List the images of a task instance; without a map index, those of all instances of the task."""

    def read() -> JSONResponse:
        run = _runs.get(dag_id, run_id)
        images = [record for record in run.records.images if record.is_of(task_id, map_index)]
        batches = [batch for batch in run.records.batches if batch.task.is_at(task_id, map_index)]
        return _listing(request, window, Records(images, batches), is_active=run.is_active, note=_note_of(run))

    return await _listings.run(dag_id, read)


def _note_of(run: Run) -> str | None:
    if not run.records.is_cut:
        return None
    return f"This run has too many images to show; these are among the first {len(run.records.images):,}."


def _may_read_xcoms(request: Request, user: Any, dag_id: str) -> bool:
    try:
        requires_access_dag("GET", DagAccessEntity.XCOM, dag_id)(request, user)
    except HTTPException:
        return False
    return True


def _list_newest(request: Request, window: Window, dag_ids: set[str], may_read: Callable[[str], bool]) -> JSONResponse:
    runs, is_cut = _runs.newest(dag_ids, may_read)
    images = [record for run in runs for record in run.records.images]
    batches = [batch for run in runs for batch in run.records.batches if not batch.task.has_ended]
    note = f"These are the newest {len(runs)} runs with images; the page of each older run has its own."
    records = Records(images, batches)
    is_active = any(run.is_active for run in runs)
    return _listing(request, window, records, is_active=is_active, note=note if is_cut else None)


def _listing(
    request: Request, window: Window, records: Records, *, is_active: bool, note: str | None = None
) -> JSONResponse:
    base_url = conf.get("api", "base_url", fallback="") or ""
    headers = request.headers
    # Whichever of them is true: a proxy may have changed each.
    names = (headers.get("host"), headers.get("x-forwarded-host"), base_url, str(request.url))
    server = request.scope.get("server") or ("",)
    is_secure = "https" in (request.url.scheme, urlsplit(base_url).scheme, headers.get("x-forwarded-proto"))
    root = str(request.scope.get("root_path", "")).removesuffix(PREFIX)
    place = Place(root, frozenset(hosts_in(*names, str(server[0]))), is_secure)
    return JSONResponse(listing(place, window, records, is_active=is_active, note=note))


_IMAGE = "/dags/{dag_id}/runs/{run_id}/tasks/{task_id}/images/{number}"


@dataclass(frozen=True)
class _Stored:
    """A stored image of a task instance, for a user who may see it."""

    request: Request
    user: Any
    dag_id: str
    run_id: str
    place: tuple[str, int, int]

    def sidecar(self) -> Mapping[str, Any]:
        """Return its sidecar; see `stored_images.read_sidecar`.

        Raises:
            RefusedError: If it cannot be read in time, or the user may not see the image.
        """
        sidecar = self._read(lambda: stored_images.read_sidecar(self.record))
        elsewhere = stored_images.drawn_in(self.record, sidecar)
        if elsewhere is not None and not _may_read_xcoms(self.request, self.user, elsewhere):
            raise RefusedError(stored_images.DRAWN_ELSEWHERE)
        return sidecar

    def image(self, sidecar: Mapping[str, Any]) -> stored_images.StoredImage:
        """Return the image itself; see `stored_images.read_image`."""
        return self._read(lambda: stored_images.read_image(self.record, sidecar))

    def _read(self, function: Callable[[], Result]) -> Result:
        return READS.run(self.dag_id, storage_of(str(self.record.path)), function)

    @cached_property
    def record(self) -> ImageRecord:
        """What its task has recorded.

        Raises:
            HTTPException: If it has recorded no such image.
        """
        record = _runs.find(self.dag_id, self.run_id, self.place)
        if record is None or record.path is None:
            raise HTTPException(404, "This task has recorded no such image.")
        return record


def _find_stored(
    *,
    request: Request,
    dag_id: str,
    run_id: str,
    task_id: str,
    number: int,
    user: GetUserDep,
    map_index: int = -1,
) -> _Stored:
    return _Stored(request, user, dag_id, run_id, (task_id, map_index, number))


StoredDep = Annotated[_Stored, Depends(_find_stored)]


@app.get(_IMAGE)
async def send_image(request: Request, stored: StoredDep, *, download: bool = False) -> Response:
    """Send a stored image, whole and as it was verified."""

    def read() -> Response:
        sidecar = stored.sidecar()
        etag = f'"{sidecar["sha256"]}"'
        if not download and request.headers.get("if-none-match") == etag:
            return Response(status_code=304, headers={"ETag": etag, **_IMAGE_HEADERS})
        image = stored.image(sidecar)
        disposition = f"{'attachment' if download else 'inline'}; filename*=UTF-8''{quote(image.name)}"
        headers = {"ETag": etag, "Content-Disposition": disposition, **_IMAGE_HEADERS}
        return Response(image.content, media_type=image.media_type, headers=headers)

    return await _images.run(stored.dag_id, read)


@app.get(f"{_IMAGE}/thumbnail")
async def send_thumbnail(stored: StoredDep) -> Response:
    """Send a small picture of a stored image."""

    def read() -> Response:
        sidecar = stored.sidecar()
        path = str(stored.record.path)
        small = _thumbnails().get(path, sidecar["sha256"], lambda: stored.image(sidecar).content)
        return Response(small, media_type=MEDIA_TYPE, headers=_IMAGE_HEADERS)

    return await _images.run(stored.dag_id, read)


@app.get(f"{_IMAGE}/details")
async def send_details(stored: StoredDep) -> JSONResponse:
    """Send the sidecar of a stored image, with its path."""

    def read() -> JSONResponse:
        return JSONResponse({**stored.sidecar(), "path": stored.record.path})

    return await _images.run(stored.dag_id, read)


@app.get("/static/{name}")
async def send_static(name: str) -> Response:
    """Send a script, a style sheet or an icon of the pages."""
    file = {file.name: file for file in _STATIC.iterdir()}.get(name)
    if file is None or file.suffix not in _STATIC_TYPES:
        raise HTTPException(404, "There is no such file.")
    headers = {"Cache-Control": "private, max-age=3600"}
    return Response(file.read_bytes(), media_type=_STATIC_TYPES[file.suffix], headers=headers)


@app.exception_handler(RefusedError)
async def answer_refusal(_request: Request, error: Exception) -> JSONResponse:
    """Say why a file is not shown."""
    return JSONResponse({"detail": str(error)}, status_code=404)


@app.exception_handler(BusyError)
async def answer_later(_request: Request, _error: Exception) -> JSONResponse:
    """Say that too many wait already."""
    headers = {"Retry-After": "5"}
    return JSONResponse({"detail": "Too many requests for this DAG's images are waiting."}, 503, headers)


@app.exception_handler(StarletteHTTPException)
async def answer_error(request: Request, error: Exception) -> Response:
    """Say what is wrong, to a person as a page."""
    assert isinstance(error, StarletteHTTPException)  # noqa: S101  what it is registered for
    if "text/html" not in request.headers.get("accept", ""):
        return await http_exception_handler(request, error)
    advice = {401: "Log in to Airflow and open this page again.", 403: "You may not read this DAG."}
    detail = advice.get(error.status_code, str(error.detail))
    html = _templates().get_template("error.html").render(status=error.status_code, detail=detail)
    return HTMLResponse(html, status_code=error.status_code, headers=dict(error.headers or {}))
