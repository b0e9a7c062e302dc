"""A running sandbox: a server in a daemon thread with its own event loop."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import threading
from collections.abc import Iterable
from concurrent.futures import Future
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote

from airflow_provider_qwenimage.sandbox.books import CallbackRecord, RequestRecord, Submission
from airflow_provider_qwenimage.sandbox.faults import ScriptItem
from airflow_provider_qwenimage.sandbox.replay import Replay
from airflow_provider_qwenimage.sandbox.settings import SandboxSettings
from airflow_provider_qwenimage.sandbox.state import SandboxState
from airflow_provider_qwenimage.sandbox.state_file import StateFile
from airflow_provider_qwenimage.text.urls import is_http_url

if TYPE_CHECKING:
    from airflow_provider_qwenimage.sandbox.server import SandboxServer

CONNECTION_TYPE = "qwenimage"

_MAX_PORT = 65535
_STOP_SECONDS = 10.0


class Sandbox:
    """A local stand-in for the API. Use it as a context manager, or call `start` and `stop`.

    Args:
        host: The address to listen on.
        port: The API's port; 0 picks a free one.
        cdn_port: The port of the image URLs, so that they have their own origin as with a real CDN; 0 picks a free
            one, None (or the API's port) serves them from the API's origin.
        cdn_url: The base of the image URLs, if clients reach them at another address than the API.
        ssl_certfile: A PEM file with the certificate; turns on https.
        ssl_keyfile: A PEM file with the certificate's key, if it is not in `ssl_certfile`.
        state_file: A file that keeps tasks and charges across restarts; its folder must exist. Pending calls of a
            ``callback_url`` are not made after a restart. None keeps everything in memory.
        replay: A file of ``airflow qwenimage doctor --record``: submissions are answered as those in it, one after the
            other, and with its images. None answers as documented.
        replay_speed: How many times as fast as recorded the tasks proceed.
        control_hosts: Domain names that requests to the control path ``/sandbox`` may use, in addition to IP
            addresses, `host` and names without a dot.
        **settings: The fields of `SandboxSettings`.

    Raises:
        ValueError: If an argument is not allowed; the message names it, its value and the allowed values.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        cdn_port: int | None = 0,
        cdn_url: str | None = None,
        ssl_certfile: str | None = None,
        ssl_keyfile: str | None = None,
        state_file: str | None = None,
        replay: str | None = None,
        replay_speed: float = 1.0,
        control_hosts: Iterable[str] = (),
        **settings: Any,
    ) -> None:
        _check_port("port", port)
        if cdn_port is not None:
            _check_port("cdn_port", cdn_port)
        if cdn_url is not None and not is_http_url(cdn_url):
            raise ValueError(f"cdn_url is {cdn_url!r}; it must be an absolute http:// or https:// URL, or None.")
        self._host = host
        self._own_names = {host, *control_hosts}
        self._requested_port = port
        self._cdn_port = None if cdn_port == port and port else cdn_port
        self._cdn_url = cdn_url
        self._ssl_context = _load_certificate(ssl_certfile, ssl_keyfile)
        recording = _load_replay(replay, replay_speed, state_file)
        self._state = SandboxState(
            SandboxSettings().changed(settings),
            None if state_file is None else StateFile(state_file),
            recording,
        )
        self._lock = threading.Lock()
        self._port: int | None = None
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop_requested: asyncio.Event | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Bind the ports and serve until `stop`.

        Raises:
            ImportError: If aiohttp or Pillow is not installed.
            OSError: If a port cannot be listened on.
            RuntimeError: If the sandbox is running already.
        """
        with self._lock:
            if self._thread is not None:
                raise RuntimeError("The sandbox is already running. Stop it first, or create another Sandbox.")
            # Imported in this thread, because a slow import would block the event loop.
            server_class = _import_server()
            sockets = [_listen(self._host, self._requested_port)]
            try:
                if self._cdn_port is not None:
                    sockets.append(_listen(self._host, self._cdn_port))
                started: Future[None] = Future()
                thread = threading.Thread(
                    target=lambda: asyncio.run(self._serve(server_class, sockets, started)),
                    name="qwenimage-sandbox",
                    daemon=True,
                )
                thread.start()
                started.result()
            except BaseException:
                for bound in sockets:
                    bound.close()
                raise
            self._port = sockets[0].getsockname()[1]
            self._thread = thread

    def stop(self) -> None:
        """Drop every connection, end the thread and free the ports. Do nothing if the sandbox is not running."""
        with self._lock:
            thread, loop, stop_requested = self._thread, self._loop, self._stop_requested
            if thread is None or loop is None or stop_requested is None:
                return
            loop.call_soon_threadsafe(stop_requested.set)
            thread.join(_STOP_SECONDS)
            self._thread = self._loop = self._stop_requested = self._port = None

    async def _serve(
        self, server_class: type[SandboxServer], sockets: list[socket.socket], started: Future[None]
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop_requested = asyncio.Event()
        try:
            server = server_class(
                self._state,
                sockets[0],
                sockets[1] if len(sockets) > 1 else None,
                cdn_url=self._cdn_url,
                ssl_context=self._ssl_context,
                own_names=self._own_names,
            )
            await server.start()
        except BaseException as error:  # noqa: BLE001  raised again in the thread that waits for the start
            started.set_exception(error)
            return
        started.set_result(None)
        await self._stop_requested.wait()
        await server.stop()

    @property
    def url(self) -> str:
        """The API's base URL.

        Raises:
            RuntimeError: If the sandbox is not running.
        """
        return f"{self._scheme}://{self._address}"

    @property
    def api_key(self) -> str:
        """The first of the accepted API keys."""
        return self._state.settings.api_keys[0]

    @property
    def connection_json(self) -> str:
        """The value of ``AIRFLOW_CONN_QWENIMAGE_DEFAULT`` in Airflow's JSON form."""
        return json.dumps({"conn_type": CONNECTION_TYPE, "host": self.url, "password": self.api_key})

    @property
    def connection_uri(self) -> str:
        """The value of ``AIRFLOW_CONN_QWENIMAGE_DEFAULT`` in Airflow's URI form."""
        return f"{CONNECTION_TYPE}://:{quote(self.api_key, safe='')}@{self._address}/{self._scheme}"

    @property
    def settings(self) -> SandboxSettings:
        """The current settings."""
        return self._state.settings

    def configure(self, **settings: Any) -> None:
        """Change settings while the sandbox runs.

        Args:
            **settings: The fields of `SandboxSettings`.

        Raises:
            ValueError: If a name is unknown or a value is not allowed. Nothing is changed then.
        """
        self._state.configure(settings)

    def script(self, route: str, *behaviours: ScriptItem) -> None:
        """Set the behaviours of the next requests of a route, in this order. They take precedence over random faults.

        Args:
            route: ``generate``, ``status`` or ``image``.
            *behaviours: Names, or pairs of a name and a number of times, such as ``("server_error", 3)``.

        Raises:
            ValueError: If the route or a behaviour is not allowed; the message lists the allowed ones.
        """
        self._state.script(route, behaviours)

    def reset(self) -> None:
        """Empty the books and the scripts, and restore the initial settings."""
        self._state.reset()

    @property
    def submissions(self) -> list[Submission]:
        """Every accepted submission with its current status, oldest first."""
        return self._state.books.submissions()

    @property
    def requests(self) -> list[RequestRecord]:
        """The requests to the API and the CDN, but not to the control path, oldest first."""
        return self._state.books.requests()

    @property
    def callbacks(self) -> list[CallbackRecord]:
        """Every try to call a ``callback_url``, oldest first."""
        return self._state.books.callbacks()

    @property
    def credits_charged(self) -> float:
        """Credits charged so far: 5 for each task that has not failed, `failed_credits` for each that has."""
        return self._state.books.credits_charged()

    @property
    def _scheme(self) -> str:
        return "https" if self._ssl_context else "http"

    @property
    def _address(self) -> str:
        if self._port is None:
            raise RuntimeError("The sandbox is not running, so it has no URL. Start it first.")
        # A client cannot connect to the address that means every interface.
        host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(self._host, self._host)  # noqa: S104
        return f"[{host}]:{self._port}" if ":" in host else f"{host}:{self._port}"


def _check_port(name: str, port: object) -> None:
    if isinstance(port, bool) or not isinstance(port, int) or not 0 <= port <= _MAX_PORT:
        raise ValueError(f"{name} is {port!r}; it must be an integer from 0 (any free port) to {_MAX_PORT}.")


def _load_replay(path: str | None, speed: float, state_file: str | None) -> Replay | None:
    if path is None:
        return None
    if state_file is not None:
        raise ValueError(
            f"replay is {path!r} and state_file is {state_file!r}; a replay cannot be continued after a restart, so "
            "set only one of them."
        )
    return Replay.load(path, speed)


def _load_certificate(certfile: str | None, keyfile: str | None) -> ssl.SSLContext | None:
    if certfile is None:
        if keyfile is not None:
            raise ValueError(
                f"ssl_keyfile is {keyfile!r} without an ssl_certfile; set both for https, or neither for http."
            )
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certfile, keyfile)
    except OSError as error:
        raise ValueError(
            f"ssl_certfile is {certfile!r} and ssl_keyfile is {keyfile!r}, which cannot be loaded ({error}); "
            "they must be PEM files of a certificate and its key."
        ) from error
    return context


def _import_server() -> type[SandboxServer]:
    try:
        import PIL  # noqa: F401  first used to draw an image, but its absence is reported at the start

        from airflow_provider_qwenimage.sandbox.server import SandboxServer
    except ImportError as error:
        raise ImportError(
            f"The sandbox needs aiohttp and Pillow, and one of these packages cannot be imported ({error}). "
            "Install them: pip install aiohttp pillow"
        ) from error
    return SandboxServer


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        reason = str(error.strerror).partition(" (while ")[0]
        raise OSError(
            error.errno,
            f"Cannot listen on {host} port {port}: {reason}. Choose another host or port; port 0 picks a free one.",
        ) from error
