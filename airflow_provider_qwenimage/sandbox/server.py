"""The sandbox's HTTP server: the API's two routes, the CDN's route and the target of redirects."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import ssl
from collections.abc import Awaitable, Callable, Collection
from functools import lru_cache
from urllib.parse import quote

from aiohttp import web

from airflow_provider_qwenimage.contract import GENERATE_PATH, OUTPUT_FORMATS, STATUS_PATH
from airflow_provider_qwenimage.sandbox import access, answers, wire
from airflow_provider_qwenimage.sandbox.answers import Answer
from airflow_provider_qwenimage.sandbox.books import RequestRecord, Task
from airflow_provider_qwenimage.sandbox.callbacks import Callbacks
from airflow_provider_qwenimage.sandbox.control import add_control_routes
from airflow_provider_qwenimage.sandbox.faults import callback_of, callback_times, task_seconds
from airflow_provider_qwenimage.sandbox.pictures import Pictures
from airflow_provider_qwenimage.sandbox.replay import ReplayedAnswer, ReplayedTask
from airflow_provider_qwenimage.sandbox.state import SandboxState

_BODY_BYTES = 1024 * 1024
_SHUTDOWN_SECONDS = 0.2
# Turns of the event loop: one accepts the connection, one makes its transport, one registers it with the server.
_ACCEPTING_TURNS = 3
# Clients choose the length of a request's path; the books record only its beginning.
_RECORDED_CHARACTERS = 2000
_WRONG_PIXEL_SIZE = (512, 512)

_Process = Callable[[web.Request, RequestRecord], Awaitable[web.StreamResponse]]


class SandboxServer:
    """A server on sockets that are bound already. Use it from one event loop only.

    Args:
        api_socket: The socket of the API and the control path.
        cdn_socket: The socket of the image URLs; None serves them from the API's.
        cdn_url: The base of the image URLs; None derives it from the Host of each request.
        ssl_context: None serves http.
        own_names: Host names of the sandbox; see `access.refusal`.
    """

    def __init__(
        self,
        state: SandboxState,
        api_socket: socket.socket,
        cdn_socket: socket.socket | None,
        *,
        cdn_url: str | None = None,
        ssl_context: ssl.SSLContext | None = None,
        own_names: Collection[str] = (),
    ) -> None:
        self._state = state
        self._sockets = [api_socket] if cdn_socket is None else [api_socket, cdn_socket]
        self._ssl_context = ssl_context
        self._cdn_url = cdn_url.rstrip("/") if cdn_url else None
        self._cdn_origin = lru_cache(maxsize=64)(self._find_cdn_origin)
        self._cdn_port: int = self._sockets[-1].getsockname()[1]
        self._stopping = asyncio.Event()
        self._pictures = Pictures()
        self._callbacks = Callbacks(state.books)
        app = web.Application(client_max_size=_BODY_BYTES)
        app.router.add_post(GENERATE_PATH, self._generate)
        app.router.add_get(STATUS_PATH, self._status, allow_head=False)
        app.router.add_get("/cdn/{name}", self._image)
        app.router.add_route("*", "/redirected", self._redirected)
        add_control_routes(app, state, own_names)
        app.router.add_route("*", "/{path:.*}", self._other)
        # handler_cancellation: a handler ends when its client hangs up.
        self._runner = web.AppRunner(
            app, access_log=None, handler_cancellation=True, shutdown_timeout=_SHUTDOWN_SECONDS
        )

    async def start(self) -> None:
        """Start serving."""
        await self._runner.setup()
        for bound in self._sockets:
            await web.SockSite(self._runner, bound, ssl_context=self._ssl_context).start()

    async def stop(self) -> None:
        """End the hanging requests, close every connection and end every thread."""
        self._stopping.set()
        await self._callbacks.close()
        await self._stop_accepting()
        # Aborted, not closed: a client that does not read would keep a closing connection open.
        for connection in self._runner.server.connections if self._runner.server else ():
            if connection.transport is not None:
                connection.transport.abort()
        await self._runner.cleanup()
        self._pictures.close()
        for bound in self._sockets:
            bound.close()

    async def _stop_accepting(self) -> None:
        """Accept no more connections, and let the server register those that were just accepted.

        Closing an asyncio server fails on a connection that is accepted in the same turn of the loop.
        """
        loop = asyncio.get_running_loop()
        # NotImplementedError: the event loop of Windows has no readers.
        with contextlib.suppress(NotImplementedError):
            for bound in self._sockets:
                loop.remove_reader(bound)
        for _ in range(_ACCEPTING_TURNS):
            await asyncio.sleep(0)

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        return await self._serve("generate", request, self._process_api)

    async def _status(self, request: web.Request) -> web.StreamResponse:
        return await self._serve("status", request, self._process_api)

    async def _image(self, request: web.Request) -> web.StreamResponse:
        return await self._serve("image", request, self._process_image)

    async def _redirected(self, request: web.Request) -> web.StreamResponse:
        self._record(request, "redirected").status = 404
        return web.Response(text="A redirect led here, where no API is. Do not follow it.\n", status=404)

    async def _other(self, request: web.Request) -> web.StreamResponse:
        record = self._record(request, "other")
        answer = answers.unknown_path(request.method, request.path)
        response = wire.envelope(answer, self._state.settings.wire_style, record)
        record.status = response.status
        return response

    def _record(self, request: web.Request, route: str) -> RequestRecord:
        books = self._state.books
        record = RequestRecord(
            method=request.method,
            path=request.path_qs[:_RECORDED_CHARACTERS],
            route=route,
            authorized_header="Authorization" in request.headers,
            time=books.clock(),
            client_port=_port_of(request),
        )
        books.note_request(record)
        return record

    async def _serve(self, route: str, request: web.Request, process: _Process) -> web.StreamResponse:
        record = self._record(request, route)
        record.behaviour = self._state.faults.next_behaviour(route, self._state.settings)
        try:
            response = await self._process_with_fault(process, route, request, record)
        except wire.DroppedError:
            if request.transport is not None:
                request.transport.abort()
            # This cannot be sent any more, but aiohttp requires every handler to return a response.
            return web.Response()
        record.status = response.status
        return response

    async def _process_with_fault(
        self, process: _Process, route: str, request: web.Request, record: RequestRecord
    ) -> web.StreamResponse:
        """Process a request, unless its fault comes first."""
        settings, behaviour = self._state.settings, record.behaviour
        if settings.latency_seconds and route in settings.fault_paths:
            await self._pause(settings.latency_seconds)
        if behaviour == "hang":
            await self._pause(settings.hang_seconds)
        elif behaviour == "drop":
            with contextlib.suppress(ValueError):
                await _read_body(request)
            raise wire.DroppedError
        elif behaviour == "html" and route != "image":
            return wire.html_page(502)
        elif behaviour == "redirect":
            return wire.redirect(self._redirect_target(route, request))
        error = answers.error_answer(behaviour, settings.retry_after)
        if error is not None:
            return wire.envelope(error, settings.wire_style if route != "image" else "http", record)
        response = await process(request, record)
        if behaviour == "hang_after":
            await self._pause(settings.hang_seconds)
        return response

    async def _process_api(self, request: web.Request, record: RequestRecord) -> web.StreamResponse:
        settings = self._state.settings
        if access.is_from_page(wire.caller(request)):
            answer = answers.FROM_A_PAGE
        elif not answers.has_key(request.headers.get("Authorization"), settings.api_keys):
            answer = answers.UNAUTHORIZED
        elif replayed := await self._replayed(request, record):
            if replayed.is_redirect:
                return wire.redirect(self._redirect_target(record.route, request), replayed.status)
            return wire.replayed(replayed, record)
        elif record.route == "generate":
            answer = await self._submit(request, record)
        else:
            answer = self._look_up(request, record)
        return wire.envelope_with_fault(record.behaviour, answer, settings.wire_style, record)

    async def _submit(self, request: web.Request, record: RequestRecord) -> Answer:
        try:
            asked = answers.read_generate(await _read_body(request))
        except ValueError as error:
            return answers.bad_request(str(error))
        state, settings, behaviour = self._state, self._state.settings, record.behaviour
        task = state.books.accept(
            asked,
            seconds=task_seconds(asked.prompt, behaviour, settings),
            pending_share=settings.pending_share,
            outcome=state.faults.next_outcome(asked.prompt, behaviour, settings),
            failed_credits=settings.failed_credits,
            credit_limit=settings.credits,
        )
        if task is None:
            return answers.PAYMENT_REQUIRED
        state.save(task)
        record.task_id = task.task_id
        self._schedule_callbacks(task, self._image_url(task, request), behaviour)
        return Answer(200, "success", {"task_id": task.task_id, "status": "IN_PROGRESS"})

    async def _replayed(self, request: web.Request, record: RequestRecord) -> ReplayedAnswer | None:
        """Return the answer of a recording, if there is one and the request is valid and has no fault."""
        state, replay = self._state, self._state.replay
        if replay is None or record.behaviour != "ok":
            return None
        if record.route == "status":
            task = replay.find(request.query.get("task_id", ""))
            record.task_id = task.task_id if task else None
            return replay.status(task, state.books.clock()) if task else None
        try:
            asked = answers.read_generate(await _read_body(request))
        except ValueError:
            return None
        image = replay.next_image()
        task_id = replay.new_id(image)
        if task_id is None:
            return replay.submission(image, None)
        accepted = state.books.accept(
            asked,
            seconds=replay.seconds(image),
            pending_share=state.settings.pending_share,
            outcome=image.outcome,
            failed_credits=image.failed_credits,
            credit_limit=state.settings.credits,
            task_id=task_id,
        )
        if accepted is None:
            return None
        record.task_id = task_id
        image_url = self._image_url(accepted, request)
        self._schedule_callbacks(accepted, image_url, record.behaviour)
        task = ReplayedTask(image, task_id, asked, image_url, accepted.accepted_at)
        replay.begin(task)
        return replay.submission(image, task)

    def _schedule_callbacks(self, task: Task, image_url: str, behaviour: str) -> None:
        settings = self._state.settings
        for moment in callback_times(callback_of(behaviour, settings), task.ends_at, settings.callback_delay_seconds):
            self._callbacks.schedule(task, image_url, moment)

    def _look_up(self, request: web.Request, record: RequestRecord) -> Answer:
        task_id = request.query.get("task_id")
        if not task_id:
            return answers.TASK_ID_REQUIRED
        record.task_id = task_id[:_RECORDED_CHARACTERS]
        books = self._state.books
        task = books.find(task_id)
        if task is None or books.clock() < task.accepted_at + self._state.settings.unknown_seconds:
            return answers.NOT_FOUND
        return Answer(200, "success", task.data_at(books.clock(), self._image_url(task, request)))

    async def _process_image(self, request: web.Request, record: RequestRecord) -> web.StreamResponse:
        task_id, _, output_format = request.match_info["name"].rpartition(".")
        record.task_id = task_id[:_RECORDED_CHARACTERS]
        replay = self._state.replay
        replayed = replay.find(task_id) if replay is not None and record.behaviour == "ok" else None
        if replay is not None and replayed is not None and (answer := replay.download(replayed)):
            return wire.replayed(answer, record)
        books = self._state.books
        task = books.find(task_id)
        if task is None or task.request.output_format != output_format or task.status_at(books.clock()) != "SUCCESS":
            return web.Response(text="No such image. Ask /api/status for the image's URL.\n", status=404)
        return await self._send_image(task, request, record)

    async def _send_image(self, task: Task, request: web.Request, record: RequestRecord) -> web.StreamResponse:
        behaviour, asked = record.behaviour, task.request
        content_type = f"image/{asked.output_format}"
        if behaviour == "html":
            return wire.html_page(200)
        if behaviour == "empty":
            return web.Response(content_type=content_type)
        other_size = _WRONG_PIXEL_SIZE if behaviour == "wrong_size" else None
        other_format = _another_format(asked.output_format) if behaviour == "wrong_format" else None
        image = await self._pictures.get(asked, task.seed, pixel_size=other_size, output_format=other_format)
        if behaviour == "drop_after":
            raise wire.DroppedError
        if behaviour == "truncate":
            return await wire.truncated(request, image, content_type)
        if behaviour == "truncate_with_length":
            image = image[: len(image) // 2]
        if behaviour == "garbage":
            image = random.Random(task.seed).randbytes(len(image))  # noqa: S311  garbage, not a secret
        if behaviour == "oversized":
            return await wire.oversized(request, image, content_type, self._state.settings.oversized_bytes)
        return web.Response(body=image, content_type=content_type)

    async def _pause(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._stopping.wait(), seconds)
        except TimeoutError:
            return
        raise wire.DroppedError

    def _image_url(self, task: Task, request: web.Request) -> str:
        return f"{self._cdn_origin(request.host)}/cdn/{quote(task.task_id, safe='')}.{task.request.output_format}"

    def _redirect_target(self, route: str, request: web.Request) -> str:
        origin = self._cdn_origin(request.host)
        return f"{origin}{request.path_qs}" if route == "image" else f"{origin}/redirected?from={quote(request.path)}"

    def _find_cdn_origin(self, host_header: str) -> str:
        """Return the origin of the image URLs, with the host name that the client uses."""
        if self._cdn_url:
            return self._cdn_url
        name, colon, port = host_header.rpartition(":")
        host = name if colon and port.isdigit() else host_header
        return f"{'https' if self._ssl_context else 'http'}://{host}:{self._cdn_port}"


def _port_of(request: web.Request) -> int | None:
    peer = request.transport.get_extra_info("peername") if request.transport else None
    return peer[1] if isinstance(peer, tuple) else None


async def _read_body(request: web.Request) -> bytes:
    try:
        return await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise ValueError(f"Bad Request: the body is larger than {_BODY_BYTES} bytes. Send less.") from None


def _another_format(output_format: str) -> str:
    return next(other for other in OUTPUT_FORMATS if other != output_format)
