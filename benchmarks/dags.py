"""Compare ways to draw many images in a DAG: `make bench-dag`, or `python -m benchmarks.dags --help`."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from benchmarks.folders import kept_after_a_failure
from benchmarks.image_requests import write_requests
from benchmarks.measured_airflow import MeasuredAirflow, RunUsage
from benchmarks.sandbox_process import ROOT, SandboxProcess
from benchmarks.settings import COMPILED, Settings
from benchmarks.tables import machine, table
from scripts.local_airflow import CannotGoOnError
from scripts.progress import Progress
from tests.databases.postgres import Postgres, run_on_postgres

CONTESTANTS = {
    "stock": "HttpOperator, HttpSensor (reschedule), @task",
    "pair": "QwenImageGenerateOperator, QwenImageStatusSensor, @task",
    "mapped": "QwenImageGenerateOperator, mapped, deferrable",
    "later": "QwenImageGenerateOperator, mapped, deferrable with defer_after",
    "batch": "QwenImageBatchOperator",
    "bare": "a script without Airflow",
}

_BURN = "burn"
_BURNT_SECONDS = 5.0
_MOST_BURN_ERROR = 0.5
_SECONDS_FOR_EACH_IMAGE = 30
_LEAST_SECONDS = 180
_SETTLE_SECONDS = 10
_HEADER = (
    "way",
    *("CPU ratio", "CPU s", "CPU error", "CPU s/image"),
    *("wall s", "process starts", "false crashes", "API requests", "status requests"),
)


@dataclass(frozen=True)
class Result:
    """The usage and the requests of a contestant.

    Attributes:
        wall_seconds: From the trigger to the end.
        cpu_seconds: The CPU time of all Airflow processes minus that of an idle Airflow.
        cpu_uncertainty: The possible error of `cpu_seconds`, from the idle usage before and after the run.
        process_starts: The number of task processes.
        false_crashes: The number of tasks that the scheduler considered crashed by mistake.
        requests: The number of requests by route.
    """

    wall_seconds: float
    cpu_seconds: float
    cpu_uncertainty: float
    process_starts: int
    false_crashes: int
    requests: dict[str, int]


@dataclass(frozen=True)
class Bench:
    """The running Airflow and sandbox, and the settings of the benchmark."""

    airflow: MeasuredAirflow
    api: SandboxProcess
    settings: Settings
    progress: Progress


def main() -> int:
    """Run the comparison or the check, and return the exit code."""
    arguments = _read_arguments()
    return run_on_postgres(lambda postgres: (_check if arguments.check else _compare)(arguments, postgres))


def _read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.dags",
        description="Draw images in the sandbox with a real Airflow, in several ways one after the other, and compare "
        "CPU time, wall time, process starts and API requests. Takes about ten minutes and needs the server programs "
        "of PostgreSQL.",
        epilog="ways: " + "; ".join(f"{name} = {text}" for name, text in CONTESTANTS.items()),
    )
    parser.add_argument("--images", type=int, default=50, help="images for each way (default: 50)")
    parser.add_argument("--only", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS), help="run only these ways")
    parser.add_argument("--seconds-per-image", type=float, default=10.0, help="how long an image takes (default: 10)")
    parser.add_argument("--poll-interval", type=float, default=5.0, help="seconds between polls (default: 5)")
    parser.add_argument(
        "--defer-after",
        type=float,
        default=20.0,
        help="seconds that a task of the way `later` waits in the worker (default: 20)",
    )
    parser.add_argument("--in-flight", type=int, default=16, help="images in flight, for batch and bare (default: 16)")
    parser.add_argument(
        "--idle-seconds",
        type=float,
        default=25.0,
        help="length of each measurement of the idle Airflow (default: 25)",
    )
    parser.add_argument("--check", action="store_true", help="check the measurement with a known CPU time")
    return parser.parse_args()


def _check(arguments: argparse.Namespace, postgres: Postgres) -> None:
    """Check that the CPU time of tasks and of the processes that they start is counted."""
    with _start_bench(arguments, postgres, [_BURN]) as bench:
        idle = _measure_idle(bench, arguments.idle_seconds)
        found = []
        # The first run is discarded, because it pays for imports and forks that later runs share.
        for seconds in (0.0, 0.0, _BURNT_SECONDS):
            with bench.progress.step(f"A task that uses {seconds:g} CPU seconds"):
                usage = bench.airflow.measure_run(_BURN, {"seconds": seconds}, _LEAST_SECONDS)
            found.append(usage.cpu_seconds - idle * usage.measured_seconds)
    counted = found[-1] - found[-2]
    print(f"Used {_BURNT_SECONDS:.2f} CPU s, measured {counted:.2f}; an empty task takes {found[-2]:.2f}.")
    if abs(counted - _BURNT_SECONDS) > _MOST_BURN_ERROR:
        raise CannotGoOnError("The measurement is wrong, or the machine is too busy. Try again on an idle machine.")


def _compare(arguments: argparse.Namespace, postgres: Postgres) -> None:
    began = time.monotonic()
    chosen = [name for name in CONTESTANTS if name in arguments.only]
    if "stock" in chosen and find_spec("airflow.providers.http") is None:
        raise CannotGoOnError(
            "The stock DAG needs Airflow's HTTP provider. Install it (pip install apache-airflow-providers-http), or "
            "choose other ways with --only."
        )
    with _start_bench(arguments, postgres, [_BURN, *(name for name in chosen if name != "bare")]) as bench:
        with bench.progress.step("Running an empty task first, because the first task is slower"):
            bench.airflow.measure_run(_BURN, {"seconds": 0.0}, _LEAST_SECONDS)
        results = {}
        idle = [_measure_idle(bench, arguments.idle_seconds)]
        for name in chosen:
            with bench.progress.step(f"{arguments.images} images: {CONTESTANTS[name]}"):
                usage, requests = _draw(bench, name)
            if name != "bare":
                idle.append(_measure_idle(bench, arguments.idle_seconds))
            results[name] = _result(usage, requests, (0.0, 0.0) if name == "bare" else idle[-2:])
    rows = [
        _cells(result, arguments.images, CONTESTANTS[name], results.get("stock")) for name, result in results.items()
    ]
    print(f"\n{table(_HEADER, rows)}\n")
    print(machine())
    print(
        f"{arguments.images} images for each way, {arguments.seconds_per_image:g} s per image. CPU s: the CPU time of "
        f"all Airflow processes, without the database and the sandbox, minus that of an idle Airflow: {min(idle):.3f} "
        f"to {max(idle):.3f} CPU s per second, measured before and after each way. Duration: "
        f"{time.monotonic() - began:.0f} s."
    )


@contextmanager
def _start_bench(arguments: argparse.Namespace, postgres: Postgres, dags: Sequence[str]) -> Iterator[Bench]:
    progress = Progress(sys.stderr)
    with kept_after_a_failure("Airflow's logs and the images") as folder, ExitStack() as stack:
        with progress.step("Starting PostgreSQL, the sandbox and Airflow"):
            stack.enter_context(postgres)
            api = stack.enter_context(SandboxProcess(seconds_per_image=arguments.seconds_per_image))
            settings = Settings(
                images=arguments.images,
                in_flight=arguments.in_flight,
                poll_interval=arguments.poll_interval,
                defer_after=arguments.defer_after,
                folder=str(folder / "images"),
            )
            home = folder / "airflow"
            home.mkdir()
            airflow = MeasuredAirflow(home, postgres.url, settings)
            stack.callback(airflow.stop)
            airflow.add_dags(dags)
            airflow.prepare(json.dumps(_connections(api)))
            airflow.start(*dags)
            # Let the start finish, so that it is not measured as the usage of an idle Airflow.
            time.sleep(_SETTLE_SECONDS)
        yield Bench(airflow, api, settings, progress)


def _connections(api: SandboxProcess) -> dict[str, dict[str, str]]:
    header = json.dumps({"Authorization": f"Bearer {api.api_key}"})
    return {
        "qwenimage_default": json.loads(api.connection_json),
        "qwenimage_http": {"conn_type": "http", "host": api.url, "extra": header},
    }


def _measure_idle(bench: Bench, seconds: float) -> float:
    with bench.progress.step("Measuring the idle Airflow"):
        rate = bench.airflow.measure_idle(seconds)
        bench.progress.update(f"Measuring the idle Airflow: {rate:.3f} CPU s per second")
    return rate


def _draw(bench: Bench, name: str) -> tuple[RunUsage, dict[str, int]]:
    images = bench.settings.images
    bench.api.take_counts()
    if name == "bare":
        usage = _draw_without_airflow(bench)
    else:
        usage = bench.airflow.measure_run(name, {}, max(_LEAST_SECONDS, _SECONDS_FOR_EACH_IMAGE * images))
    requests = bench.api.take_counts().requests
    found = len(list(bench.settings.output(name).rglob("*.jp*g")))
    submitted = requests.get("generate", 0)
    if not images == found == submitted:
        raise CannotGoOnError(
            f"{name} should have drawn {images} images, but submitted {submitted} and stored {found}. The results "
            "cannot be compared; fix this first."
        )
    return usage, requests


def _result(usage: RunUsage, requests: dict[str, int], idle: Sequence[float]) -> Result:
    before, after = idle
    return Result(
        wall_seconds=usage.wall_seconds,
        cpu_seconds=usage.cpu_seconds - (before + after) / 2 * usage.measured_seconds,
        cpu_uncertainty=abs(after - before) / 2 * usage.measured_seconds,
        process_starts=usage.process_starts,
        false_crashes=usage.false_crashes,
        requests=requests,
    )


def _draw_without_airflow(bench: Bench) -> RunUsage:
    settings = bench.settings
    requests = Path(settings.folder) / "bare.jsonl"
    requests.parent.mkdir(parents=True, exist_ok=True)
    write_requests(requests, settings.image_requests("bare"))
    command = [sys.executable, "-m", "benchmarks.bare_script", str(requests), str(settings.output("bare"))]
    command += ["--url", bench.api.url, "--in-flight", str(settings.in_flight)]
    command += ["--poll-interval", str(settings.poll_interval)]
    environment = os.environ | COMPILED | {"QWENIMAGE_API_KEY": bench.api.api_key}
    began = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, check=True)
    usage = json.loads(done.stdout)
    # The interpreter and the imports are included, as with Airflow's tasks.
    wall = time.monotonic() - began
    return RunUsage(wall, usage["start_cpu_seconds"] + usage["cpu_seconds"], wall, 1, 0)


def _cells(result: Result, images: int, title: str, stock: Result | None) -> list[str]:
    return [
        title,
        f"{result.cpu_seconds / stock.cpu_seconds:.3f}" if stock else "-",
        f"{result.cpu_seconds:.1f}",
        f"±{result.cpu_uncertainty:.1f}",
        f"{result.cpu_seconds / images:.2f}",
        f"{result.wall_seconds:.0f}",
        str(result.process_starts),
        str(result.false_crashes),
        str(sum(result.requests.values())),
        str(result.requests.get("status", 0)),
    ]


if __name__ == "__main__":
    sys.exit(main())
