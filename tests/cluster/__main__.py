"""Run the distributed test: `make cluster-test`, or `python -m tests.cluster --help`."""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from scripts.local_airflow import CannotGoOnError, run_to_the_end
from scripts.progress import Progress
from tests.chaos import books_evidence
from tests.chaos.outages import Outages
from tests.cluster.composition import Composition
from tests.cluster.disturbances import Disturbances
from tests.cluster.evidence import Books
from tests.cluster.metadata import Metadata
from tests.cluster.polls import ConnectionWatch
from tests.cluster.scene import Scene
from tests.cluster.workload import Workload
from tests.databases.postgres import Postgres
from tests.databases.server import Database

_FULL = Workload(images=300, shared=60, waits=90, too_slow=10)
_QUICK = Workload(images=40, shared=10, waits=15, too_slow=3)
_DAGS = "/opt/airflow/dags"
_SECONDS_PER_IMAGE = 45
# The defaults are minutes; the test must see these timeouts pass.
_LIMITS = {
    "AIRFLOW__CORE__PARALLELISM": "16",
    "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "3600",
    "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "15",
    "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "20",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "30",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "5",
    "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT": "45",
    "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT_CHECK_INTERVAL": "10",
    "AIRFLOW__SCHEDULER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "10",
    "AIRFLOW__TRIGGERER__JOB_HEARTBEAT_SEC": "2",
    "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "10",
}


def main() -> int:
    """Run the test, and return the exit code."""
    arguments = _read_arguments()
    return run_to_the_end(lambda: _run(arguments.seed, quick=arguments.quick))


def _read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.cluster",
        description="Start the services of docker-compose.yaml as native processes, then kill and restart them while "
        "they draw 300 images and wait for 100 others. Takes about ten minutes and needs the server programs of "
        "PostgreSQL and Redis, which it starts on free ports.",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=int(os.environ.get("CLUSTER_SEED") or random.randrange(1_000_000)),
        help="the seed of the moments of the kills (default: $CLUSTER_SEED, or a random one)",
    )
    parser.add_argument("--quick", action="store_true", help="only a few tasks and kills, to check the test itself")
    return parser.parse_args()


def _run(seed: int, *, quick: bool) -> None:
    began = time.monotonic()
    workload, kills = (_QUICK, 1) if quick else (_FULL, 5)
    _print(f"Seed {seed}.")
    dags = Path(tempfile.mkdtemp(prefix="qwenimage-cluster-dags-"))
    progress = Progress()
    kept: Path | None = None
    try:
        with ExitStack() as stack:
            # A server of its own, which is killed and restarted all the time.
            database = stack.enter_context(Postgres()).new_database()
            composition = Composition(
                {"SANDBOX_SECONDS_PER_IMAGE": str(_SECONDS_PER_IMAGE)},
                overrides=_LIMITS | {f"AIRFLOW_CONN_{books_evidence.CONN_ID.upper()}": database.connection_json()},
                extra=books_evidence.OPTIONS,
                replaced={_DAGS: dags},
                on_progress=progress.update,
            )
            stack.enter_context(composition)
            try:
                _run_in(composition, workload, dags, database, kills=kills, seed=seed, stack=stack, progress=progress)
            except (AssertionError, CannotGoOnError) as error:
                kept = Path(tempfile.mkdtemp(prefix="qwenimage-cluster-"))
                for name in ("containers", "volumes/logs", "volumes/images"):
                    shutil.copytree(composition.folder / name, kept / name, symlinks=True)
                raise CannotGoOnError(f"{error}\nThe logs and the images are in {kept}") from error
    finally:
        shutil.rmtree(dags, ignore_errors=True)
    _print(f"Seed {seed}; {time.monotonic() - began:.0f} s.")


def _run_in(
    composition: Composition,
    workload: Workload,
    dags: Path,
    database: Database,
    *,
    kills: int,
    seed: int,
    stack: ExitStack,
    progress: Progress,
) -> None:
    workload.write_dags(dags, composition.environment("airflow-worker")["QWENIMAGE_OUTPUT_PATH"])
    with progress.step("Starting the services"):
        composition.start()
    metadata = Metadata(composition.secret("sql_alchemy_conn"))
    stack.callback(metadata.close)
    books = Books(composition.url("sandbox", 8512))
    watch = stack.enter_context(ConnectionWatch(books.port, composition.owner_of))
    disturbances = Disturbances(
        composition,
        metadata,
        seed=seed,
        kills=kills,
        pause=9.0,
        redis_restarts=3,
        sandbox_seconds=60.0,
        frozen_seconds=20.0,
        before_sandbox=books.collect,
        after_sandbox=books.configure_sandbox,
    )
    outages = Outages(database, seed=seed)
    scene = Scene(composition, metadata, books, watch, disturbances, database, outages, workload, progress)
    stack.callback(disturbances.stop)
    scene.start()
    disturbances.start()
    stack.enter_context(outages)
    scene.run_to_end()
    disturbances.stop()
    scene.clear_unknown()
    report, complaints = scene.report(kills)
    _print(f"\n{report}\n")
    if complaints:
        raise CannotGoOnError("FAILED:\n  " + "\n  ".join(complaints))


def _print(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
