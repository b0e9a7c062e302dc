"""Send answers, correct and faulty ones."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any

from aiohttp import web

from airflow_provider_qwenimage.sandbox.access import CONTROL_HEADER, Caller
from airflow_provider_qwenimage.sandbox.answers import Answer
from airflow_provider_qwenimage.sandbox.books import RequestRecord
from airflow_provider_qwenimage.sandbox.replay import ReplayedAnswer

_CHUNK = bytes(64 * 1024)
_HTML_PAGE = """<!DOCTYPE html>
<html><head><title>502 Bad Gateway</title></head>
<body><h1>502 Bad Gateway</h1><p>The proxy had no answer from the server behind it. Try again.</p></body></html>
"""


def caller(request: web.Request) -> Caller:
    """Return the parts of a request that identify its sender."""
    values = request.headers.getall
    return Caller(
        request.method,
        hosts=values("Host", []),
        origins=values("Origin", []),
        sites=values("Sec-Fetch-Site", []),
        content_types=values("Content-Type", []),
        control_headers=values(CONTROL_HEADER, []),
    )


class DroppedError(Exception):
    """Raised to drop the connection without an answer."""


def envelope(answer: Answer, wire_style: str, record: RequestRecord) -> web.Response:
    """Return the API's answer in a wire style, and record its code."""
    record.code = answer.code
    return web.Response(
        body=answer.body(),
        status=answer.status(wire_style),
        headers=answer.headers(),
        content_type="application/json",
    )


def replayed(answer: ReplayedAnswer, record: RequestRecord) -> web.Response:
    """Return an answer of a recording, and record its code."""
    record.code = answer.code
    return web.Response(body=answer.body, status=answer.status, headers=answer.headers)


def html_page(status: int) -> web.Response:
    """Return a proxy's page instead of an answer."""
    return web.Response(text=_HTML_PAGE, status=status, content_type="text/html")


def redirect(location: str, status: int = 302) -> web.Response:
    """Return a redirect."""
    return web.Response(text=f"Moved to {location}\n", status=status, headers={"Location": location})


def envelope_with_fault(behaviour: str, answer: Answer, wire_style: str, record: RequestRecord) -> web.Response:
    """Return the answer to a request that was processed, with the fault of a behaviour.

    Raises:
        DroppedError: If the behaviour is ``drop_after``.
    """
    if behaviour == "drop_after":
        raise DroppedError
    if behaviour == "html_after":
        return html_page(502)
    if behaviour == "empty":
        return web.Response(content_type="application/json")
    if behaviour == "malformed":
        return web.Response(body=answer.body()[:-2], content_type="application/json")
    if behaviour == "wrong_shape":
        answer = Answer(200, "success", _WRONG_SHAPE)
    if behaviour == "unknown_status" and isinstance(answer.data, dict):
        answer = Answer(200, "success", {**answer.data, "status": "PAUSED", "response": None})
    response = envelope(answer, wire_style, record)
    if behaviour in _OTHER_STATUSES and answer.code == HTTPStatus.OK:
        response.set_status(_OTHER_STATUSES[behaviour])
    return response


# The envelope of a success under another HTTP status.
_OTHER_STATUSES = {"created": HTTPStatus.CREATED, "error_after": HTTPStatus.INTERNAL_SERVER_ERROR}
_WRONG_SHAPE: dict[str, Any] = json.loads(
    '{"task_id": 7, "status": ["SUCCESS"], "consumed_credits": "five", "request": "a cat", "response": {"url": 1}}'
)


async def truncated(request: web.Request, image: bytes, content_type: str) -> web.StreamResponse:
    """Send half an image with the Content-Length of the whole image, and close the connection."""
    response = web.StreamResponse(headers={"Content-Length": str(len(image)), "Content-Type": content_type})
    await response.prepare(request)
    await response.write(image[: len(image) // 2])
    if request.transport is not None:
        request.transport.close()
    return response


async def oversized(request: web.Request, image: bytes, content_type: str, size: int) -> web.StreamResponse:
    """Send an image and then zeros up to `size` bytes, without a Content-Length."""
    response = web.StreamResponse(headers={"Content-Type": content_type})
    await response.prepare(request)
    await response.write(image[:size])
    rest = size - len(image)
    while rest > 0:
        await response.write(_CHUNK[:rest])
        rest -= len(_CHUNK)
    return response
