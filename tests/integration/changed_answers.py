"""A proxy in front of the sandbox API that changes answers in ways for which the sandbox has no script."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import urlsplit

from airflow_provider_qwenimage.sandbox import Sandbox


@dataclass(frozen=True)
class Answer:
    """An answer of the API: its HTTP status and its JSON body."""

    status: int
    body: Any


class Front:
    """Passes each request on to the sandbox API, and its answer back as `change` returns it.

    Args:
        api: The sandbox behind it.
        change: Called with "generate" or "status" and the sandbox's answer; returns the answer to send.
    """

    def __init__(self, api: Sandbox, change: Callable[[str, Answer], Answer]) -> None:
        host = urlsplit(api.url).netloc

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self._pass_on("generate")

            def do_GET(self) -> None:
                self._pass_on("status")

            def _pass_on(self, route: str) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                behind = http.client.HTTPConnection(host, timeout=30)
                behind.request(self.command, self.path, body or None, dict(self.headers))
                response = behind.getresponse()
                answer = change(route, Answer(response.status, json.loads(response.read())))
                behind.close()
                content = json.dumps(answer.body).encode()
                self.send_response(answer.status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self.connection_json = api.connection_json.replace(
            api.url, f"http://127.0.0.1:{self._server.server_address[1]}"
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
