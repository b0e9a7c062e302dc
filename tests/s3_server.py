"""A real S3 server for tests, moto's, in front of which rights can be taken away as AWS takes them away."""

from __future__ import annotations

import json
import re
import threading
import uuid
from collections.abc import Callable, Iterable
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
    """Logs no requests: the log of a test that fails is for what was tested."""

    def log(self, kind: str, message: str, *args: Any) -> None:
        """Log nothing."""


class S3Server:
    """Serves S3 at a port of this machine, in a thread, until it is closed.

    Who has the access key ``without-list``, or ``without-read-delete``, may do all but that.

    Attributes:
        url: Where it is.
        requests: What was asked of it: method, path and query.
    """

    def __init__(self) -> None:
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True, request_handler=_Quiet)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.requests: list[tuple[str, str, str]] = []
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
        """Return an Airflow connection to it, as JSON, without these rights: list, read, write, delete."""
        key = "-".join(["without", *rights_taken]) if rights_taken else "all-rights"
        extra = {"endpoint_url": self.url, "region_name": "us-east-1"}
        return json.dumps({"conn_type": "aws", "login": key, "password": "secret-of-s3", "extra": extra})

    def client(self) -> Any:
        """Return AWS's own client for it."""
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
        told: list[Any] = []

        def note(status: str, headers: list[tuple[str, str]], *more: Any) -> Any:
            told[:] = [status, headers]

        answer = [] if right in taken else list(self._moto(environ, note))
        # Who may not list is not told what does not exist either.
        if right in taken or (told[0].startswith("404") and "list" in taken):
            start_response(
                "403 Forbidden", [("Content-Type", "application/xml"), ("Content-Length", str(len(_DENIED)))]
            )
            return [] if method == "HEAD" else [_DENIED]
        start_response(*told)
        return answer


@dataclass
class Bucket:
    """A bucket of its own for a test, and the Airflow connections to it.

    Attributes:
        server: Where it is.
        name: Its name.
        url: The URL of its root, through a connection with all rights.
    """

    server: S3Server
    name: str = field(default_factory=lambda: f"bucket-{uuid.uuid4().hex}")
    url: str = ""

    def url_without(self, *rights: str) -> str:
        """Return the URL of its root, through a connection without these rights: list, read, write, delete."""
        return f"s3://s3_without_{'_'.join(rights)}@{self.name}"

    @property
    def keys(self) -> list[str]:
        """The keys of its objects, sorted."""
        listing = self.server.client().list_objects_v2(Bucket=self.name)
        return sorted(stored["Key"] for stored in listing.get("Contents", []))

    def get(self, key: str) -> bytes:
        """Return an object."""
        content: bytes = self.server.client().get_object(Bucket=self.name, Key=key)["Body"].read()
        return content

    def put(self, key: str, content: bytes) -> None:
        """Store an object, as another program does."""
        self.server.client().put_object(Bucket=self.name, Key=key, Body=content)

    def content_type(self, key: str) -> str:
        """Return what a browser is told that an object is."""
        return str(self.server.client().head_object(Bucket=self.name, Key=key)["ContentType"])

    @property
    def requests(self) -> list[tuple[str, str, str]]:
        """What was asked about it so far: method, path and query."""
        return [request for request in self.server.requests if request[1].startswith(f"/{self.name}")]
