"""The gallery's web application: access rules, headers and errors of all of its routes."""

from __future__ import annotations

from typing import Any

from fastapi import Depends, FastAPI, Request, Response
from fastapi.exception_handlers import http_exception_handler
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException as StarletteHTTPException

from airflow_provider_qwenimage.plugin import candidate_routes, credits_routes, data_routes, image_routes, page_routes
from airflow_provider_qwenimage.plugin.access import requires_xcom_access
from airflow_provider_qwenimage.plugin.storage_access import RefusedError
from airflow_provider_qwenimage.plugin.time_limits import BusyError

_HEADERS = {
    # Pages load nothing from other hosts and have no inline scripts or styles; about images see `addresses`.
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


class _DefaultHeaders:
    """Adds default headers to every response, including errors."""

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


app = FastAPI(
    title="Qwen-Image gallery",
    dependencies=[Depends(requires_xcom_access)],
    docs_url=None,
    redoc_url=None,
    openapi_url=None,
)
app.add_middleware(_DefaultHeaders)
for routes in (page_routes, data_routes, image_routes, candidate_routes, credits_routes):
    app.include_router(routes.router)


@app.exception_handler(RefusedError)
async def answer_refused(_request: Request, error: Exception) -> JSONResponse:
    """Answer why a file is not shown."""
    return JSONResponse({"detail": str(error)}, status_code=404)


@app.exception_handler(BusyError)
async def answer_busy(_request: Request, _error: Exception) -> JSONResponse:
    """Answer that the request has to be repeated later."""
    detail = "Too many requests for the images of this DAG are waiting. Try again in a few seconds."
    return JSONResponse({"detail": detail}, 503, {"Retry-After": "5"})


@app.exception_handler(StarletteHTTPException)
async def answer_error(request: Request, error: Exception) -> Response:
    """Describe an error: to a browser as a page, to others as JSON."""
    assert isinstance(error, StarletteHTTPException)  # noqa: S101  the class this handler is registered for
    if "text/html" not in request.headers.get("accept", ""):
        return await http_exception_handler(request, error)
    advice = {
        401: "Log in to Airflow and open this page again.",
        403: "You need permission to read the XComs of this DAG.",
    }
    detail = advice.get(error.status_code, str(error.detail))
    html = page_routes.render("error.html", status=error.status_code, detail=detail)
    return HTMLResponse(html, status_code=error.status_code, headers=dict(error.headers or {}))
