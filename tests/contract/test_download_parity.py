"""Both clients, every answer of an image host, through raw sockets: the same image and the same errors."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import logging
import re
import socket
import ssl
import subprocess
import threading
import time
import zlib
from collections.abc import Callable
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, Self

import pytest
from PIL import Image

from airflow_provider_qwenimage.client import downloads
from airflow_provider_qwenimage.client.download_tries import DownloadPace, DownloadTries
from airflow_provider_qwenimage.contract import GenerateRequest, TaskSnapshot, TaskStatus
from airflow_provider_qwenimage.exceptions import QwenImageImageError
from airflow_provider_qwenimage.rules.image_identity import ImageIdentity
from airflow_provider_qwenimage.rules.retries import RequestRetries
from airflow_provider_qwenimage.rules.verification import verify_image
from airflow_provider_qwenimage.storage.images import find_images, save_images
from airflow_provider_qwenimage.storage.paths import open_output_path

REQUEST = GenerateRequest(prompt="A red fox", size="768*1024", seed=7, output_format="png")
SECRETS = ("sig-4f9a", "s3cr3t")
QUERY = "?X-Amz-Signature=sig-4f9a&X-Amz-Credential=s3cr3t%2F20261126"
MAX_BYTES = 300_000
Download = Callable[..., bytes]
Act = Callable[[socket.socket, threading.Event], None]


def png() -> bytes:
    stream = BytesIO()
    Image.effect_noise((48, 64), 60).resize(REQUEST.pixel_size).convert("L").save(stream, "png")
    return stream.getvalue()


WHOLE = png()
assert len(WHOLE) < MAX_BYTES


class ImageHost:
    """Listens on a port of this machine, and answers each request as it is told.

    Args:
        answers: Bytes, or what does with the connection as it likes; the last one again and again.
        family: Of its address.
        certificate: A file with a key and its certificate, to speak https.
    """

    def __init__(
        self, *answers: bytes | Act, family: socket.AddressFamily = socket.AF_INET, certificate: str | None = None
    ) -> None:
        self._answers = list(answers)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER) if certificate else None
        if self._context is not None:
            self._context.load_cert_chain(str(certificate))
        self.requests: list[bytes] = []
        self._over = threading.Event()
        self._listener = socket.create_server(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0), family=family)
        self.port = self._listener.getsockname()[1]
        self.url = f"{'https' if certificate else 'http'}://127.0.0.1:{self.port}/a/fox.png"

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=self._serve, args=self._listener.accept()[:1], daemon=True).start()

    def _secured(self, accepted: socket.socket) -> socket.socket:
        return accepted if self._context is None else self._context.wrap_socket(accepted, server_side=True)

    def _serve(self, accepted: socket.socket) -> None:
        with accepted, contextlib.suppress(OSError), self._secured(accepted) as connection:
            received = b""
            while b"\r\n\r\n" not in received:
                piece = connection.recv(65_536)
                if not piece:
                    return
                received += piece
            self.requests.append(received)
            answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
            if callable(answer):
                answer(connection, self._over)
                return
            connection.sendall(answer)
            # A reset would overtake what was sent.
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65_536):
                pass


def verified(content: bytes) -> bytes:
    verify_image(content, REQUEST)
    return content


def with_requests(url: str, max_image_bytes: int = MAX_BYTES, verify: bool | str = True) -> bytes:
    with downloads.ImageClient(verify) as client:
        return downloads.fetch(client, url, max_image_bytes, verified)


def with_aiohttp(url: str, max_image_bytes: int = MAX_BYTES, verify: bool | str = True) -> bytes:
    async def download() -> bytes:
        async with downloads.AsyncImageClient(2, verify) as client:
            return await downloads.fetch_async(client, url, max_image_bytes, partial(asyncio.to_thread, verified))

    return asyncio.run(download())


CLIENTS = pytest.mark.parametrize("download", [with_requests, with_aiohttp], ids=["requests", "aiohttp"])


@pytest.fixture(autouse=True)
def _one_try(monkeypatch: pytest.MonkeyPatch) -> None:
    tries(monkeypatch, 0)


def tries(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setattr(downloads, "_RETRIES", RequestRetries(limit=limit, delay_seconds=0.0))


def pace(monkeypatch: pytest.MonkeyPatch, **limits: float) -> None:
    monkeypatch.setattr(downloads, "_PACE", DownloadPace(**limits))


def outcome(download: Download, url: str, **arguments: Any) -> str:
    """Return what became of a download: the image, or its error, which has no cause and shows no secret."""
    try:
        return "the image" if download(url, **arguments) == WHOLE else "something else"
    except QwenImageImageError as caught:
        error = caught
    assert not any(secret in shown for secret in SECRETS for shown in (str(error), repr(error)))
    assert (error.__cause__ is None and error.__context__ is None) or "do not decode" in str(error)
    return f"{'permanent: ' if error.permanent else ''}{error}"


def answer(body: bytes = WHOLE, *headers: str, status: str = "200 OK", length: int | None = None) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}", *headers, "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


def bare(*headers: str, body: bytes = WHOLE) -> bytes:
    return "\r\n".join(["HTTP/1.1 200 OK", *headers, "", ""]).encode("latin-1") + body


def chunked(*pieces: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    return bare("Transfer-Encoding: chunked", body=b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in pieces) + end)


def deflated() -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(WHOLE) + packer.flush()


THE_IMAGE = "the image"
ANSWERS: dict[str, tuple[bytes, str]] = {
    "as usual": (answer(), THE_IMAGE),
    "without a length": (bare(), THE_IMAGE),
    "chunks": (chunked(WHOLE[:100], WHOLE[100:]), THE_IMAGE),
    "a header of 9,000 bytes": (answer(WHOLE, "X-Long: " + "x" * 9_000), THE_IMAGE),
    "headers of 100,000 bytes": (answer(WHOLE, *[f"X-{n}: {'x' * 5_000}" for n in range(20)]), "fox.png could not be"),
    "150 headers": (answer(WHOLE, *[f"X-{number}: y" for number in range(150)]), THE_IMAGE),
    "two equal lengths": (answer(WHOLE, f"Content-Length: {len(WHOLE)}"), THE_IMAGE),
    "two unequal lengths": (answer(WHOLE, f"Content-Length: {len(WHOLE) - 1}"), "could not be downloaded"),
    "early hints": (b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n" + answer(), THE_IMAGE),
    "a header that is not UTF-8": (answer(WHOLE, "X-Place: R\xe9seaux"), THE_IMAGE),
    "gzip": (answer(gzip.compress(WHOLE), "Content-Encoding: gzip"), THE_IMAGE),
    "deflate": (answer(zlib.compress(WHOLE), "Content-Encoding: deflate"), THE_IMAGE),
    "deflate without a header": (answer(deflated(), "Content-Encoding: deflate"), THE_IMAGE),
    "a gzip bomb": (
        answer(gzip.compress(bytes(100_000_000)), "Content-Encoding: gzip"),
        "permanent: .* larger than allowed: at least 300001 bytes, limit 300000",
    ),
    "half a gzip": (answer(gzip.compress(WHOLE)[:-999], "Content-Encoding: gzip"), "gzip body is incomplete"),
    "no gzip": (answer(WHOLE, "Content-Encoding: gzip"), "could not be downloaded: its body is not gzip"),
    "a coding that was not asked for": (answer(WHOLE, "Content-Encoding: br"), "'br' was not requested"),
    "too few bytes": (answer(WHOLE[:-9], length=len(WHOLE)), "could not be downloaded"),
    "too few chunks": (chunked(WHOLE[:100], end=b""), "could not be downloaded"),
    "too many bytes": (answer(WHOLE + b"more", length=len(WHOLE)), THE_IMAGE),
    "a length over the limit": (answer(WHOLE, length=MAX_BYTES + 1), f"permanent: .*{MAX_BYTES + 1} bytes, limit"),
    "bytes over the limit": (bare(body=bytes(MAX_BYTES + 70_000)), "permanent: .* larger than allowed"),
    "no HTTP": (b"220 ftp.example ESMTP\r\n\r\n", "could not be downloaded"),
    "nothing": (b"", "could not be downloaded"),
    "half a header": (b"HTTP/1.1 200 OK\r\nContent-Le", "could not be downloaded"),
    "404": (answer(b"gone", status="404 Not Found"), "fox.png answered HTTP 404 instead of the image"),
    "206": (answer(WHOLE[:99], status="206 Partial Content"), "answered HTTP 206"),
    "204": (b"HTTP/1.1 204 No Content\r\n\r\n", "answered HTTP 204"),
    "304": (b"HTTP/1.1 304 Not Modified\r\n\r\n", "answered HTTP 304"),
    "429": (answer(b"", "Retry-After: 7", status="429 Too Many"), r"HTTP 429 .* It asks to wait 7 s\."),
    "a page": (answer(b"<html>Sign in</html>"), "do not decode as a whole image"),
    "a redirect to nowhere": (answer(b"", status="302 Found"), "redirect .HTTP 302. has no readable URL"),
    "a redirect that is not UTF-8": (
        answer(b"", "Location: http://127.0.0.1/R\xe9seaux?X-Amz-Signature=sig-4f9a", status="302 Found"),
        "has no readable URL",
    ),
    "a redirect to a file": (
        answer(b"", "Location: file:///etc/passwd?sig-4f9a", status="301 Moved"),
        "redirect .HTTP 301. to file:///etc/passwd is not followed",
    ),
    "a redirect to ftp": (answer(b"", "Location: ftp://u:s3cr3t@h/a", status="307 T"), "to ftp://h/a is not followed"),
    "a redirect to data": (answer(b"", "Location: data:image/png;base64,AA", status="303 T"), "is not followed"),
    "a redirect to half a host": (answer(b"", "Location: http://[::1/a?sig-4f9a", status="308 P"), "is not followed"),
    "a redirect with a secret to a port that is closed": (
        answer(b"", "Location: http://me:s3cr3t@127.0.0.1:9/b?X-Amz-Signature=sig-4f9a", status="302 Found"),
        "fox.png could not be downloaded: .*may reach the image host",
    ),
    "a redirect to itself": (answer(b"", f"Location: {QUERY}", status="302 Found"), "redirects more than 10 times"),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_both_clients_make_the_same_of_an_answer(name: str) -> None:
    reply, expected = ANSWERS[name]
    with ImageHost(reply) as host:
        found = [outcome(download, host.url + QUERY) for download in (with_requests, with_aiohttp)]
    assert found[0] == found[1]
    assert all(re.search(expected, text) for text in found), found


def reset(connection: socket.socket, over: threading.Event) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


def dripping(first: bytes, seconds: float = 0.02, piece: bytes = b"x") -> Act:
    def drip(connection: socket.socket, over: threading.Event) -> None:
        connection.sendall(first)
        while not over.wait(seconds):
            connection.sendall(piece)

    return drip


@CLIENTS
@pytest.mark.parametrize(
    "first",
    [b"", b"HTTP/1.1 200 OK\r\nX-Slow: ", bare(body=WHOLE[:50]), b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200"],
    ids=["nothing", "headers", "body", "interim"],
)
def test_a_host_that_drips_is_given_up(download: Download, first: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    pace(monkeypatch, first_seconds=0.4)
    began = time.monotonic()
    with ImageHost(dripping(first)) as host:
        assert "could not be downloaded: it was too slow" in outcome(download, host.url + QUERY)
    assert time.monotonic() - began < 60


@CLIENTS
def test_all_tries_and_pauses_of_an_image_have_an_end(
    download: Download, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tries(monkeypatch, 100)
    pace(monkeypatch, first_seconds=0.05, most_seconds=0.5)
    with ImageHost(dripping(b"HTTP/1.1 200 OK\r\n")) as host:
        assert "too slow" in outcome(download, host.url)
    # A try ends after 0.05 s at the earliest, and on a busy machine before the host has seen its request.
    assert sum("trying again" in message for message in caplog.messages) <= 10


@CLIENTS
def test_a_slow_host_has_the_time_that_its_bytes_earn(download: Download, monkeypatch: pytest.MonkeyPatch) -> None:
    # At the slowest rate that is waited for, what is sent is worth many times what is given at first.
    pace(monkeypatch, first_seconds=6.0, bytes_per_second=len(WHOLE) / 60)

    def slowly(connection: socket.socket, over: threading.Event) -> None:
        connection.sendall(answer()[:-30_000])
        for start in range(len(WHOLE) - 30_000, len(WHOLE), 1_000):
            over.wait(0.21)
            connection.sendall(WHOLE[start : start + 1_000])

    with ImageHost(slowly) as host:
        assert outcome(download, host.url) == THE_IMAGE


@CLIENTS
def test_a_connection_that_breaks_is_an_error_of_ours(download: Download) -> None:
    with ImageHost(reset) as host:
        assert "could not be downloaded" in outcome(download, host.url + QUERY)


@CLIENTS
def test_the_time_that_a_host_asks_for_is_waited(download: Download, monkeypatch: pytest.MonkeyPatch) -> None:
    tries(monkeypatch, 1)
    for status in ("429 Too Many Requests", "503 Service Unavailable"):
        with ImageHost(answer(b"", "Retry-After: 1", status=status), answer()) as host:
            began = time.monotonic()
            assert outcome(download, host.url) == THE_IMAGE
            assert time.monotonic() - began >= 1
            assert len(host.requests) == 2


@CLIENTS
def test_a_host_that_asks_for_longer_is_left_to_the_next_try_of_the_task(
    download: Download, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries(monkeypatch, 5)
    with ImageHost(answer(b"", "Retry-After: 3600", status="503 Later"), answer()) as host:
        assert "HTTP 503" in outcome(download, host.url)
        assert len(host.requests) == 1


@CLIENTS
def test_a_redirect_is_followed_as_it_is_written_and_without_the_user_of_the_first_host(download: Download) -> None:
    with ImageHost(answer()) as second:
        target = f"http://127.0.0.1:{second.port}/b%2fc%7E.png?Signature=a%2Bb%3d&x=~%20"
        with ImageHost(answer(b"", f"Location: {target}", status="302 Found")) as first:
            url = first.url.replace("http://", "http://me:s3cr3t@") + QUERY
            assert outcome(download, url) == THE_IMAGE
    assert b"Authorization: Basic bWU6czNjcjN0\r\n" in first.requests[0]
    assert b"authorization" not in second.requests[0].lower()
    # The case of the two digits of an encoded character means nothing.
    assert second.requests[0].split(b" ")[1].lower() == b"/b%2fc%7e.png?signature=a%2bb%3d&x=~%20"
    assert b"X-Amz-Signature=sig-4f9a&X-Amz-Credential=s3cr3t%2F20261126 HTTP/1.1\r\n" in first.requests[0]


@CLIENTS
@pytest.mark.parametrize(
    ("written", "sent"),
    [
        ("/a[1].png?x=[1]", b"/a%5B1%5D.png?x=%5B1%5D"),
        ('/a"<b>|^`{c}\\.png', b"/a%22%3Cb%3E%7C%5E%60%7Bc%7D%5C.png"),
        ("/100%.png", b"/100%25.png"),
        ("/100%%20b.png?x=%", b"/100%25%20b.png?x=%25"),
        ("/a%zz%20b.png", b"/a%25zz%20b.png"),
        ("/%C3%BC+ü.png?q=%2F+%C3%BC", b"/%C3%BC+%C3%BC.png?q=%2F+%C3%BC"),
        ("/a!$&'()*+,;=:@-._~.png?a=/?:@!$'()*,;-._~", b"/a!$&'()*+,;=:@-._~.png?a=/?:@!$'()*,;-._~"),
        ("/../a/./b//c.png", b"/../a/./b//c.png"),
        ("?x=1", b"/?x=1"),
    ],
)
def test_characters_that_a_url_must_not_contain_are_encoded_once(download: Download, written: str, sent: bytes) -> None:
    with ImageHost(answer()) as host:
        assert outcome(download, host.url.removesuffix("/a/fox.png") + written) == THE_IMAGE
    assert host.requests[0].split(b" ")[1] == sent


@CLIENTS
def test_a_redirect_with_a_space_is_followed(download: Download) -> None:
    with ImageHost(answer(b"", "Location: /a b.png?c d", status="302 Found"), answer()) as host:
        assert outcome(download, host.url) == THE_IMAGE
    assert host.requests[1].split(b" ")[1] == b"/a%20b.png?c%20d"


@CLIENTS
@pytest.mark.parametrize("host", ["[::1]", "[0:0:0:0:0:0:0:1]"])
def test_a_host_may_be_an_address_of_ipv6(download: Download, host: str) -> None:
    with ImageHost(answer(), family=socket.AF_INET6) as server:
        assert outcome(download, f"http://{host}:{server.port}/a.png") == THE_IMAGE


@CLIENTS
@pytest.mark.parametrize("host", ["localhost", "LOCALHOST"])
def test_a_host_is_found_in_any_spelling(download: Download, host: str) -> None:
    with ImageHost(answer()) as server:
        assert outcome(download, f"http://{host}:{server.port}/föx.png?ü=é") == THE_IMAGE
    assert b"GET /f%C3%B6x.png?%C3%BC=%C3%A9 HTTP/1.1" in server.requests[0]


@pytest.mark.parametrize(
    "host",
    [
        "bücher.invalid",
        "b\xfccher..invalid",
        "a" * 64 + ".invalid",
        "xn--.invalid",
        "[::1",
        "a b",
        "%31",
        "a%2eb",
        "a,b",
    ],
)
def test_a_host_that_is_none_is_one_error(host: str) -> None:
    found = {outcome(download, f"http://me:s3cr3t@{host}/a.png{QUERY}") for download in (with_requests, with_aiohttp)}
    assert len(found) == 1
    assert "could not be downloaded" in found.pop()


@CLIENTS
@pytest.mark.parametrize(
    "reply", [b"HTTP/1.1 503 Service Unavailable\r\n\r\n", b"HTTP/1.1 407 Login\r\n\r\n", b"", b"no proxy\r\n\r\n"]
)
def test_a_proxy_that_lets_nothing_through_is_an_error_of_ours(
    download: Download, reply: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ImageHost(reply) as proxy:
        through(monkeypatch, f"http://me:s3cr3t@127.0.0.1:{proxy.port}")
        assert "https://images.invalid/a.png could not be downloaded" in outcome(
            download, f"https://images.invalid/a.png{QUERY}"
        )


@pytest.mark.parametrize("proxy", ["http://", "me:s3cr3t@", "gopher://me:s3cr3t@127.0.0.1:9", "http://127.0.0.1:99999"])
def test_a_variable_that_names_no_proxy_is_named(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    through(monkeypatch, proxy)
    found = {outcome(download, "https://images.invalid/a.png") for download in (with_requests, with_aiohttp)}
    assert len(found) == 1
    assert "the environment variable https_proxy" in found.pop().lower()


def test_an_error_of_a_library_that_quotes_the_url_is_shown_without_credentials() -> None:
    url = f"https://me:s3cr3t@a.example/1.png{QUERY}#s3cr3t"
    tries = DownloadTries(url, MAX_BYTES, RequestRetries(), DownloadPace())
    # requests' InvalidURL and aiohttp's are both.
    for error in (ValueError(f"Failed to parse: {url}"), UnicodeError(url), OSError(f"for {url!r}")):
        found = tries.failure(error, tries.begin())
        assert "https://a.example/1.png could not be downloaded" in str(found)
        assert not any(secret in repr(found) for secret in SECRETS)


def through(monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("https_proxy", "HTTPS_PROXY", "http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, proxy)


@CLIENTS
def test_a_variable_that_names_no_authorities_matters_for_https_alone(
    download: Download, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nowhere/ca.pem")
    assert "REQUESTS_CA_BUNDLE names '/nowhere/ca.pem'" in outcome(download, "https://127.0.0.1:9/a.png")
    assert "verify = '/nowhere/ca.pem'" in outcome(download, "https://127.0.0.1:9/a.png", verify="/nowhere/ca.pem")
    with ImageHost(answer()) as host:
        assert outcome(download, host.url) == THE_IMAGE


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the path of a file with a key and its certificate, which is its own authority."""
    file = tmp_path_factory.mktemp("tls") / "all.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=localhost"
    options = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(file), "-out", str(file.with_suffix(".cert"))]
    subprocess.run([*command.split(), *options], check=True, capture_output=True)
    file.write_text(file.read_text() + file.with_suffix(".cert").read_text())
    return str(file)


@pytest.mark.filterwarnings("ignore::urllib3.exceptions.InsecureRequestWarning")
@CLIENTS
def test_the_connections_authorities_count_for_the_image_too(download: Download, certificate: str) -> None:
    with ImageHost(answer(), certificate=certificate) as host:
        for verify in (certificate, False):
            assert outcome(download, host.url, verify=verify) == THE_IMAGE
        assert "give the file of its certificate authority as verify" in outcome(download, host.url)
        assert len(host.requests) == 2


@CLIENTS
def test_a_redirect_from_https_to_http_is_not_followed(download: Download, certificate: str) -> None:
    with ImageHost(answer()) as plain:
        away = answer(b"", f"Location: {plain.url}?sig-4f9a", status="302 Found")
        with ImageHost(away, certificate=certificate) as host:
            found = outcome(download, host.url, verify=certificate)
    assert f"to {plain.url} is not followed: images are read over https" in found
    assert plain.requests == []


def test_sidecars_hold_neither_users_nor_signatures(tmp_path: Path) -> None:
    with ImageHost(answer()) as host:
        url = host.url.replace("http://", "http://me:s3cr3t@") + QUERY
        snapshot = TaskSnapshot(task_id="n1", status=TaskStatus.SUCCESS, image_urls=(url,))
        folder = open_output_path(f"file://{tmp_path}")
        save_images(snapshot, ImageIdentity(REQUEST), folder)
    sidecar = next(tmp_path.glob("*.json")).read_text()
    assert not any(secret in sidecar for secret in SECRETS)
    assert f'"image_url": "{host.url}"' in sidecar
    # What an earlier version stored is not handed on either.
    next(tmp_path.glob("*.json")).write_text(sidecar.replace(host.url, url))
    stored = find_images(ImageIdentity(REQUEST), folder)
    assert stored is not None
    assert stored.image_urls == (host.url,)


@CLIENTS
def test_logs_of_the_libraries_hold_neither_users_nor_signatures(
    download: Download, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries(monkeypatch, 1)
    with caplog.at_level(logging.DEBUG), ImageHost(answer(b"", status="500 Oh"), answer()) as host:
        assert outcome(download, host.url.replace("http://", "http://me:s3cr3t@") + QUERY) == THE_IMAGE
    assert any("trying again" in message for message in caplog.messages)
    assert not any(secret in message for message in caplog.messages for secret in SECRETS)
