"""A download ends the same way through either client: with the image, or with an error that names the next step."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from airflow_provider_qwenimage.client import downloads
from airflow_provider_qwenimage.contract import DEFAULT_MAX_IMAGE_BYTES, GenerateRequest
from airflow_provider_qwenimage.exceptions import QwenImageImageError
from airflow_provider_qwenimage.hooks import QwenImageHook
from airflow_provider_qwenimage.rules.retries import RequestRetries
from airflow_provider_qwenimage.rules.verification import verify_image
from airflow_provider_qwenimage.sandbox import Sandbox

REQUEST = GenerateRequest(prompt="A red fox", size="768*1024", seed=7, output_format="png")
Download = Callable[[str, int], bytes]


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(port=0, seconds_per_image=0) as running:
        yield running


@pytest.fixture
def url(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> str:
    sandbox.reset()
    monkeypatch.setenv("AIRFLOW_CONN_QWENIMAGE_DEFAULT", sandbox.connection_json)
    monkeypatch.setattr(downloads, "_RETRIES", RequestRetries(limit=2, delay_seconds=0.0))
    with QwenImageHook() as hook:
        return hook.wait_for_completion(hook.submit(REQUEST), poll_interval=0.05).image_urls[0]


def verified(content: bytes) -> bytes:
    verify_image(content, REQUEST)
    return content


def with_requests(url: str, max_image_bytes: int) -> bytes:
    with downloads.ImageClient() as client:
        return downloads.fetch(client, url, max_image_bytes, verified)


def with_aiohttp(url: str, max_image_bytes: int) -> bytes:
    async def download() -> bytes:
        async with downloads.AsyncImageClient(2) as client:
            return await downloads.fetch_async(client, url, max_image_bytes, partial(asyncio.to_thread, verified))

    return asyncio.run(download())


@pytest.fixture(params=[with_requests, with_aiohttp], ids=["requests", "aiohttp"])
def download(request: pytest.FixtureRequest) -> Download:
    function: Download = request.param
    return function


def downloads_of(sandbox: Sandbox) -> int:
    return [record.route for record in sandbox.requests].count("image")


@pytest.mark.parametrize(
    "behaviour", ["truncate", "truncate_with_length", "html", "garbage", "not_found", "server_error", "drop"]
)
def test_a_broken_download_is_retried(sandbox: Sandbox, url: str, download: Download, behaviour: str) -> None:
    whole = download(url, DEFAULT_MAX_IMAGE_BYTES)
    sandbox.script("image", behaviour, behaviour)
    assert download(url, DEFAULT_MAX_IMAGE_BYTES) == whole
    assert downloads_of(sandbox) == 4


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        ("truncate", "could not be downloaded.*may reach the image host|ended after .* of .* bytes"),
        ("drop", "could not be downloaded.*may reach the image host"),
        ("truncate_with_length", "whole image|no end"),
        ("html", "do not decode"),
        ("not_found", "HTTP 404.*may expire"),
    ],
)
def test_a_download_that_stays_broken_ends_in_one_clear_error(
    sandbox: Sandbox, url: str, download: Download, behaviour: str, message: str
) -> None:
    # More often than the client retries: aiohttp itself repeats a GET once if a connection drops.
    sandbox.script("image", (behaviour, 9))
    with pytest.raises(QwenImageImageError, match=message):
        download(url, DEFAULT_MAX_IMAGE_BYTES)
    assert downloads_of(sandbox) >= 3


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        ("wrong_size", r"768\*1024 was requested"),
        ("oversized", "larger than allowed.*Raise max_image_bytes"),
    ],
)
def test_a_download_that_would_fail_again_is_not_retried(
    sandbox: Sandbox, url: str, download: Download, behaviour: str, message: str
) -> None:
    sandbox.script("image", (behaviour, 9))
    with pytest.raises(QwenImageImageError, match=message):
        download(url, DEFAULT_MAX_IMAGE_BYTES)
    assert downloads_of(sandbox) == 1


def test_an_image_longer_than_allowed_is_not_read_to_its_end(sandbox: Sandbox, url: str, download: Download) -> None:
    with pytest.raises(QwenImageImageError, match="at least .* bytes, limit 10000"):
        download(url, 10_000)
    assert downloads_of(sandbox) == 1


def test_a_host_that_cannot_be_reached_is_named(download: Download, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "_RETRIES", RequestRetries(limit=0))
    with pytest.raises(QwenImageImageError, match=r"http://127.0.0.1:9/a.png could not be downloaded"):
        download("http://127.0.0.1:9/a.png?signature=secret", DEFAULT_MAX_IMAGE_BYTES)


def test_no_key_and_no_netrc_file_reaches_the_image_host_even_with_a_proxy(
    sandbox: Sandbox, url: str, download: Download, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("default login somebody password secret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    # A proxy that must not be used for this host; aiohttp reads it from the environment, together with the netrc file.
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")
    sandbox.script("image", "redirect")
    download(url, DEFAULT_MAX_IMAGE_BYTES)
    records = [record for record in sandbox.requests if record.route == "image"]
    assert len(records) == 2
    assert not any(record.authorized_header for record in records)


def test_a_signed_url_is_requested_unchanged(url: str, download: Download) -> None:
    content = with_requests(url, DEFAULT_MAX_IMAGE_BYTES)
    requested: list[str] = []

    class Host(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requested.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    path = "/a%2Fb.png?Expires=1&Signature=ab%2Bc%2Fd%3D&x=%20y"
    with HTTPServer(("127.0.0.1", 0), Host) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert download(f"http://127.0.0.1:{server.server_port}{path}", DEFAULT_MAX_IMAGE_BYTES) == content
        server.shutdown()
    assert requested == [path]


def test_the_image_is_downloaded_through_the_proxy_if_one_is_set(
    sandbox: Sandbox, url: str, download: Download, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    # The sandbox accepts requests in the form for proxies, so it can act as one.
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, sandbox.url)
    elsewhere = url.replace("127.0.0.1", "images.invalid")
    assert download(elsewhere, DEFAULT_MAX_IMAGE_BYTES)
