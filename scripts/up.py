"""Starts the sandbox and a whole Airflow with every example DAG already run; Ctrl-C stops both.

Environment variables: ``PORT`` (of Airflow, default 8080) and ``SANDBOX_PORT`` (default 8512). If a default port is in
use, a free one is chosen instead.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from airflow_provider_qwenimage.rules.gallery_urls import NAV_ROUTE, PREFIX
from airflow_provider_qwenimage.sandbox import Sandbox
from scripts.local_airflow import IMAGES, ROOT, AirflowCommandError, CannotGoOnError, LocalAirflow, run_to_the_end, stop
from scripts.progress import Progress

CONN_ID = "qwenimage_default"
POOL = "qwenimage"
POOL_SLOTS = 4

_HOST = "127.0.0.1"
_READY_SECONDS = 180.0
_EXAMPLES_SECONDS = 120.0
_TICK_SECONDS = 0.5
# The state of a run that waits for a person's answer.
_ASKS = "asks"
_ENDED = {"success", "failed", _ASKS}
_SHOWN_LOG_LINES = 20


def main() -> int:
    """Run until Ctrl-C.

    Returns:
        The exit code.
    """
    return run_to_the_end(_run)


def _run() -> None:
    with ExitStack() as stack:
        port = _choose_port("PORT", 8080)
        sandbox = stack.enter_context(Sandbox(port=_choose_port("SANDBOX_PORT", 8512)))
        airflow = LocalAirflow("up", _settings(port))
        progress = Progress()
        print(f"Apache Airflow {airflow.version} with the examples and the sandbox", flush=True)
        try:
            _prepare(airflow, sandbox, progress)
        except AirflowCommandError as error:
            raise CannotGoOnError(_explain(str(error), airflow)) from error
        process = airflow.start("standalone")
        stack.callback(stop, process)
        stack.callback(print, "\nStopping Airflow (a few seconds) ...", flush=True)
        with progress.step("starting Airflow (20 to 40 seconds)"):
            _await_ready(port, process, airflow)
        unsuccessful = _run_examples(_Api(port), progress)
        _report(unsuccessful, port, airflow.home / "logs")
        print(
            f"\nAirflow   http://{_HOST}:{port} (no password)\n"
            f"Gallery   http://{_HOST}:{port}/plugin/{NAV_ROUTE}, and the tab Images of each DAG, run and task\n"
            f"Sandbox   {sandbox.url}, stored as connection {CONN_ID}\n"
            f"Images    {IMAGES}\n"
            f"Log       {airflow.log}\n"
            "\nTrigger the DAG qwenimage_prompt_to_file to draw another image. Ctrl-C stops everything.",
            flush=True,
        )
        while process.poll() is None:
            time.sleep(_TICK_SECONDS)
        raise CannotGoOnError(_explain(f"Airflow ended with exit code {process.returncode}.", airflow))


def _settings(port: int) -> dict[str, str]:
    url = f"http://{_HOST}:{port}"
    return {
        # Airflow starts its components as `airflow`.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "AIRFLOW__API__HOST": _HOST,
        "AIRFLOW__API__PORT": str(port),
        "AIRFLOW__API__BASE_URL": url,
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{url}/execution/",
        # Everyone who can reach it is an admin, so it listens on this machine only.
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
        "AIRFLOW__CORE__TEST_CONNECTION": "Enabled",
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
        "AIRFLOW__CORE__PARALLELISM": "4",
        "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "10",
        "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(_free_port()),
        "AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT": str(_free_port()),
        "QWENIMAGE_POOL": POOL,
    }


def _prepare(airflow: LocalAirflow, sandbox: Sandbox, progress: Progress) -> None:
    if not airflow.is_prepared:
        with progress.step("creating Airflow's database (the first time only)"):
            airflow.prepare()
    connections = airflow.home / "connections.json"
    url = urlsplit(sandbox.url)
    # A separate port: if the field is empty, the Test button of Airflow's connections page fails.
    fields = {"host": f"{url.scheme}://{url.hostname}", "port": url.port}
    wanted = json.dumps({CONN_ID: json.loads(sandbox.connection_json) | fields})
    if connections.is_file() and connections.read_text() == wanted:
        return
    # Stored in Airflow, so that it can be viewed, changed and tested on the connections page.
    with progress.step("storing the connection and the pool"):
        new = airflow.home / "connections.new.json"
        new.write_text(wanted)
        airflow.run("connections", "import", "--overwrite", str(new))
        airflow.run(
            "pools",
            "set",
            "--include-deferred",
            POOL,
            str(POOL_SLOTS),
            "Limits how many images are drawn at the same time",
        )
        new.rename(connections)


def _await_ready(port: int, process: subprocess.Popen[bytes], airflow: LocalAirflow) -> None:
    """Wait until every component of Airflow is healthy and the example DAGs are parsed."""
    # A file may have several DAGs.
    wanted = sum(file.read_text().count("    dag_id=") for file in (ROOT / "example_dags").glob("*.py"))
    deadline = time.monotonic() + _READY_SECONDS
    api = _Api(port)
    while not (api.is_healthy() and len(api.dag_ids()) >= wanted):
        if process.poll() is not None:
            raise CannotGoOnError(_explain(f"Airflow ended with exit code {process.returncode}.", airflow))
        if time.monotonic() > deadline:
            raise CannotGoOnError(
                _explain(
                    f"Airflow was not ready after {_READY_SECONDS:.0f} s. A slow machine may need longer.", airflow
                )
            )
        time.sleep(_TICK_SECONDS)


class _Api:
    """Airflow's API, which may not be up yet."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._token = ""

    def is_healthy(self) -> bool:
        """Whether every component of Airflow is healthy."""
        parts = [part for part in self._ask("GET", "/api/v2/monitor/health").values() if isinstance(part, dict)]
        return bool(parts) and all(part.get("status") == "healthy" for part in parts)

    def dag_ids(self) -> list[str]:
        """Return the parsed DAGs."""
        return [dag["dag_id"] for dag in self._dags()]

    def scheduled_dag_ids(self) -> list[str]:
        """Return the DAGs that run by themselves when an asset is updated."""
        return [dag["dag_id"] for dag in self._dags() if dag.get("timetable_summary")]

    def _dags(self) -> list[dict[str, Any]]:
        dags: list[dict[str, Any]] = self._ask("GET", "/api/v2/dags").get("dags", [])
        return dags

    def first_run(self, dag_id: str) -> str | None:
        """Return the id of a DAG's run if there is one; "" if it has never run, None if there is no response."""
        runs = self._ask("GET", f"/api/v2/dags/{dag_id}/dagRuns?limit=1")
        if runs.get("total_entries") == 0:
            return ""
        found: str | None = next((run["dag_run_id"] for run in runs.get("dag_runs", [])), None)
        return found

    def run_once(self, dag_id: str) -> str | None:
        """Trigger a DAG that has never run and return the run's id; None if it has run, or could not be triggered."""
        if self.first_run(dag_id) != "":
            return None
        return self._ask("POST", f"/api/v2/dags/{dag_id}/dagRuns", {"logical_date": None}).get("dag_run_id")

    def run_state(self, dag_id: str, run_id: str) -> str:
        """Return the state of a run, such as ``success``, or `_ASKS`; empty if there is no response."""
        path = f"/api/v2/dags/{dag_id}/dagRuns/{quote(run_id, safe='')}"
        state: str = self._ask("GET", path).get("state", "")
        is_asking = state == "running" and self._ask("GET", f"{path}/hitlDetails?response_received=false&limit=1").get(
            "total_entries"
        )
        return _ASKS if is_asking else state

    def totals(self) -> tuple[int, float]:
        """Return how many images the gallery counts as done, and the credits they cost."""
        totals = self._ask("GET", f"{PREFIX}/data?limit=0").get("totals") or {"counts": {"done": 0}, "credits": 0}
        return totals["counts"]["done"], totals["credits"]

    def _ask(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        """Return the JSON object of a response; an empty one if Airflow does not answer yet."""
        headers = {"Content-Type": "application/json"}
        if path != "/auth/token":
            self._token = self._token or self._ask("GET", "/auth/token").get("access_token", "")
            headers["Authorization"] = f"Bearer {self._token}"
        connection = http.client.HTTPConnection(_HOST, self._port, timeout=5)
        try:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            answer = json.loads(connection.getresponse().read())
        except (OSError, http.client.HTTPException, ValueError):
            return {}
        finally:
            connection.close()
        return answer if isinstance(answer, dict) else {}


def _run_examples(api: _Api, progress: Progress) -> dict[tuple[str, str], str]:
    """Run each example once, so that the gallery has images; those on a schedule run by themselves after the others.

    Returns:
        The state of each run that has not succeeded, by DAG id and run id. A run that takes too long continues.
    """
    with progress.step("running the examples"):
        scheduled = api.scheduled_dag_ids()
        expected = {dag_id for dag_id in scheduled if api.first_run(dag_id) == ""}
        runs = {
            (dag_id, run_id): ""
            for dag_id in api.dag_ids()
            if dag_id not in scheduled and (run_id := api.run_once(dag_id))
        }
        # Their assets were updated earlier, and won't be now.
        expected = expected if runs else set()
        deadline = time.monotonic() + _EXAMPLES_SECONDS
        while (expected or not set(runs.values()) <= _ENDED) and time.monotonic() < deadline:
            time.sleep(_TICK_SECONDS)
            runs |= {(dag_id, run_id): "" for dag_id in expected if (run_id := api.first_run(dag_id))}
            expected -= {dag_id for dag_id, _ in runs}
            runs = {run: state if state in _ENDED else api.run_state(*run) for run, state in runs.items()}
            images, cost = api.totals()
            succeeded = list(runs.values()).count("success")
            progress.update(
                f"running the examples: {succeeded} of {len(runs)} runs succeeded, "
                f"{images} images, {cost:g} credits of the sandbox"
            )
    unsuccessful = {run: state for run, state in runs.items() if state != "success"}
    return unsuccessful | {(dag_id, ""): "" for dag_id in expected}


def _report(unsuccessful: Mapping[tuple[str, str], str], port: int, logs: Path) -> None:
    """Print which examples failed or still run, and where their logs are."""
    for (dag_id, run_id), state in unsuccessful.items():
        ended = "failed" if state == "failed" else f"has not ended after {_EXAMPLES_SECONDS:.0f} s; it may be retrying"
        if not run_id:
            print(f"\nThe example {dag_id} has not been started by its asset after {_EXAMPLES_SECONDS:.0f} s.")
            continue
        if state == _ASKS:
            print(f"\nThe example {dag_id} waits for your answer: http://{_HOST}:{port}/required_actions")
            continue
        print(
            f"\nThe example {dag_id} {ended}.\n"
            f"  Run     http://{_HOST}:{port}/dags/{dag_id}/runs/{quote(run_id, safe='')}\n"
            f"  Logs    {logs / f'dag_id={dag_id}' / f'run_id={run_id}'}"
        )


def _choose_port(variable: str, default: int) -> int:
    asked = os.environ.get(variable, "").strip()
    if not asked:
        return default if _is_free(default) else _free_port()
    if not asked.isdecimal() or not 0 < int(asked) < 2**16:
        raise CannotGoOnError(f"{variable} is {asked!r}; it must be a port number from 1 to 65535.")
    if not _is_free(int(asked)):
        raise CannotGoOnError(f"{variable} is {asked}, but this port is in use. Choose another one.")
    return int(asked)


def _is_free(port: int) -> bool:
    try:
        socket.create_server((_HOST, port)).close()
    except OSError:
        return False
    return True


def _free_port() -> int:
    with socket.create_server((_HOST, 0)) as server:
        port: int = server.getsockname()[1]
        return port


def _explain(problem: str, airflow: LocalAirflow) -> str:
    return "\n".join(
        [
            "The end of the log:",
            *airflow.last_log_lines(_SHOWN_LOG_LINES),
            "",
            f"{problem} If it happens again, remove {airflow.home} and run make up again.",
            f"The full log: {airflow.log}",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
