"""Compare the batch operator with a bare script: `make bench-batch`, or `python -m benchmarks.batches --help`."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from types import MappingProxyType

from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from airflow_provider_qwenimage.contract import CREDITS_PER_IMAGE
from benchmarks.image_requests import image_requests, write_requests
from benchmarks.painted_once import PaintedOnceSandbox
from benchmarks.sandbox_process import ROOT
from benchmarks.settings import COMPILED, Settings, settings_in_environment
from benchmarks.tables import machine, table
from benchmarks.usage import Usage
from scripts.local_airflow import CannotGoOnError, run_to_the_end
from scripts.progress import Progress
from tests.databases.postgres import Postgres
from tests.databases.server import Database

_MIB = 1024 * 1024
_MOST_WALL = 1.1
_MOST_CPU = 1.5
_MOST_CPU_OF_BOOKS = 1.15
_MOST_SHARE_OF_MARKS = 0.03
# A process that uses more than this share of a core limits the wall time.
_BUSY = 0.8
_NAMES = ("the batch operator", "the bare script")
_HEADER = (
    "images",
    *("wall ratio", "CPU ratio"),
    *("wall s", "bare wall s"),
    *("CPU s", "bare CPU s"),
    *("peak MiB", "bare peak MiB"),
    *("requests", "bare requests"),
)


@dataclass(frozen=True)
class Result:
    """The usage of one contestant for a number of images.

    Attributes:
        usage: The usage of its process.
        requests: The number of requests that it sent.
        sandbox_share: The share of a core that the sandbox used in that time.
        marks_cpu_seconds: Of the operator, the CPU time for the marks of its images.
    """

    usage: Usage
    requests: int
    sandbox_share: float
    marks_cpu_seconds: float = 0.0


_COMPARED = ("rounds", "CPU ratio", "CPU s", "CPU s without", "wall ratio", "CPU ratio of each round")
_BOOKS_HEADER = ("images", *_COMPARED)
_PUBLISHING_HEADER = ("images", "with", *_COMPARED)
# The first is what the others are compared with.
_PUBLISHING = {
    "neither": settings_in_environment(provenance="", contact_sheet=False),
    "marks": settings_in_environment(provenance="mark", contact_sheet=False),
    "marks and a contact sheet": settings_in_environment(provenance="mark", contact_sheet=True),
}

Pair = tuple[Result, Result]


def main() -> int:
    """Run the comparison, and return the exit code."""
    arguments = _read_arguments()
    return run_to_the_end(lambda: _run(arguments))


def _read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.batches",
        description="Draw images in the sandbox with QwenImageBatchOperator and with a bare asyncio script, with equal "
        "concurrency, and compare time, CPU time and memory. 1,000 images take about two minutes with each of them.",
    )
    parser.add_argument(
        "--images", type=int, nargs="+", default=[100, 1000], help="number of images of each run (default: 100 1000)"
    )
    parser.add_argument("--in-flight", type=int, default=16, help="images at the same time (default: 16)")
    parser.add_argument("--seconds-per-image", type=float, default=1.0, help="how long an image takes (default: 1)")
    parser.add_argument("--poll-interval", type=float, default=1.0, help="seconds between polls (default: 1)")
    parser.add_argument("--size", default="1024*1024", help="width times height (default: 1024*1024)")
    parser.add_argument(
        "--books",
        action="store_true",
        help="compare the operator with books and a budget, on a temporary PostgreSQL server, with it without",
    )
    parser.add_argument(
        "--publishing",
        action="store_true",
        help="compare the operator with marks in the files of the images, and with a contact sheet as well, with it "
        "without",
    )
    parser.add_argument(
        "--rounds", type=int, default=5, help="rounds of --books and --publishing, whose medians count (default: 5)"
    )
    return parser.parse_args()


def _run(arguments: argparse.Namespace) -> None:
    progress = Progress(sys.stderr)
    folder = Path(tempfile.mkdtemp(prefix="qwenimage-benchmark-"))
    try:
        with PaintedOnceSandbox(seconds_per_image=arguments.seconds_per_image) as api:
            contest = _Contest(folder, api, arguments)
            with progress.step("Creating Airflow's database"):
                contest.prepare()
            if arguments.books:
                _compare_books(contest, arguments, progress)
                return
            if arguments.publishing:
                _compare_publishing(contest, arguments, progress)
                return
            pairs: dict[int, Pair] = {}
            for images in arguments.images:
                with progress.step(f"{images} images with the bare script"):
                    bare = contest.draw("bare", images)
                with progress.step(f"{images} images with QwenImageBatchOperator"):
                    pairs[images] = contest.draw("batch", images), bare
        print(f"\n{table(_HEADER, [_cells(images, *pair) for images, pair in pairs.items()])}\n")
        print("\n".join(_sentences(pairs, arguments)))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _compare_books(contest: _Contest, arguments: argparse.Namespace, progress: Progress) -> None:
    """Print what the books add to a batch: each round draws as many images with books and without."""
    rows, ratios = [], []
    with Postgres() as server:
        for images in arguments.images:
            with_books: list[Result] = []
            without: list[Result] = []
            for number in range(1, arguments.rounds + 1):
                database = server.new_database()
                variants = [(without, {}), (with_books, contest.books_in(database))]
                with progress.step(f"{images} images, with books and without, round {number} of {arguments.rounds}"):
                    _draw_round(contest, images, variants, number)
                _check_books(database, images)
            rows.append([f"{images:,}", *_compared_cells(with_books, without)])
            ratios.append(_cpu_ratio(with_books, without))
    print(f"\n{table(_BOOKS_HEADER, rows)}\n")
    print(machine())
    print(_medians(arguments))
    print(f"Goal, with {arguments.images[-1]:,} images:")
    print(_goal(f"  CPU at most {_MOST_CPU_OF_BOOKS:g} times that without books", ratios[-1], _MOST_CPU_OF_BOOKS))


def _compare_publishing(contest: _Contest, arguments: argparse.Namespace, progress: Progress) -> None:
    """Print what marks and a contact sheet add to a batch: each round draws as many images with and without them."""
    rows = []
    for images in arguments.images:
        results: dict[str, list[Result]] = {name: [] for name in _PUBLISHING}
        for number in range(1, arguments.rounds + 1):
            with progress.step(f"{images} images, in {len(results)} ways, round {number} of {arguments.rounds}"):
                variants = [(results[name], settings) for name, settings in _PUBLISHING.items()]
                _draw_round(contest, images, variants, number)
        plain, *others = results
        rows += [[f"{images:,}", name, *_compared_cells(results[name], results[plain])] for name in others]
    shares = [result.marks_cpu_seconds / result.usage.cpu_seconds for result in results["marks"]]
    print(f"\n{table(_PUBLISHING_HEADER, rows)}\n")
    print(machine())
    print(_medians(arguments))
    print("The marks and the second SHA-256 of each image, measured in the threads that make them:")
    print(f"  {', '.join(f'{share:.1%}' for share in shares)} of the batch's CPU in each round.")
    print(f"Goal, with {arguments.images[-1]:,} images:")
    met = "met" if median(shares) <= _MOST_SHARE_OF_MARKS else "MISSED"
    print(f"  at most {_MOST_SHARE_OF_MARKS:.0%} of the batch's CPU: {met} ({median(shares):.1%}).")


def _draw_round(
    contest: _Contest, images: int, variants: Sequence[tuple[list[Result], Mapping[str, str]]], number: int
) -> None:
    """Draw with each variant; another one goes first in each round: what a machine has just done changes its speed."""
    first = number % len(variants)
    for results, environment in [*variants[first:], *variants[:first]]:
        results.append(contest.draw("batch", images, environment))


def _medians(arguments: argparse.Namespace) -> str:
    return f"Medians; {arguments.in_flight} images in flight, {arguments.seconds_per_image:g} s per image."


def _check_books(database: Database, images: int) -> None:
    engine = create_engine(database.url, poolclass=NullPool)
    with engine.connect() as connection:
        done = connection.execute(text("SELECT COUNT(*) FROM qwenimage_submissions WHERE status = 'done'")).scalar()
        used = connection.execute(text("SELECT DISTINCT credits FROM qwenimage_budgets")).scalars().all()
    if done != images or [float(one) for one in used] != [images * CREDITS_PER_IMAGE]:
        raise CannotGoOnError(f"The books should have {images} images, but have {done}, and {used} credits.")


def _cpu_ratio(results: Sequence[Result], others: Sequence[Result]) -> float:
    return median(_cpu_ratios(results, others))


def _cpu_ratios(results: Sequence[Result], others: Sequence[Result]) -> list[float]:
    return [one.usage.cpu_seconds / other.usage.cpu_seconds for one, other in zip(results, others, strict=True)]


def _compared_cells(results: Sequence[Result], others: Sequence[Result]) -> list[str]:
    walls = [one.usage.wall_seconds / other.usage.wall_seconds for one, other in zip(results, others, strict=True)]
    return [
        f"{len(results)}",
        f"{_cpu_ratio(results, others):.2f}",
        *(f"{median(one.usage.cpu_seconds for one in each):.2f}" for each in (results, others)),
        f"{median(walls):.2f}",
        " ".join(f"{ratio:.2f}" for ratio in _cpu_ratios(results, others)),
    ]


class _Contest:
    def __init__(self, folder: Path, api: PaintedOnceSandbox, arguments: argparse.Namespace) -> None:
        self._folder = folder
        self._home = folder / "airflow"
        self._api = api
        self._arguments = arguments
        ours = ("AIRFLOW", "_AIRFLOW", "QWENIMAGE_", "PYTHONPATH")
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)} | {
            **COMPILED,
            "PYTHONPATH": str(ROOT),
            "AIRFLOW_HOME": str(self._home),
            "AIRFLOW__CORE__DAGS_FOLDER": str(self._home / "dags"),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
            "AIRFLOW_CONN_QWENIMAGE_DEFAULT": api.connection_json,
            "QWENIMAGE_API_KEY": api.api_key,
        }

    def prepare(self) -> None:
        """Create the Airflow home that `dag.test()` needs."""
        dags = self._home / "dags"
        dags.mkdir(parents=True)
        shutil.copy(Path(__file__).with_name("batch_task.py"), dags)
        self._call([sys.executable, "-m", "airflow", "db", "migrate"], {})

    def draw(self, contestant: str, images: int, environment: Mapping[str, str] = MappingProxyType({})) -> Result:
        """Let a contestant draw images with prompts that no other contestant uses.

        Args:
            contestant: "bare" or "batch".
            images: How many images.
            environment: Environment variables for the operator's process only.
        """
        arguments, folder = self._arguments, self._folder / f"{contestant}-{images}"
        folder.mkdir()
        requests = folder / "requests.jsonl"
        write_requests(requests, image_requests(contestant, images, arguments.size))
        settings = Settings(
            images=images,
            in_flight=arguments.in_flight,
            poll_interval=arguments.poll_interval,
            folder=str(folder),
        )
        self._api.take_counts()
        sandbox_began = self._api.cpu_seconds()
        if contestant == "bare":
            command = [sys.executable, "-m", "benchmarks.bare_script", str(requests), str(settings.output("bare"))]
            command += ["--url", self._api.url, "--in-flight", str(arguments.in_flight)]
            usage = json.loads(self._call([*command, "--poll-interval", str(arguments.poll_interval)], {}))
        else:
            command = [sys.executable, str(self._home / "dags" / "batch_task.py")]
            self._call(command, settings.to_environment() | dict(environment))
            usage = json.loads((folder / "usage.json").read_text())
        sandbox_used = self._api.cpu_seconds() - sandbox_began
        sent = self._api.take_counts().requests
        stored = settings.output(contestant).rglob("*.jp*g")
        found = sum(not file.name.startswith("contact-sheet") for file in stored)
        submitted = sent.get("generate", 0)
        if not images == found == submitted:
            raise CannotGoOnError(
                f"{contestant} should have drawn {images} images, but submitted {submitted} and stored {found}. "
                "The results cannot be compared; fix this first."
            )
        marks = folder / "marks.json"
        marks_cpu_seconds = json.loads(marks.read_text()) if marks.exists() else 0.0
        shutil.rmtree(folder)
        sandbox_share = sandbox_used / max(usage["wall_seconds"], sandbox_used)
        return Result(Usage(**usage), sum(sent.values()), sandbox_share, marks_cpu_seconds)

    def books_in(self, database: Database) -> dict[str, str]:
        """Return the environment in which the operator keeps books."""
        extra = {"books_conn_id": "books", "credits_per_day": 10**6, "credits_per_month": 10**7}
        return {
            "AIRFLOW_CONN_BOOKS": database.connection_json(),
            "AIRFLOW_CONN_QWENIMAGE_DEFAULT": json.dumps(json.loads(self._api.connection_json) | {"extra": extra}),
        }

    def _call(self, command: list[str], environment: dict[str, str]) -> str:
        done = subprocess.run(
            command,
            cwd=self._folder,
            env=self._environment | environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise CannotGoOnError(f"{' '.join(command)} failed:\n{done.stdout[-4000:]}{done.stderr[-4000:]}")
        return done.stdout


def _cells(images: int, batch: Result, bare: Result) -> list[str]:
    return [
        f"{images:,}",
        f"{batch.usage.wall_seconds / bare.usage.wall_seconds:.2f}",
        f"{batch.usage.cpu_seconds / bare.usage.cpu_seconds:.2f}",
        *(f"{result.usage.wall_seconds:.1f}" for result in (batch, bare)),
        *(f"{result.usage.cpu_seconds:.2f}" for result in (batch, bare)),
        *(f"{result.usage.peak_bytes / _MIB:.0f}" for result in (batch, bare)),
        *(f"{result.requests:,}" for result in (batch, bare)),
    ]


def _sentences(pairs: dict[int, Pair], arguments: argparse.Namespace) -> list[str]:
    most = max(pairs)
    batch, bare = (result.usage for result in pairs[most])
    pace = f"{arguments.seconds_per_image:g} s per image, polls every {arguments.poll_interval:g} s at first"
    sentences = [
        machine(),
        f"Each in its own process; {arguments.in_flight} images in flight, {pace}.",
        "The work is measured: the operator's execute, with its imports, and the script's main. Before it:",
        *(f"  {_start(name, [pair[index] for pair in pairs.values()])}" for index, name in enumerate(_NAMES)),
        *(f"{images:,} images: {_bottleneck(*pair)}" for images, pair in pairs.items()),
        f"Goals, with {most:,} images:",
        _goal(f"  wall at most {_MOST_WALL:g} times the script's", batch.wall_seconds / bare.wall_seconds, _MOST_WALL),
        _goal(f"  CPU at most {_MOST_CPU:g} times the script's", batch.cpu_seconds / bare.cpu_seconds, _MOST_CPU),
    ]
    if len(pairs) > 1:
        sentences += [_growth(name, pairs, index) for index, name in enumerate(_NAMES)]
    return sentences


def _start(name: str, results: Sequence[Result]) -> str:
    usages = [result.usage for result in results]
    seconds = sum(usage.start_cpu_seconds for usage in usages) / len(usages)
    used = sum(usage.start_bytes for usage in usages) / len(usages)
    return f"the process of {name} used {seconds:.1f} CPU s and {used / _MIB:.0f} MiB."


def _bottleneck(batch: Result, bare: Result) -> str:
    def share(result: Result) -> float:
        return result.usage.cpu_seconds / result.usage.wall_seconds

    shares = (
        f"the batch operator used {share(batch):.0%} of a core, the bare script {share(bare):.0%}, the sandbox "
        f"{batch.sandbox_share:.0%} and {bare.sandbox_share:.0%}"
    )
    if max(batch.sandbox_share, bare.sandbox_share) > _BUSY:
        return f"{shares}: the sandbox limited the wall time, so the wall ratio means little."
    if max(share(batch), share(bare)) > _BUSY:
        return f"{shares}: the busy one was limited by its own CPU time."
    return f"{shares}: the API's speed limited the wall time."


def _goal(text: str, value: float, most: float) -> str:
    return f"{text}: {'met' if value <= most else 'MISSED'} ({value:.2f})."


def _growth(name: str, pairs: dict[int, Pair], index: int) -> str:
    (fewest, first), *_, (most, last) = ((images, pair[index].usage) for images, pair in sorted(pairs.items()))
    grown = (last.peak_bytes - first.peak_bytes) / _MIB
    return (
        f"Peak memory of {name} from {fewest:,} to {most:,} images: {grown:+.0f} MiB, "
        f"{grown * 1024 / (most - fewest):+.1f} KiB per image."
    )


if __name__ == "__main__":
    sys.exit(main())
