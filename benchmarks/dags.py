"""Compares the ways to draw many images in a DAG: `make bench-dag`, or `python -m benchmarks.dags --help`."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from benchmarks.measured_airflow import MeasuredAirflow, RunUsage
from benchmarks.orders import write_orders
from benchmarks.sandbox_process import ROOT, SandboxProcess
from benchmarks.settings import COMPILED, Settings
from benchmarks.tables import machine, table
from scripts.local_airflow import CannotGoOnError
from scripts.progress import Progress
from tests.chaos.database import Postgres, run_on_postgres

CONTESTANTS = {
    "stock": "HttpOperator, HttpSensor (reschedule), @task",
    "pair": "QwenImageGenerateOperator, QwenImageStatusSensor, @task",
    "mapped": "QwenImageGenerateOperator, mapped, deferrable",
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
    *("CPU ratio", "CPU s", "doubt", "CPU s/image"),
    *("wall s", "process starts", "mistaken crashes", "API requests", "of them status"),
)


@dataclass(frozen=True)
class Result:
    """What a contestant has used, and what it has sent.

    Attributes:
        wall_seconds: From the trigger to the end.
        cpu_seconds: What it has used above what Airflow uses while nothing runs.
        cpu_doubt: By how much that may be wrong, because Airflow did not use the same before it and after it.
        process_starts: How many task processes it took.
        mistaken_crashes: How many of its tasks the scheduler took for crashed by mistake.
        requests: Its requests by route.
    """

    wall_seconds: float
    cpu_seconds: float
    cpu_doubt: float
    process_starts: int
    mistaken_crashes: int
    requests: dict[str, int]


@dataclass(frozen=True)
class Scene:
    """What runs, and how it is to be used."""

    airflow: MeasuredAirflow
    api: SandboxProcess
    settings: Settings
    progress: Progress


def main() -> int:
    """Run what was asked for, and return the exit code."""
    arguments = _read_arguments()
    return run_on_postgres(lambda postgres: (_check if arguments.check else _compare)(arguments, postgres))


def _read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.dags",
        description="Draws images in the sandbox with a real Airflow, in several ways one after the other, and "
        "compares CPU time, wall time, process starts and API requests. Takes some ten minutes; needs "
        "PostgreSQL's server programs.",
        epilog="ways: " + "; ".join(f"{name} = {text}" for name, text in CONTESTANTS.items()),
    )
    parser.add_argument("--images", type=int, default=50, help="images for each way (default: 50)")
    parser.add_argument("--only", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS), help="only these ways")
    parser.add_argument("--seconds-per-image", type=float, default=10.0, help="how long one is drawn (default: 10)")
    parser.add_argument("--poll-interval", type=float, default=5.0, help="seconds between polls (default: 5)")
    parser.add_argument("--in-flight", type=int, default=16, help="images at the same time: batch, bare (default: 16)")
    parser.add_argument(
        "--idle-seconds", type=float, default=25.0, help="how long to measure the idle Airflow, each time (default: 25)"
    )
    parser.add_argument("--check", action="store_true", help="check the counting with tasks that burn a known CPU time")
    return parser.parse_args()


def _check(arguments: argparse.Namespace, postgres: Postgres) -> None:
    """See whether tasks that burn a known CPU time, and the processes that they start, are counted."""
    with _scene(arguments, postgres, [_BURN]) as scene:
        idle = _measure_idle(scene, arguments.idle_seconds)
        found = []
        # The first run imports and forks what later ones find there.
        for seconds in (0.0, 0.0, _BURNT_SECONDS):
            with scene.progress.step(f"A task that burns {seconds:g} CPU seconds"):
                usage = scene.airflow.measure_run(_BURN, {"seconds": seconds}, _LEAST_SECONDS)
            found.append(usage.cpu_seconds - idle * usage.measured_seconds)
    counted = found[-1] - found[-2]
    print(f"Burnt {_BURNT_SECONDS:.2f} CPU s, counted {counted:.2f}; a task that burns nothing takes {found[-2]:.2f}.")
    if abs(counted - _BURNT_SECONDS) > _MOST_BURN_ERROR:
        raise CannotGoOnError("The counting is wrong, or the machine is too busy: try again on an idle one.")


def _compare(arguments: argparse.Namespace, postgres: Postgres) -> None:
    began = time.monotonic()
    chosen = [name for name in CONTESTANTS if name in arguments.only]
    if "stock" in chosen and find_spec("airflow.providers.http") is None:
        raise CannotGoOnError(
            "The stock DAG needs Airflow's HTTP provider. Install it (pip install apache-airflow-providers-http), or "
            "name the other ways with --only."
        )
    with _scene(arguments, postgres, [_BURN, *(name for name in chosen if name != "bare")]) as scene:
        with scene.progress.step("Running a task that does nothing, so that nobody's is the first"):
            scene.airflow.measure_run(_BURN, {"seconds": 0.0}, _LEAST_SECONDS)
        results = {}
        idle = [_measure_idle(scene, arguments.idle_seconds)]
        for name in chosen:
            with scene.progress.step(f"{arguments.images} images: {CONTESTANTS[name]}"):
                usage, requests = _draw(scene, name)
            if name != "bare":
                idle.append(_measure_idle(scene, arguments.idle_seconds))
            results[name] = _result(usage, requests, (0.0, 0.0) if name == "bare" else idle[-2:])
    rows = [
        _cells(result, arguments.images, CONTESTANTS[name], results.get("stock")) for name, result in results.items()
    ]
    print(f"\n{table(_HEADER, rows)}\n")
    print(machine())
    print(
        f"{arguments.images} images for each way, {arguments.seconds_per_image:g} s to draw one. CPU time of all of "
        f"Airflow's processes, without the database and the sandbox, above what they use while nothing runs: "
        f"{min(idle):.3f} to {max(idle):.3f} CPU s each second, measured before and after each way. Took "
        f"{time.monotonic() - began:.0f} s."
    )


@contextmanager
def _scene(arguments: argparse.Namespace, postgres: Postgres, dags: Sequence[str]) -> Iterator[Scene]:
    folder = Path(tempfile.mkdtemp(prefix="qwenimage-benchmark-"))
    progress = Progress(sys.stderr)
    keep = False
    try:
        with ExitStack() as stack:
            with progress.step("Starting PostgreSQL, the sandbox and Airflow"):
                stack.enter_context(postgres)
                api = stack.enter_context(SandboxProcess(seconds_per_image=arguments.seconds_per_image))
                settings = Settings(
                    images=arguments.images,
                    in_flight=arguments.in_flight,
                    poll_interval=arguments.poll_interval,
                    folder=str(folder / "images"),
                )
                home = folder / "airflow"
                home.mkdir()
                airflow = MeasuredAirflow(home, postgres.url, settings)
                stack.callback(airflow.stop)
                airflow.add_dags(dags)
                airflow.prepare(json.dumps(_connections(api)))
                airflow.start(*dags)
                # What is left to do of the start must not be taken for what an idle Airflow does.
                time.sleep(_SETTLE_SECONDS)
            yield Scene(airflow, api, settings, progress)
    except (AssertionError, CannotGoOnError) as error:
        keep = True
        raise CannotGoOnError(f"{error}\nAirflow's logs and the images are in {folder}") from error
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)


def _connections(api: SandboxProcess) -> dict[str, dict[str, str]]:
    header = json.dumps({"Authorization": f"Bearer {api.api_key}"})
    return {
        "qwenimage_default": json.loads(api.connection_json),
        "qwenimage_http": {"conn_type": "http", "host": api.url, "extra": header},
    }


def _measure_idle(scene: Scene, seconds: float) -> float:
    with scene.progress.step("Measuring the idle Airflow"):
        rate = scene.airflow.measure_idle(seconds)
        scene.progress.update(f"Measuring the idle Airflow: {rate:.3f} CPU s each second")
    return rate


def _draw(scene: Scene, name: str) -> tuple[RunUsage, dict[str, int]]:
    images = scene.settings.images
    scene.api.take_counts()
    if name == "bare":
        usage = _draw_without_airflow(scene)
    else:
        usage = scene.airflow.measure_run(name, {}, max(_LEAST_SECONDS, _SECONDS_FOR_EACH_IMAGE * images))
    requests = scene.api.take_counts().requests
    found = len(list(scene.settings.output(name).rglob("*.jp*g")))
    submitted = requests.get("generate", 0)
    if not images == found == submitted:
        raise CannotGoOnError(
            f"{name} was to draw {images} images, submitted {submitted} and stored {found}. Numbers of "
            "unequal work are worth nothing; correct that first."
        )
    return usage, requests


def _result(usage: RunUsage, requests: dict[str, int], idle: Sequence[float]) -> Result:
    before, after = idle
    return Result(
        wall_seconds=usage.wall_seconds,
        cpu_seconds=usage.cpu_seconds - (before + after) / 2 * usage.measured_seconds,
        cpu_doubt=abs(after - before) / 2 * usage.measured_seconds,
        process_starts=usage.process_starts,
        mistaken_crashes=usage.mistaken_crashes,
        requests=requests,
    )


def _draw_without_airflow(scene: Scene) -> RunUsage:
    settings = scene.settings
    requests = Path(settings.folder) / "bare.jsonl"
    requests.parent.mkdir(parents=True, exist_ok=True)
    write_orders(requests, settings.orders("bare"))
    command = [sys.executable, "-m", "benchmarks.bare_script", str(requests), str(settings.output("bare"))]
    command += ["--url", scene.api.url, "--in-flight", str(settings.in_flight)]
    command += ["--poll-interval", str(settings.poll_interval)]
    environment = os.environ | COMPILED | {"QWENIMAGE_API_KEY": scene.api.api_key}
    began = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, check=True)
    said = json.loads(done.stdout)
    # The whole of it, as with Airflow's tasks: the interpreter and the imports as well.
    wall = time.monotonic() - began
    return RunUsage(wall, said["start_cpu_seconds"] + said["cpu_seconds"], wall, 1, 0)


def _cells(result: Result, images: int, title: str, stock: Result | None) -> list[str]:
    return [
        title,
        f"{result.cpu_seconds / stock.cpu_seconds:.3f}" if stock else "-",
        f"{result.cpu_seconds:.1f}",
        f"±{result.cpu_doubt:.1f}",
        f"{result.cpu_seconds / images:.2f}",
        f"{result.wall_seconds:.0f}",
        str(result.process_starts),
        str(result.mistaken_crashes),
        str(sum(result.requests.values())),
        str(result.requests.get("status", 0)),
    ]


if __name__ == "__main__":
    sys.exit(main())
