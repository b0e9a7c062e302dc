"""The check of callbacks, with real servers."""

from __future__ import annotations

import asyncio
import re
import uuid

import pytest

from airflow_provider_qwenimage.airflow_versions import HAS_PLUGIN_PAGES
from airflow_provider_qwenimage.cli.doctor.callback_check import check_callbacks
from airflow_provider_qwenimage.cli.doctor.findings import Check, run_check
from airflow_provider_qwenimage.rules.callbacks import callback_url, new_secret
from airflow_provider_qwenimage.rules.gallery_urls import PREFIX
from tests.contract.test_tls import Authority, authority, tls_server  # noqa: F401  a fixture
from tests.raw_server import RawServer

OPTION = "AIRFLOW__QWENIMAGE__CALLBACK_BASE_URL"
DETAIL = b'{"detail": "No task is waiting for this callback."}'
OTHER_DETAIL = b'{"detail": "Not Found"}'
FRAMES = "X-Frame-Options: SAMEORIGIN\r\n"

needs_callbacks = pytest.mark.skipif(not HAS_PLUGIN_PAGES, reason="this Airflow takes no callbacks")


def response(status: str, body: bytes = DETAIL, content_type: str = "application/json", more: str = "") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n{more}\r\n"
    return head.encode() + body


def check() -> Check:
    return run_check("callbacks", check_callbacks)


@needs_callbacks
@pytest.mark.parametrize(
    ("answer", "state", "problem"),
    [
        (response("404 Not Found"), "ok", "takes callbacks at"),
        # Proxies add headers.
        (response("404 Not Found", more=FRAMES), "ok", "takes callbacks at"),
        # The gallery, on an API server without the option.
        (response("404 Not Found", OTHER_DETAIL, more=FRAMES), "failed", "for the API server as well"),
        # Another server, or another route of Airflow.
        (response("404 Not Found", OTHER_DETAIL), "failed", "a proxy"),
        (response("503 Service Unavailable"), "warning", "busy"),
        # Airflow without the package.
        (response("405 Method Not Allowed", b'{"detail": "Method Not Allowed"}'), "failed", "not installed"),
        (response("404 Not Found", b"<html>", "text/html"), "failed", "a proxy"),
        (response("404 Not Found", b"[" * 4000), "failed", "a proxy"),
        (response("404 Not Found", b'["detail"]'), "failed", "a proxy"),
        (response("404 Not Found", b'{"detail": "x", "errors": []}'), "failed", "a proxy"),
        (response("302 Found", b"", "text/html"), "failed", "a proxy"),
        (response("200 OK"), "failed", "a proxy"),
        (response("503 Service Unavailable", b"<html>", "text/html"), "failed", "a proxy"),
        (b"", "warning", "cannot be reached from here"),
        (b"SSH-2.0-OpenSSH_9\r\n\x00\xff", "warning", "cannot be reached from here"),
    ],
)
def test_what_answers_a_callback_for_a_task_that_does_not_exist(
    answer: bytes, state: str, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RawServer(answer) as server:
        monkeypatch.setenv(OPTION, f"{server.url}/airflow/")
        found = check()
    assert (found.state, problem in found.message) == (state, True), found.message
    path = r"/airflow/qwenimage/callback/[0-9a-f-]{36}/[\w-]{43}"
    assert re.match(rf"POST {path} HTTP/1\.1\r\n", server.requests[0].decode())
    assert re.search(r"content-length: 0\r\n", server.requests[0].decode(), re.IGNORECASE)
    assert re.search(path, found.message) is None


@needs_callbacks
def test_without_the_option_there_is_nothing_to_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(OPTION, raising=False)
    found = check()
    assert (found.state, "deferred tasks poll" in found.message) == ("skipped", True)


@needs_callbacks
@pytest.mark.parametrize(
    "value",
    [
        "airflow.example.com",
        "https://u:pass-word@host",
        "https://host/?a=b",
        "ftp://host",
        "https://host\u200b",
    ],
)
def test_an_option_that_cannot_be_used_is_named_with_what_to_do(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OPTION, value)
    found = check()
    assert (found.state, "callback_base_url cannot be used" in found.message) == ("failed", True)
    assert "pass-word" not in found.message


@needs_callbacks
@pytest.mark.parametrize("value", ["http://127.0.0.1:1", "http://airflow..example", f"https://{'a' * 64}.example"])
def test_an_address_where_nothing_answers_is_a_warning(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OPTION, value)
    found = check()
    assert (found.state, "the firewall" in found.message) == ("warning", True), found.message


@needs_callbacks
def test_a_certificate_that_is_not_trusted_is_named_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
    authority: Authority,  # noqa: F811
) -> None:
    with tls_server(authority) as (server, _):
        monkeypatch.setenv(OPTION, server.url.replace("http:", "https:"))
        found = check()
    assert (found.state, "a certificate of a public authority" in found.message) == ("warning", True), found.message
    assert "firewall" not in found.message


@pytest.mark.skipif(HAS_PLUGIN_PAGES, reason="this Airflow takes callbacks")
def test_an_older_airflow_takes_no_callbacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OPTION, "http://127.0.0.1:1")
    assert check().state == "skipped"


@needs_callbacks
def test_the_gallery_takes_a_callback_on_an_api_server_without_the_option(
    airflow_database: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from httpx import ASGITransport, AsyncClient, Response

    from airflow_provider_qwenimage.plugin.app import app

    async def post(path: str) -> Response:
        async with AsyncClient(transport=ASGITransport(app), base_url="http://host") as client:
            return await client.post(path)

    path = callback_url("http://host", uuid.uuid4(), new_secret()).removeprefix(f"http://host{PREFIX}")
    answer = asyncio.run(post(path))
    headers = "".join(f"{name}: {value}\r\n" for name, value in answer.headers.items())
    with RawServer(f"HTTP/1.1 {answer.status_code} .\r\n{headers}\r\n".encode() + answer.content) as server:
        monkeypatch.setenv(OPTION, server.url)
        found = check()
    assert (found.state, "for the API server as well" in found.message) == ("failed", True), found.message
