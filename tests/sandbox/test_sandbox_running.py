"""A sandbox starts, has a URL, and stops without leaving anything behind."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import pytest
import requests

from airflow_provider_qwenimage.sandbox import Sandbox
from tests.events import wait_until

if TYPE_CHECKING:
    from tests.sandbox.conftest import Api

KEY = {"Authorization": "Bearer sk-sandbox"}


def generate(sandbox: Sandbox, verify: str | bool = True) -> requests.Response:
    url, body = f"{sandbox.url}/api/generate", {"prompt": "a cat", "seed": 1}
    return requests.post(url, json=body, headers=KEY, verify=verify)


def image_url(sandbox: Sandbox, verify: str | bool = True) -> str:
    url = f"{sandbox.url}/api/status?task_id={generate(sandbox, verify).json()['data']['task_id']}"
    data = requests.get(url, headers=KEY, verify=verify).json()["data"]
    return str(data["response"][0])


def test_importing_the_sandbox_imports_no_large_package() -> None:
    code = (
        "import sys, airflow_provider_qwenimage.sandbox, airflow_provider_qwenimage.sandbox.pytest_plugin;"
        "print(sorted({'aiohttp', 'PIL', 'airflow', 'requests', 'pendulum'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_connection_is_available_as_json_and_as_uri() -> None:
    with Sandbox(api_keys=["sk-a/b@c"]) as sandbox:
        port = urlsplit(sandbox.url).port
        assert json.loads(sandbox.connection_json) == {
            "conn_type": "qwenimage",
            "host": f"http://127.0.0.1:{port}",
            "password": "sk-a/b@c",
        }
        uri = urlsplit(sandbox.connection_uri)
        assert (uri.scheme, uri.hostname, uri.port, uri.path) == ("qwenimage", "127.0.0.1", port, "/http")
        assert unquote(uri.password or "") == "sk-a/b@c"


def test_the_url_cannot_be_read_before_the_start() -> None:
    with pytest.raises(RuntimeError, match="Start it first"):
        _ = Sandbox().url


def test_a_second_start_is_refused_and_a_second_stop_does_nothing() -> None:
    sandbox = Sandbox()
    sandbox.stop()
    sandbox.start()
    with pytest.raises(RuntimeError, match="already running"):
        sandbox.start()
    sandbox.stop()
    sandbox.stop()
    sandbox.start()
    assert generate(sandbox).status_code == 200
    sandbox.stop()


def test_a_port_in_use_is_reported_and_leaves_nothing_open() -> None:
    with Sandbox() as first:
        port = urlsplit(first.url).port
        assert port is not None
        second = Sandbox(port=port)
        with pytest.raises(OSError, match=f"Cannot listen on 127.0.0.1 port {port}: .* Choose another"):
            second.start()
    second.start()
    second.stop()


@pytest.mark.parametrize("behaviour", ["hang", "hang_after", "oversized"])
def test_stopping_is_quick_while_requests_hang(api: Api, stop_promptly: Callable[[], None], behaviour: str) -> None:
    api.sandbox.configure(oversized_bytes=10**10, hang_seconds=3600)
    route = "image" if behaviour == "oversized" else "generate"
    url = api.image_url()
    ended = threading.Event()

    def read_slowly() -> None:
        with requests.get(url, stream=True) as answer:
            for _ in answer.iter_content(65536):
                time.sleep(0.01)

    def ask() -> None:
        with pytest.raises(requests.RequestException):
            read_slowly() if route == "image" else generate(api.sandbox)
        ended.set()

    api.sandbox.script(route, behaviour)
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    wait_until(lambda: api.sandbox.requests[-1].behaviour == behaviour, "the request")
    stop_promptly()
    wait_until(ended.is_set, "the end of the request")
    asking.join()


def test_several_threads_may_stop_it_at_once() -> None:
    sandbox = Sandbox()
    sandbox.start()
    threads = [threading.Thread(target=sandbox.stop) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    with pytest.raises(RuntimeError):
        _ = sandbox.url


def test_nothing_is_left_behind_and_nothing_is_printed(tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(
        """
import asyncio, gc, logging, socket, threading, urllib.request
from airflow_provider_qwenimage.sandbox import Sandbox
# In development mode asyncio logs slow callbacks, which a busy machine has.
logging.getLogger("asyncio").addFilter(lambda record: not record.getMessage().startswith("Executing "))
for behaviour in ("ok", "drop", "drop_after", "hang", "html"):
    with Sandbox(seconds_per_image=0, hang_seconds=60) as sandbox:
        sandbox.script("generate", behaviour)
        request = urllib.request.Request(sandbox.url + "/api/generate", data=b'{"prompt": "a cat"}')
        request.add_header("Authorization", "Bearer sk-sandbox")
        try:
            urllib.request.urlopen(request, timeout=0.3).close()
        except OSError as error:
            close = getattr(error, "close", None)
            close and close()
        idle = socket.create_connection(("127.0.0.1", int(sandbox.url.rpartition(":")[2])))
    idle.close()
gc.collect()
print([thread.name for thread in threading.enumerate()])
"""
    )
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", str(script)],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": ":".join(path for path in sys.path if path), "PATH": ""},
    )
    assert done.stdout.strip() == "['MainThread']"
    assert done.stderr == ""


def test_the_ports_are_free_again_after_the_stop() -> None:
    with Sandbox() as sandbox:
        port = urlsplit(sandbox.url).port
    assert port is not None
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


@pytest.mark.parametrize(
    ("arguments", "prefix"),
    [({"cdn_port": None}, "http://127.0.0.1:{port}/cdn/"), ({"cdn_url": "https://cdn.example.com/a/"}, None)],
)
def test_the_base_of_the_image_urls_can_be_set(arguments: dict[str, Any], prefix: str | None) -> None:
    with Sandbox(seconds_per_image=0, **arguments) as sandbox:
        expected = prefix or "https://cdn.example.com/a/cdn/"
        assert image_url(sandbox).startswith(expected.format(port=urlsplit(sandbox.url).port))


def test_the_image_urls_have_the_host_name_that_the_client_uses(api: Api) -> None:
    task_id = api.submit()
    headers = {"Authorization": "Bearer sk-sandbox", "Host": "sandbox.example:8512"}
    data = api.session.get(f"{api.sandbox.url}/api/status", params={"task_id": task_id}, headers=headers).json()["data"]
    assert urlsplit(data["response"][0]).hostname == "sandbox.example"


def test_it_serves_https_with_a_certificate(tmp_path: Path) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=localhost"
    files = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*command.split(), *files], check=True, capture_output=True)
    with Sandbox(ssl_certfile=str(certificate), ssl_keyfile=str(key), seconds_per_image=0) as sandbox:
        assert sandbox.url.startswith("https://")
        assert sandbox.connection_uri.endswith("/https")
        url = image_url(sandbox, str(certificate))
        assert url.startswith("https://")
        assert requests.get(url, verify=str(certificate)).status_code == 200
        sandbox.script("image", "truncate")
        with pytest.raises(requests.exceptions.ChunkedEncodingError):
            requests.get(url, verify=str(certificate))
