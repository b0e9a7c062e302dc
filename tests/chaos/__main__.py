"""Run the crash test, the fault test and the batch test: `make chaos`, or `python -m tests.chaos --help`."""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from airflow_provider_qwenimage.sandbox import Sandbox
from scripts.local_airflow import CannotGoOnError
from scripts.progress import Progress
from tests.chaos import books_evidence
from tests.chaos.cluster import Cluster
from tests.chaos.outages import Outages
from tests.chaos.parts import PARTS, Part
from tests.chaos.scene import Scene
from tests.databases.postgres import Postgres, run_on_postgres

_ROOT = Path(__file__).resolve().parents[2]
# A retry waits for twice as long, and ten seconds more, until it calls an earlier try's submission unknown.
_TIMEOUT_SECONDS = 6.0


def main() -> int:
    """Run the chosen tests, and return the exit code."""
    arguments = _read_arguments()
    return run_on_postgres(lambda postgres: _run(arguments, postgres))


def _read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos",
        description="Kill and clear Airflow's tasks while they draw images in the sandbox, fill their disk, and inject "
        "faults into the sandbox. No image may be paid twice, none may be lost, and the books, whose database is "
        "killed as well, must say what was charged. Takes about fifteen minutes and "
        "needs the server programs of PostgreSQL, and root to fill a disk.",
    )
    parser.add_argument("--only", choices=tuple(PARTS), help="run only this test")
    parser.add_argument(
        "--seed",
        type=int,
        default=int(os.environ.get("CHAOS_SEED") or random.randrange(1_000_000)),
        help="the seed of the random moments and faults (default: $CHAOS_SEED, or a random one)",
    )
    parser.add_argument("--quick", action="store_true", help="only a few tasks and kills, to check the test itself")
    return parser.parse_args()


def _run(arguments: argparse.Namespace, postgres: Postgres) -> None:
    began = time.monotonic()
    seed, names = arguments.seed, [arguments.only] if arguments.only else list(PARTS)
    parts = [PARTS[name](seed=seed, quick=arguments.quick) for name in names]
    _print(f"Seed {seed}.")
    with _scene(postgres, parts, seed) as scene:
        try:
            for part in parts:
                _print(f"\n{part.run(scene)}\n")
            _print(f"\n{scene.settle_books()}\n")
        except AssertionError as error:
            # The complaints found so far may explain why a wait timed out.
            scene.complaints.append(str(error))
        if scene.complaints:
            raise CannotGoOnError("FAILED:\n  " + "\n  ".join(scene.complaints))
    seconds = time.monotonic() - began
    _print(f"No image was paid twice, none was lost, and the books are right. Seed {seed}; {seconds:.0f} s.")


def _print(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


@contextmanager
def _scene(postgres: Postgres, parts: Sequence[Part], seed: int) -> Iterator[Scene]:
    """Start everything, and stop it at the end. The folder with the logs is kept if the test fails.

    The books have a server of their own, which is killed and restarted all the time.
    """
    dags = [dag for part in parts for dag in part.dags]
    apis = {conn_id: api for part in parts for conn_id, api in part.apis.items()}
    folder = Path(tempfile.mkdtemp(prefix="qwenimage-chaos-"))
    progress = Progress()
    keep = False
    try:
        with ExitStack() as stack:
            with progress.step("Starting PostgreSQL, the sandboxes and Airflow"):
                stack.enter_context(postgres)
                books = stack.enter_context(Postgres()).new_database()
                for api in apis.values():
                    stack.enter_context(api)
                home, images, checkpoints = (folder / name for name in ("airflow", "images", "checkpoints"))
                for path in (home, images, checkpoints):
                    path.mkdir()
                cluster = Cluster(home, _ROOT, postgres.url, checkpoints)
                stack.callback(cluster.stop)
                for dag in dags:
                    (cluster.dags / f"{dag.dag_id}.py").write_text(dag.file(f"file://{images}"))
                connections = {conn_id: _connection(api) for conn_id, api in apis.items()}
                cluster.prepare(json.dumps(connections | {books_evidence.CONN_ID: books.connection}))
                cluster.start(*(dag.dag_id for dag in dags))
                outages = stack.enter_context(Outages(books, seed=seed))
            yield Scene(cluster, apis, images, checkpoints, books, outages, progress)
    except (AssertionError, CannotGoOnError) as error:
        keep = True
        raise CannotGoOnError(f"{error}\nAirflow's logs and the images are in {folder}") from error
    except Exception:
        keep = True
        sys.stderr.write(f"Airflow's logs and the images are in {folder}\n")
        raise
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)


def _connection(api: Sandbox) -> dict[str, str]:
    # A hanging request should time out, unless every request hangs for a moment, or hangs until its task is killed.
    hang_seconds = api.settings.hang_seconds
    times_out = api.settings.hang_after_share < 1 and hang_seconds <= _TIMEOUT_SECONDS
    return {
        "conn_type": "qwenimage",
        "host": api.url,
        "password": api.api_key,
        "extra": json.dumps(
            {"timeout_seconds": hang_seconds / 2 if times_out else _TIMEOUT_SECONDS, **books_evidence.OPTIONS}
        ),
    }


if __name__ == "__main__":
    sys.exit(main())
