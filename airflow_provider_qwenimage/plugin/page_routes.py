"""The gallery's HTML pages, and their scripts, style sheets and icons."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.staticfiles import StaticFiles

from airflow_provider_qwenimage._version import __version__
from airflow_provider_qwenimage.plugin.credits_chart import amount_text
from airflow_provider_qwenimage.rules.gallery_urls import CREDITS_PATH, dag_page, quoted, run_page

_HERE = Path(__file__).parent
# Some installers link the files of a package instead of copying them.
_STATIC = StaticFiles(directory=_HERE / "static", follow_symlink=True)

router = APIRouter()


@cache
def _templates() -> Environment:
    loader = FileSystemLoader(_HERE / "templates")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["amount"] = amount_text
    return environment


def render(template: str, **values: Any) -> str:
    """Return the HTML of a template."""
    return _templates().get_template(template).render(values)


def _gallery(request: Request, title: str, scope: str, path: str, query: str = "") -> HTMLResponse:
    root = request.scope.get("root_path", "")
    html = render(
        "gallery.html",
        title=title,
        static=f"{root}/static",
        credits_url=f"{root}{CREDITS_PATH}",
        data_url=f"{root}{path}/data{query}",
        scope=scope,
        version=__version__,
    )
    return HTMLResponse(html)


@router.get("/")
async def show_all(request: Request) -> HTMLResponse:
    """Show the newest images of all DAGs that the user may read."""
    return _gallery(request, "Generated images", "all", "")


@router.get("/dags/{dag_id}")
async def show_dag(request: Request, dag_id: str) -> HTMLResponse:
    """Show the newest images of a DAG."""
    return _gallery(request, dag_id, "dag", dag_page(dag_id))


@router.get("/dags/{dag_id}/runs/{run_id}")
async def show_run(request: Request, dag_id: str, run_id: str) -> HTMLResponse:
    """Show the images of a DAG run."""
    return _gallery(request, f"{dag_id} {run_id}", "run", run_page(dag_id, run_id))


@router.get("/dags/{dag_id}/runs/{run_id}/tasks/{task_id}")
async def show_task(request: Request, dag_id: str, run_id: str, task_id: str, map_index: str = "") -> HTMLResponse:
    """Show the images of a task instance."""
    # If the task is not mapped, Airflow leaves its placeholder {MAP_INDEX} in the URL.
    is_number = re.fullmatch(r"-1|\d{1,9}", map_index, re.ASCII)
    query = f"?map_index={int(map_index)}" if is_number else ""
    return _gallery(request, task_id, "task", f"{run_page(dag_id, run_id)}/tasks/{quoted(task_id)}", query)


# A route rather than a mount, which the application's access rules would not cover.
@router.api_route("/static/{name}", methods=["GET", "HEAD"])
async def send_static(request: Request, name: str) -> Response:
    """Send a script, a style sheet or an icon."""
    try:
        response = await _STATIC.get_response(name, request.scope)
    except ValueError as error:
        # A null byte, which older versions of Starlette do not check for.
        raise HTTPException(404) from error
    response.headers["Cache-Control"] = "private, max-age=3600"
    return response
