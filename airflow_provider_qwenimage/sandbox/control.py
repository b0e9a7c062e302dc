"""The sandbox's control path ``/sandbox``: settings, books, scripts and reset over HTTP, in JSON."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Collection
from dataclasses import asdict
from typing import Any

from aiohttp import web

from airflow_provider_qwenimage.sandbox import wire
from airflow_provider_qwenimage.sandbox.access import CONTROL_HEADERS, refusal
from airflow_provider_qwenimage.sandbox.faults import BEHAVIOURS
from airflow_provider_qwenimage.sandbox.state import SandboxState

_SHOWN_REQUESTS = 1000
# A longer error is cut in the middle: it may quote a body of a megabyte.
_ERROR_START, _ERROR_END = 300, 1000
_SCRIPT_EXAMPLE = '{"route": "status", "behaviours": ["server_error", ["rate_limit", 3], "ok"]}'
_SCRIPT_ALLOWED = f"a JSON object such as {_SCRIPT_EXAMPLE}"

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def add_control_routes(app: web.Application, state: SandboxState, own_names: Collection[str] = ()) -> None:
    """Add the control path to an application. It needs no API key, because it is not part of the API.

    Args:
        own_names: Host names of the sandbox; see `access.refusal`.
    """
    control = _Control(state)
    routes: tuple[tuple[str, str, _Handler], ...] = (
        ("GET", "/sandbox", control.guide),
        ("GET", "/sandbox/settings", control.show_settings),
        ("PATCH", "/sandbox/settings", control.change_settings),
        ("GET", "/sandbox/books", control.show_books),
        ("POST", "/sandbox/reset", control.reset),
        ("GET", "/sandbox/script", control.show_script),
        ("POST", "/sandbox/script", control.add_script),
    )
    for method, path, handler in routes:
        app.router.add_route(method, path, _guarded(handler, own_names))


class _Control:
    def __init__(self, state: SandboxState) -> None:
        self._state = state

    async def guide(self, _: web.Request) -> web.StreamResponse:
        return web.json_response(
            {
                "GET /sandbox/settings": "show the settings",
                "PATCH /sandbox/settings": 'change settings: {"server_error_share": 0.2}',
                "GET /sandbox/books": f"show submissions, charges and the last requests (?last={_SHOWN_REQUESTS})",
                "POST /sandbox/reset": "empty the books and the scripts, and restore the initial settings",
                "GET /sandbox/script": "show the scripted behaviours that are still to come",
                "POST /sandbox/script": f"script the next requests of a route: {_SCRIPT_EXAMPLE}",
                "headers of PATCH and POST": CONTROL_HEADERS,
                "behaviours": BEHAVIOURS,
            }
        )

    async def show_settings(self, _: web.Request) -> web.StreamResponse:
        return web.json_response(asdict(self._state.settings))

    async def change_settings(self, request: web.Request) -> web.StreamResponse:
        changes = await _read_object(request, 'a JSON object such as {"server_error_share": 0.2}')
        self._state.configure(changes)
        return web.json_response(asdict(self._state.settings))

    async def show_books(self, request: web.Request) -> web.StreamResponse:
        last = request.query.get("last", str(_SHOWN_REQUESTS))
        if not (last.isascii() and last.isdigit() and len(last) < 10):  # noqa: PLR2004  digits that int() takes
            raise ValueError(f"last is {last!r}; it must be the number of requests to show, an integer of at least 0.")
        books, settings = self._state.books, self._state.settings
        charged, requests = books.credits_charged(), books.requests()
        shown = requests[-int(last) :] if int(last) else []
        return web.json_response(
            {
                "credits_charged": charged,
                "credits_left": None if settings.credits is None else settings.credits - charged,
                "submissions": [asdict(submission) for submission in books.submissions()],
                "callbacks": [asdict(callback) for callback in books.callbacks()],
                "requests_remembered": len(requests),
                "requests": [asdict(record) for record in shown],
            }
        )

    async def reset(self, _: web.Request) -> web.StreamResponse:
        self._state.reset()
        return web.json_response(asdict(self._state.settings))

    async def show_script(self, _: web.Request) -> web.StreamResponse:
        return web.json_response(self._state.faults.waiting())

    async def add_script(self, request: web.Request) -> web.StreamResponse:
        script = await _read_object(request, _SCRIPT_ALLOWED)
        behaviours = script.get("behaviours")
        if set(script) != {"route", "behaviours"} or not isinstance(behaviours, list):
            raise ValueError(f"The script is {script!r}; it must be {_SCRIPT_ALLOWED}.")
        if not isinstance(script["route"], str):
            raise ValueError(f"route is {script['route']!r}; it must be one of {', '.join(BEHAVIOURS)}.")
        self._state.script(script["route"], behaviours)
        return web.json_response(self._state.faults.waiting())


def _guarded(handler: _Handler, own_names: Collection[str]) -> _Handler:
    async def answer(request: web.Request) -> web.StreamResponse:
        refused = refusal(wire.caller(request), own_names)
        if refused is not None:
            return web.json_response({"error": refused.reason}, status=refused.status)
        try:
            return await handler(request)
        except ValueError as error:
            return web.json_response({"error": _shortened(str(error))}, status=400)

    return answer


def _shortened(text: str) -> str:
    return text if len(text) <= _ERROR_START + _ERROR_END else f"{text[:_ERROR_START]} … {text[-_ERROR_END:]}"


async def _read_object(request: web.Request, allowed: str) -> dict[str, Any]:
    try:
        value = json.loads(await request.read())
    except (ValueError, RecursionError):
        raise ValueError(f"The body is not JSON; it must be {allowed}.") from None
    if not isinstance(value, dict):
        raise ValueError(f"The body is {value!r}; it must be {allowed}.")
    return value
