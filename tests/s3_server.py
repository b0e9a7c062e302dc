"""An S3 server for tests (moto) that can deny rights as AWS does."""

from __future__ import annotations

import json
import re
import threading
import uuid
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import boto3
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

_ACCESS_KEY = re.compile(r"Credential=([^/,]+)/")
_DENIED = (
    b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>'
)


class _Quiet(WSGIRequestHandler):
    """Logs no requests, so that the log of a failing test stays short."""

    def log(self, kind: str, message: str, *args: Any) -> None:
        """Log nothing."""


@dataclass(frozen=True)
class FailedPut:
    """An answer to a PUT that is not moto's.

    Attributes:
        status: Its HTTP status.
        code: S3's code for the error.
        stored: Whether the object is stored nevertheless.
    """

    status: str
    code: str = "InternalError"
    stored: bool = False


class S3Server:
    """An S3 server on a port of this machine, in a thread, from `__enter__` to `__exit__`.

    An access key such as ``without-list`` or ``without-read-delete`` has all rights except the named ones.

    Attributes:
        requests: The method, path and query of each request.
        failed_puts: The answers to the next PUT requests for objects.
    """

    def __init__(self) -> None:
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True, request_handler=_Quiet)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.requests: list[tuple[str, str, str]] = []
        self.failed_puts: list[FailedPut] = []
        # Moto looks for an object and then stores it.
        self._putting = threading.Lock()
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def connection(self, *rights_taken: str) -> str:
        """Return an Airflow connection to the server, as JSON, without these rights (list, read, write, delete)."""
        key = "-".join(["without", *rights_taken]) if rights_taken else "all-rights"
        extra = {"endpoint_url": self.url, "region_name": "us-east-1"}
        return json.dumps({"conn_type": "aws", "login": key, "password": "secret-of-s3", "extra": extra})

    def client(self) -> Any:
        """Return a boto3 client with all rights."""
        return boto3.client(
            "s3",
            endpoint_url=self.url,
            region_name="us-east-1",
            aws_access_key_id="all-rights",
            aws_secret_access_key="secret-of-s3",
        )

    def _answer(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"].encode("latin-1").decode("utf-8", "replace")
        self.requests.append((method, path, environ.get("QUERY_STRING", "")))
        found = _ACCESS_KEY.search(environ.get("HTTP_AUTHORIZATION", ""))
        taken = found[1].split("-") if found and found[1].startswith("without") else []
        has_key = "/" in path.strip("/")
        right = {"GET": "read", "HEAD": "read", "DELETE": "delete"}.get(method, "write") if has_key else "list"
        started: list[Any] = []

        def note(status: str, headers: list[tuple[str, str]], *more: Any) -> Any:
            started[:] = [status, headers]

        failed = self.failed_puts.pop(0) if method == "PUT" and has_key and self.failed_puts else None
        if failed is not None and not failed.stored:
            return _fail(failed, environ, start_response)
        with self._putting if method == "PUT" else nullcontext():
            answer = [] if right in taken else list(self._moto(environ, note))
        if failed is not None:
            return _fail(failed, environ, start_response)
        # As in AWS, a missing object is a 403 for a client without the right to list.
        if right in taken or (started[0].startswith("404") and "list" in taken):
            start_response(
                "403 Forbidden", [("Content-Type", "application/xml"), ("Content-Length", str(len(_DENIED)))]
            )
            return [] if method == "HEAD" else [_DENIED]
        start_response(*started)
        return answer


def _fail(failed: FailedPut, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    if not failed.stored:
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    body = f"<Error><Code>{failed.code}</Code><Message>{failed.status}</Message></Error>".encode()
    start_response(failed.status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
    return [body]


@dataclass
class Bucket:
    """A bucket for one test.

    Attributes:
        url: The URL of its root, with a connection that has all rights.
    """

    server: S3Server
    name: str = field(default_factory=lambda: f"bucket-{uuid.uuid4().hex}")
    url: str = ""

    def url_without(self, *rights: str) -> str:
        """Return the URL of its root, with a connection without these rights (list, read, write, delete)."""
        return f"s3://s3_without_{'_'.join(rights)}@{self.name}"

    @property
    def keys(self) -> list[str]:
        """The keys of its objects, sorted."""
        listing = self.server.client().list_objects_v2(Bucket=self.name)
        return sorted(stored["Key"] for stored in listing.get("Contents", []))

    def get(self, key: str) -> bytes:
        """Return the content of an object."""
        content: bytes = self.server.client().get_object(Bucket=self.name, Key=key)["Body"].read()
        return content

    def put(self, key: str, content: bytes) -> None:
        """Store an object directly, not through Airflow."""
        self.server.client().put_object(Bucket=self.name, Key=key, Body=content)

    def content_type(self, key: str) -> str:
        """Return the content type of an object."""
        return str(self.server.client().head_object(Bucket=self.name, Key=key)["ContentType"])

    @property
    def requests(self) -> list[tuple[str, str, str]]:
        """The method, path and query of each request for the bucket so far."""
        return [request for request in self.server.requests if request[1].startswith(f"/{self.name}")]
