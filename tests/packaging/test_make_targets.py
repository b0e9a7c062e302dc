"""`make demo` and `make up` do what they print, and stop everything that they start."""

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import psutil
import pytest
from PIL import Image

from airflow_provider_qwenimage.sandbox import Sandbox
from tests.events import finish_images, wait_until
from tests.integration.standalone import wait_for
from tests.packaging.conftest import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

KEY = "sk-demo-0f3b9a61"
# The variables of a user's own Airflow, which must not reach ours.
USERS_SHELL = {
    "AIRFLOW_HOME": "/nowhere/airflow",
    "AIRFLOW__CORE__DAGS_FOLDER": "/nowhere/dags",
    "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": "sqlite:////nowhere/airflow.db",
    "AIRFLOW_CONN_QWENIMAGE_DEFAULT": "qwenimage://:sk-of-the-user@127.0.0.1:9/http",
    "HTTP_PROXY": "http://127.0.0.1:9",
    "http_proxy": "http://127.0.0.1:9",
}

# On a busy machine everything is slow: this only ends a test whose program hangs.
_PATIENCE_SECONDS = 600

Start: TypeAlias = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a program of a make target, and kill what is left of it at the end."""
    started: list[subprocess.Popen[str]] = []

    def run(module: str, **environment: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", module],
            cwd=ROOT,
            env=os.environ | USERS_SHELL | {"HOME": str(tmp_path)} | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        with process:
            if process.poll() is None:
                for member in family_of(process):
                    member.kill()
                process.kill()


def read_until(process: subprocess.Popen[str], wanted: str) -> str:
    assert process.stdout is not None
    seen = ""
    for line in process.stdout:
        seen += line
        if wanted in line:
            return seen
    raise AssertionError(f"The output has no {wanted!r}:\n{seen}")


def family_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def running_in(airflow_home: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("AIRFLOW_HOME") == str(airflow_home):
                found.append(process)
    return found


def assert_nothing_runs_in(airflow_home: Path) -> None:
    # A killed process disappears a moment later.
    wait_until(lambda: not running_in(airflow_home), f"the end of all processes in {airflow_home}")


def test_the_demo_draws_a_whole_image_and_prints_its_path(start: Start, tmp_path: Path) -> None:
    process = start("scripts.demo", PROMPT="Seven geese over a frozen lake")
    output, _ = process.communicate()
    assert process.returncode == 0, output
    found = re.search(r"^Image +(\S.*)$", output, re.MULTILINE)
    assert found, output
    file = Path(found[1])
    with Image.open(file) as image:
        image.load()
        assert (image.format, image.size) == ("JPEG", (1024, 1024))
    sidecar = json.loads(file.with_suffix(".json").read_text())
    assert sidecar["request"]["prompt"] == "Seven geese over a frozen lake"
    assert f"{file.stat().st_size:,} bytes" in output
    assert "5 credits of the sandbox" in output
    assert "QWENIMAGE_API_KEY=sk-… make demo" in output
    assert list(tmp_path.iterdir()) == [], "the user's home was touched"


def test_with_a_key_the_demo_uses_that_service_and_keeps_the_key_secret(start: Start) -> None:
    with Sandbox(seconds_per_image=3600, api_keys=(KEY,)) as service:
        process = start("scripts.demo", QWENIMAGE_API_KEY=KEY, QWENIMAGE_BASE_URL=service.url)
        before = read_until(process, "waiting")
        assert "this costs 5 credits" in before
        for member in [psutil.Process(process.pid), *family_of(process)]:
            assert KEY not in " ".join(member.cmdline())
        finish_images(service)
        output, _ = process.communicate()
        assert process.returncode == 0, output
        assert len(service.submissions) == 1
    assert "Cost     5 credits\n" in output
    assert KEY not in before + output
    assert KEY not in (ROOT / ".airflow" / "demo" / "demo.log").read_text()


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"PROMPT": "[policy]"}, "Content policy violation detected"),
        ({"PROMPT": "x" * 2001}, "it must have at most 2000"),
        ({"QWENIMAGE_API_KEY": KEY, "QWENIMAGE_BASE_URL": "http://127.0.0.1:9"}, "could not be reached"),
    ],
    ids=["refused-prompt", "long-prompt", "no-service"],
)
def test_a_failing_demo_prints_the_reason(start: Start, environment: dict[str, str], reason: str) -> None:
    process = start("scripts.demo", **environment)
    output, _ = process.communicate()
    assert process.returncode == 1
    assert reason in output
    assert "Traceback" not in output


@pytest.fixture
def environment(moment: str) -> Iterator[dict[str, str]]:
    """The environment of a demo that is interrupted: its image is never done."""
    if moment == "waiting":
        with Sandbox(seconds_per_image=3600, api_keys=(KEY,)) as service:
            yield {"QWENIMAGE_API_KEY": KEY, "QWENIMAGE_BASE_URL": service.url}
    else:
        yield {}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
@pytest.mark.parametrize("moment", ["starting Airflow", "waiting"])
def test_an_interrupted_demo_stops_what_it_started(
    start: Start, environment: dict[str, str], number: signal.Signals, moment: str
) -> None:
    process = start("scripts.demo", **environment)
    read_until(process, moment)
    process.send_signal(number)
    # make forwards the signal that the terminal has already sent.
    process.send_signal(number)
    output, _ = process.communicate(timeout=_PATIENCE_SECONDS)
    assert process.returncode == 130, output
    assert "Nothing is left running" in output
    assert_nothing_runs_in(ROOT / ".airflow" / "demo")


def test_up_shows_a_working_airflow_and_stops_it(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        port, sandbox_port = one.getsockname()[1], two.getsockname()[1]
    process = start("scripts.up", PORT=str(port), SANDBOX_PORT=str(sandbox_port))
    read_until(process, "Ctrl-C")

    def ask(method: str, path: str, body: object = None) -> dict[str, object]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_PATIENCE_SECONDS)
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer: dict[str, object] = json.loads(connection.getresponse().read())
        connection.close()
        return answer

    headers = {"Content-Type": "application/json"}
    headers["Authorization"] = f"Bearer {ask('GET', '/auth/token')['access_token']}"
    stored = ask("GET", "/api/v2/connections/qwenimage_default")
    assert (stored["host"], stored["port"]) == ("http://127.0.0.1", sandbox_port)
    # What the Test button sends: empty strings for empty fields, and stars for the stored key.
    button = {"description": "", "extra": "{}", "login": "", "schema": "", "password": "***"}
    assert "Connection works" in str(ask("POST", "/api/v2/connections/test", stored | button)["message"])
    assert ask("GET", "/api/v2/pools/qwenimage")["slots"] == 4
    tested = ask("POST", "/api/v2/connections/test", stored | {"password": "sk-nobody's"})
    assert "refused the key" in str(tested["message"])

    run = ask("POST", "/api/v2/dags/qwenimage_prompt_to_file/dagRuns", {"logical_date": None})
    path = f"/api/v2/dags/qwenimage_prompt_to_file/dagRuns/{run['dag_run_id']}"
    wait_for("the end of the run", lambda: ask("GET", path)["state"] not in ("queued", "running"))
    assert ask("GET", path)["state"] == "success"

    assert running_in(ROOT / ".airflow" / "up")
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=_PATIENCE_SECONDS)
    assert process.returncode == 130, output
    assert_nothing_runs_in(ROOT / ".airflow" / "up")


def test_up_rejects_a_port_that_is_in_use(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        process = start("scripts.up", PORT=str(taken.getsockname()[1]))
        output, _ = process.communicate()
    assert process.returncode == 1
    assert "this port is in use" in output
