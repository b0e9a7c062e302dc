"""Sends one request to the API server, as a check of doctor."""

from __future__ import annotations

import http.client
from contextlib import closing
from dataclasses import dataclass
from email.message import Message
from urllib.parse import quote, urlsplit

from airflow_provider_qwenimage.client.diagnosis import TEST_SECONDS
from airflow_provider_qwenimage.client.network_environment import tls_context

_MOST_BYTES = 4096


@dataclass(frozen=True)
class Answered:
    """An answer.

    Attributes:
        status: The HTTP status.
        headers: The headers.
        body: The beginning of the body.
    """

    status: int
    headers: Message
    body: bytes

    @property
    def content_type(self) -> str:
        """The content type, shortened; "" if there is none."""
        return str(self.headers.get("Content-Type", ""))[:100]


def ask(url: str, method: str = "GET") -> Answered:
    """Send a request without a body, and return the answer. Redirects are not followed.

    Args:
        url: An http(s) URL. Its user, query and fragment are not sent.
        method: The HTTP method.

    Raises:
        OSError: If the server cannot be reached, or does not answer in time.
        http.client.HTTPException: If the answer is not HTTP.
    """
    parts = urlsplit(url)
    if parts.scheme == "https":
        connection: http.client.HTTPConnection = http.client.HTTPSConnection(
            parts.hostname or "", parts.port, timeout=TEST_SECONDS, context=tls_context(verify=True)
        )
    else:
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=TEST_SECONDS)
    with closing(connection):
        try:
            connection.request(method, quote(parts.path, safe="/%"))
        except UnicodeError as error:
            # Such as one with two dots in a row.
            raise OSError(f"{parts.hostname!r} is not the name of a host.") from error
        response = connection.getresponse()
        return Answered(response.status, response.headers, response.read(_MOST_BYTES))
