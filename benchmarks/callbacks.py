"""Compare how soon a deferred task continues, called back by the API and by polling: `make bench-doorbell`."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

import psutil
import requests
import sqlalchemy

from airflow_provider_qwenimage.sandbox.access import CONTROL_HEADERS
from benchmarks.drawn_in import DrawnInSandbox, prompt_of, seconds_of
from benchmarks.folders import kept_after_a_failure
from benchmarks.measured_airflow import MeasuredAirflow
from benchmarks.settings import Settings
from benchmarks.tables import machine, quantile, table
from scripts.local_airflow import CannotGoOnError
from scripts.progress import Progress
from tests.databases.postgres import Postgres, run_on_postgres

CALLED, POLLED = "called_back", "polled"
WARM_UP = "warm_up"
WAYS = {CALLED: "called back by the API", POLLED: "polled by the triggerer"}

_ANSWER_SECONDS = 30
_LEAST_SECONDS = 300
_SECONDS_FOR_EACH_IMAGE = 10
_PAUSE_SECONDS = 0.5
_SETTLE_SECONDS = 15
# A remainder that spreads the times of any number of images evenly, in an order that is not that of the images.
_GOLDEN = 0.618034
_GOAL_SECONDS = 2.0

_STATE = sqlalchemy.text("SELECT state FROM dag_run WHERE run_id = :run_id")
# Of a deferred task, Airflow sets it again when the task is woken.
_SCHEDULED = sqlalchemy.text(
    "SELECT map_index, EXTRACT(EPOCH FROM scheduled_dttm) FROM task_instance WHERE run_id = :run_id"
)
# The API server logs this when a task process has started and reports to it, also after a deferral.
_RUNNING = sqlalchemy.text(
    "SELECT map_index, EXTRACT(EPOCH FROM dttm) FROM log WHERE event = 'running' AND run_id = :run_id ORDER BY dttm"
)
_HEADER = (
    "way",
    *("images", "scheduled p50", "p95", "slowest", "running p50", "p95", "slowest"),
    *("status requests/image", "processes/image", "triggerer CPU ms/s", "callbacks"),
)


@dataclass(frozen=True)
class Wait:
    """The wait for one image. The times are seconds after the image was finished.

    Attributes:
        scheduled: When Airflow had scheduled the task again.
        running: When a process of the task ran again.
        status_requests: The status requests for it, in the workers and in the triggerer.
        processes: The task processes that were started for it.
        callbacks: The HTTP status of each callback, None for one without an answer.
    """

    scheduled: float
    running: float
    status_requests: int
    processes: int
    callbacks: tuple[int | None, ...]


@dataclass(frozen=True)
class Round:
    """The waits of a DAG run, and the CPU seconds per second that the triggerer used during it."""

    waits: list[Wait]
    triggerer_cpu: float


class CalledAirflow(MeasuredAirflow):
    """A `MeasuredAirflow` that the API calls back."""

    def __init__(self, home: Path, database: str, settings: Settings, plan: dict[str, Any]) -> None:
        super().__init__(home, database, settings)
        self._environment |= {
            "AIRFLOW__QWENIMAGE__CALLBACK_BASE_URL": self.url,
            "QWENIMAGE_BENCHMARK_CALLBACKS": json.dumps(plan),
        }

    def triggerer_cpu_seconds(self) -> float:
        """Return the CPU seconds that the processes of the triggerer have used."""
        found: set[psutil.Process] = set()
        for process in psutil.Process(self._processes[0].pid).children(recursive=True):
            # A task process may end in between.
            with suppress(psutil.Error):
                if "triggerer" in " ".join(process.cmdline()):
                    found |= {process, *process.children(recursive=True)}
        if not found:
            raise CannotGoOnError("No triggerer runs. Read Airflow's output for the reason.")
        return sum(times.user + times.system for times in (process.cpu_times() for process in found))


@dataclass(frozen=True)
class Bench:
    """The running Airflow, its database and the sandbox."""

    airflow: CalledAirflow
    database: sqlalchemy.Engine
    api: DrawnInSandbox
    images: int
    progress: Progress


def main() -> int:
    """Run the comparison, and return the exit code."""
    arguments = _read_arguments()
    return run_on_postgres(lambda postgres: _compare(arguments, postgres))


def _read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.callbacks",
        description="Draw images in the sandbox with deferred operators of a real Airflow, and measure how long after "
        "the end of an image its task is scheduled and runs again, once called back by the API and once by polling, "
        "in turns. Takes about six minutes and needs the server programs of PostgreSQL.",
    )
    parser.add_argument("--images", type=int, default=24, help="images of a DAG run (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=2, help="DAG runs for each way (default: %(default)s)")
    parser.add_argument(
        "--shortest", type=float, default=12.0, help="how long the fastest image takes, in seconds (default: 12)"
    )
    parser.add_argument(
        "--longest", type=float, default=40.0, help="how long the slowest image takes, in seconds (default: 40)"
    )
    parser.add_argument("--poll-interval", type=float, default=5.0, help="seconds between polls (default: 5)")
    arguments = parser.parse_args()
    if min(arguments.images, arguments.rounds) < 1 or not 0 < arguments.shortest <= arguments.longest:
        parser.error("--images and --rounds must be at least 1, and --shortest above 0 and at most --longest.")
    return arguments


def _compare(arguments: argparse.Namespace, postgres: Postgres) -> None:
    began = time.monotonic()
    rounds: dict[str, list[Round]] = {way: [] for way in WAYS}
    with _start_bench(arguments, postgres) as bench:
        with bench.progress.step("Drawing an image first, because the first one is slower"):
            _run(bench, WARM_UP)
        for number in range(arguments.rounds):
            for way, title in WAYS.items():
                with bench.progress.step(f"Round {number + 1}, {arguments.images} images: {title}"):
                    rounds[way].append(_draw(bench, way))
        with bench.progress.step("Measuring the idle triggerer"):
            used = bench.airflow.triggerer_cpu_seconds()
            time.sleep(_SETTLE_SECONDS)
            idle = (bench.airflow.triggerer_cpu_seconds() - used) / _SETTLE_SECONDS
    at_once = [Round(list(filter(_was_woken_at_once, each.waits)), each.triggerer_cpu) for each in rounds[CALLED]]
    rows = {WAYS[CALLED]: rounds[CALLED], "…, not held back": at_once, WAYS[POLLED]: rounds[POLLED]}
    print(f"\n{table(_HEADER, [_cells(title, found) for title, found in rows.items() if any(_all(found))])}\n")
    print(machine())
    print(
        f"{arguments.images} images in each of {arguments.rounds} runs of each way, which take turns; an image takes "
        f"{arguments.shortest:g} to {arguments.longest:g} s. Times: seconds from the end of the image to the task "
        f"instance's `scheduled_dttm`, and to the start of its process as the API server logs it. The idle triggerer "
        f"uses {idle * 1000:.0f} ms of CPU per second. Goal: scheduled p95 below {_GOAL_SECONDS:g} s if called back. "
        f"Duration: {time.monotonic() - began:.0f} s."
    )


@contextmanager
def _start_bench(arguments: argparse.Namespace, postgres: Postgres) -> Iterator[Bench]:
    progress = Progress(sys.stderr)
    with kept_after_a_failure("Airflow's logs") as folder, ExitStack() as stack:
        with progress.step("Starting PostgreSQL, the sandbox and Airflow"):
            stack.enter_context(postgres)
            api = stack.enter_context(DrawnInSandbox())
            settings = Settings(
                images=arguments.images, in_flight=1, poll_interval=arguments.poll_interval, folder=str(folder)
            )
            home = folder / "airflow"
            home.mkdir()
            airflow = CalledAirflow(home, postgres.url, settings, _plan(arguments, api))
            stack.callback(airflow.stop)
            airflow.add_dags(["called_back"])
            airflow.prepare(json.dumps({"qwenimage_default": json.loads(api.connection_json)}))
            airflow.start(WARM_UP, *WAYS)
            database = sqlalchemy.create_engine(postgres.url)
            stack.callback(database.dispose)
            # Let the start finish, so that it does not delay the first tasks.
            time.sleep(_SETTLE_SECONDS)
        yield Bench(airflow, database, api, arguments.images, progress)


def _plan(arguments: argparse.Namespace, api: DrawnInSandbox) -> dict[str, Any]:
    """Return what the DAG file reads. Both ways have images that take equally long."""
    span = arguments.longest - arguments.shortest
    seconds = [arguments.shortest + span * (number * _GOLDEN % 1) for number in range(arguments.images)]

    def requests_of(way: str) -> list[dict[str, Any]]:
        found = [{"prompt": prompt_of(f"{way} {number}", each)} for number, each in enumerate(seconds)]
        # An image with a callback URL of the user's own wakes no task.
        return found if way == CALLED else [request | {"callback_url": f"{api.url}/done"} for request in found]

    dags = {WARM_UP: [{"prompt": prompt_of(f"{WARM_UP} 0", arguments.shortest)}]}
    return {"poll_interval": arguments.poll_interval, "requests": dags | {way: requests_of(way) for way in WAYS}}


def _draw(bench: Bench, way: str) -> Round:
    """Run the DAG of a way once."""
    _control(bench.api, "POST", "reset", {})
    _control(bench.api, "PATCH", "settings", {"callback": "on_time" if way == CALLED else "never"})
    began, used = time.monotonic(), bench.airflow.triggerer_cpu_seconds()
    run_id = _run(bench, way)
    triggerer_cpu = (bench.airflow.triggerer_cpu_seconds() - used) / (time.monotonic() - began)
    waits = _waits(bench, run_id)
    if len(waits) != bench.images:
        raise CannotGoOnError(f"{way} should have drawn {bench.images} images, but drew {len(waits)}. Fix this first.")
    time.sleep(_SETTLE_SECONDS)
    return Round(waits, triggerer_cpu)


def _run(bench: Bench, dag_id: str) -> str:
    """Run a DAG, and return the id of the run."""
    began = time.monotonic()
    run_id = bench.airflow.trigger(dag_id, {})
    deadline = began + max(_LEAST_SECONDS, _SECONDS_FOR_EACH_IMAGE * bench.images)
    # Read from the database, because requests to Airflow's API would compete with the callbacks.
    while (state := _read(bench.database, _STATE, run_id)[0][0]) != "success":
        if state == "failed" or time.monotonic() > deadline:
            raise CannotGoOnError(f"The DAG run of {dag_id} is {state} after {time.monotonic() - began:.0f} s.")
        time.sleep(_PAUSE_SECONDS)
    return run_id


def _waits(bench: Bench, run_id: str) -> list[Wait]:
    books = _control(bench.api, "GET", "books?last=1000000")
    polls = Counter(record["task_id"] for record in books["requests"] if record["route"] == "status")
    callbacks: dict[str, list[int | None]] = {}
    for record in books["callbacks"]:
        callbacks.setdefault(record["task_id"], []).append(record["status"])
    scheduled = {index: float(at) for index, at in _read(bench.database, _SCHEDULED, run_id)}
    running: dict[int, list[float]] = {}
    for index, at in _read(bench.database, _RUNNING, run_id):
        running.setdefault(index, []).append(float(at))
    waits = []
    for submission in books["submissions"]:
        prompt, task_id = submission["request"]["prompt"], submission["task_id"]
        # The second word of a prompt is the map index of its task.
        index = int(prompt.split()[1])
        ended = submission["accepted_at"] + seconds_of(prompt)
        waits.append(
            Wait(
                scheduled=scheduled[index] - ended,
                running=running[index][-1] - ended,
                status_requests=polls[task_id],
                processes=len(running[index]),
                callbacks=tuple(callbacks.get(task_id, ())),
            )
        )
    return waits


def _control(api: DrawnInSandbox, method: str, path: str, body: Any = None) -> Any:
    """Send a request to the control path of the sandbox."""
    answer = requests.request(
        method, f"{api.url}/sandbox/{path}", json=body, headers=CONTROL_HEADERS, timeout=_ANSWER_SECONDS
    )
    answer.raise_for_status()
    return answer.json()


def _read(database: sqlalchemy.Engine, query: sqlalchemy.TextClause, run_id: str) -> Sequence[Any]:
    with database.connect() as connection:
        return connection.execute(query, {"run_id": run_id}).all()


def _was_woken_at_once(wait: Wait) -> bool:
    return wait.callbacks == (HTTPStatus.OK,)


def _all(rounds: Sequence[Round]) -> list[Wait]:
    return [wait for each in rounds for wait in each.waits]


def _cells(title: str, rounds: Sequence[Round]) -> list[str]:
    waits = _all(rounds)
    answers = Counter(str(status) for wait in waits for status in wait.callbacks)
    cpu = sum(each.triggerer_cpu for each in rounds) / len(rounds)
    return [
        title,
        str(len(waits)),
        *_seconds([wait.scheduled for wait in waits]),
        *_seconds([wait.running for wait in waits]),
        f"{sum(wait.status_requests for wait in waits) / len(waits):.2f}",
        f"{sum(wait.processes for wait in waits) / len(waits):.2f}",
        f"{cpu * 1000:.0f}",
        ", ".join(f"{number} of {status}" for status, number in sorted(answers.items())) or "-",
    ]


def _seconds(values: Sequence[float]) -> list[str]:
    return [f"{value:.2f}" for value in (quantile(values, 0.5), quantile(values, 0.95), max(values))]


if __name__ == "__main__":
    sys.exit(main())
