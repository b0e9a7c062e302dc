"""The lists of images that the pages load as JSON."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated
from urllib.parse import urlsplit

from airflow.api_fastapi.core_api.security import GetUserDep
from airflow.providers.common.compat.sdk import conf
from fastapi import APIRouter, Depends, HTTPException, Query, Request
from fastapi.responses import JSONResponse

from airflow_provider_qwenimage.plugin.access import may_read_xcoms, readable_dags
from airflow_provider_qwenimage.plugin.addresses import hosts_in
from airflow_provider_qwenimage.plugin.image_records import Records, Status
from airflow_provider_qwenimage.plugin.listings import PageContext, Window, listing
from airflow_provider_qwenimage.plugin.runs import RUNS, Run
from airflow_provider_qwenimage.plugin.time_limits import Shares
from airflow_provider_qwenimage.rules.gallery_urls import PREFIX
from airflow_provider_qwenimage.rules.made_by import Region

_MOST_ITEMS = 200
_MOST_TEXT = 200
# Separate from the threads of Airflow's own pages, which therefore keep responding. A DAG whose storage does not
# respond leaves threads to the others, and the page of all DAGs has its own share.
_SHARES = Shares(6, of_dag=2)
_ALL_DAGS = ""

router = APIRouter()


# Functions rather than classes: the FastAPI of Airflow 3.1 cannot resolve the annotations of a class.
def _read_window(
    offset: Annotated[int, Query(ge=0)] = 0,
    limit: Annotated[int, Query(ge=0, le=_MOST_ITEMS)] = 60,
    status: Annotated[str, Query(max_length=_MOST_TEXT)] = "",
    text: Annotated[str, Query(max_length=_MOST_TEXT)] = "",
    *,
    chosen: bool = False,
) -> Window:
    if status and status not in set(Status):
        raise HTTPException(422, f"status is {status!r}; it must be one of {', '.join(Status)}.")
    return Window(offset, limit, status, text.casefold().split(), only_chosen=chosen)


def read_region(
    region_id: Annotated[str, Query(max_length=_MOST_TEXT)] = "",
    region_index: Annotated[int, Query(ge=0)] = 0,
) -> Region | None:
    """Return the region of a task in a loop, as Airflow's pages address it; None without one."""
    return Region(region_id, region_index) if region_id else None


WindowDep = Annotated[Window, Depends(_read_window)]
RegionDep = Annotated[Region | None, Depends(read_region)]


@router.get("/data")
async def list_all(request: Request, window: WindowDep, user: GetUserDep) -> JSONResponse:
    """List the newest images of all DAGs whose XComs the user may read."""
    return await _SHARES.run(
        _ALL_DAGS,
        lambda: _list_newest(
            request, window, readable_dags(user), lambda dag_id: may_read_xcoms(request, user, dag_id)
        ),
    )


@router.get("/dags/{dag_id}/data")
async def list_dag(request: Request, dag_id: str, window: WindowDep) -> JSONResponse:
    """List the newest images of a DAG."""
    return await _SHARES.run(dag_id, lambda: _list_newest(request, window, {dag_id}, lambda _: True))


@router.get("/dags/{dag_id}/runs/{run_id}/data")
async def list_run(request: Request, dag_id: str, run_id: str, window: WindowDep) -> JSONResponse:
    """List the images of a DAG run."""

    def read() -> JSONResponse:
        run = RUNS.get(dag_id, run_id)
        return _listing(request, window, run.records, is_active=run.is_active, note=_note_on(run))

    return await _SHARES.run(dag_id, read)


@router.get("/dags/{dag_id}/runs/{run_id}/tasks/{task_id}/data")
async def list_task(
    *,
    request: Request,
    dag_id: str,
    run_id: str,
    task_id: str,
    window: WindowDep,
    region: RegionDep,
    map_index: int | None = None,
) -> JSONResponse:
    """List the images of a task instance; without a map index or a region, those of all of them."""

    def read() -> JSONResponse:
        run = RUNS.get(dag_id, run_id)
        images = [record for record in run.records.images if record.belongs_to(task_id, map_index, region)]
        batches = [batch for batch in run.records.batches if batch.task.matches(task_id, map_index, region)]
        choices = [choice for choice in run.records.choices if choice.task.matches(task_id, map_index, region)]
        offered = [candidate for choice in choices for candidate in choice.candidates]
        records = Records([*images, *offered], batches, choices=choices)
        return _listing(request, window, records, is_active=run.is_active, note=_note_on(run))

    return await _SHARES.run(dag_id, read)


def _note_on(run: Run) -> str | None:
    if not run.records.is_cut:
        return None
    return f"This run has more images than the gallery can show. It shows {len(run.records.images):,} images."


def _list_newest(request: Request, window: Window, dag_ids: set[str], may_read: Callable[[str], bool]) -> JSONResponse:
    runs, has_more = RUNS.newest(dag_ids, may_read)
    images = [record for run in runs for record in run.records.images]
    batches = [batch for run in runs for batch in run.records.batches if not batch.task.has_ended]
    note = f"This page shows the newest {len(runs)} runs with images. Each older run has its own page."
    choices = [choice for run in runs for choice in run.records.choices if choice.is_waiting]
    records = Records(images, batches, choices=choices)
    is_active = any(run.is_active for run in runs)
    return _listing(request, window, records, is_active=is_active, note=note if has_more else None)


def _listing(request: Request, window: Window, records: Records, *, is_active: bool, note: str | None) -> JSONResponse:
    return JSONResponse(listing(_context_of(request), window, records, is_active=is_active, note=note))


def _context_of(request: Request) -> PageContext:
    base_url = conf.get("api", "base_url", fallback="") or ""
    headers = request.headers
    # All of them, because a proxy may have changed any.
    names = (headers.get("host"), headers.get("x-forwarded-host"), base_url, str(request.url))
    server = request.scope.get("server") or ("",)
    return PageContext(
        root=str(request.scope.get("root_path", "")).removesuffix(PREFIX),
        own_hosts=frozenset(hosts_in(*names, str(server[0]))),
        is_secure="https" in (request.url.scheme, urlsplit(base_url).scheme, headers.get("x-forwarded-proto")),
    )
