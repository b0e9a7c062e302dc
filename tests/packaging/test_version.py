"""The version is written in one place, and everything that shows it shows this one."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import aiohttp
import pytest

from airflow_provider_qwenimage._version import __version__
from airflow_provider_qwenimage.client import downloads
from airflow_provider_qwenimage.hooks import QwenImageAsyncHook, QwenImageHook
from airflow_provider_qwenimage.provider_info import get_provider_info
from tests.packaging.conftest import ROOT

PACKAGE = ROOT / "airflow_provider_qwenimage"


@pytest.fixture
def agents() -> Iterator[tuple[str, list[str]]]:
    """A server, and the User-Agent of each request to it."""
    seen: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.headers["User-Agent"])
            self.send_response(204)
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            """Keep quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", seen
        server.shutdown()


def test_it_is_written_once() -> None:
    # Since when there is an option does not change with the version.
    literal = re.compile(rf"(?<![\d.])(?<!version_added\": \"){re.escape(__version__)}(?![\d.])")
    files = [file for file in PACKAGE.rglob("*") if file.suffix in {".py", ".js", ".html"}]
    files += [ROOT / "pyproject.toml", ROOT / "README.md", ROOT / "Makefile"]
    assert [file.name for file in files for _ in literal.findall(file.read_text())] == ["_version.py"]
    assert f'__version__ = "{__version__}"\n' in (PACKAGE / "_version.py").read_text()


def test_it_is_a_semantic_version() -> None:
    assert re.fullmatch(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)", __version__)


def test_airflow_shows_it() -> None:
    assert get_provider_info()["versions"] == [__version__]


def test_every_client_sends_it(agents: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    url, seen = agents
    connection = {"conn_type": "qwenimage", "password": "sk-x", "host": url}
    monkeypatch.setenv("AIRFLOW_CONN_QWENIMAGE_DEFAULT", json.dumps(connection))

    async def ask(session: aiohttp.ClientSession) -> None:
        async with session.get(url) as response:
            await response.read()

    async def visit() -> None:
        async with QwenImageAsyncHook() as hook:
            await ask(await hook.get_conn())
        async with downloads.AsyncImageClient(1) as client:
            await ask((await client.session(url)).client)

    with QwenImageHook() as hook:
        hook.get_conn().get(url)
    with downloads.ImageClient() as client:
        client.session(url).get(url)
    asyncio.run(visit())
    assert seen == [f"airflow-provider-qwenimage/{__version__}"] * 4
