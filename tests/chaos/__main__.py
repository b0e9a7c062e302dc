"""Runs the crash test and the fault test: `make chaos`, or `python -m tests.chaos --help`."""

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
from scripts.local_airflow import CannotGoOnError, run_to_the_end
from scripts.progress import Progress
from tests.chaos import crash, faults, stages
from tests.chaos.aftermath import clear_what_stopped, run_again
from tests.chaos.cluster import Cluster
from tests.chaos.database import Postgres, PostgresMissingError
from tests.chaos.drawings import DrawingDag
from tests.chaos.judge import total
from tests.chaos.scene import Scene
from tests.chaos.tables import table

_ROOT = Path(__file__).resolve().parents[2]
_MISSING = 2
_HEADER = ("killed", "kills", "resumed", "stopped as unknown", "paid twice", "lost")


def main() -> int:
    """Run what was asked for, and return the exit code."""
    arguments = _read_arguments()
    try:
        postgres = Postgres()
    except PostgresMissingError as error:
        sys.stderr.write(f"{error}\n")
        return _MISSING
    return run_to_the_end(lambda: _run(arguments, postgres))


def _read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos",
        description="Kills Airflow's processes while they draw images in the sandbox, and lets the sandbox misbehave: "
        "nothing may be paid twice and nothing lost. Takes some ten minutes; needs PostgreSQL's server programs.",
    )
    parser.add_argument("--only", choices=("crash", "faults"), help="only one of the two tests")
    parser.add_argument(
        "--seed",
        type=int,
        default=int(os.environ.get("CHAOS_SEED") or random.randrange(1_000_000)),
        help="what the random moments are drawn from (default: CHAOS_SEED, or a new one)",
    )
    parser.add_argument("--quick", action="store_true", help="a few tasks and kills, to see that it works")
    return parser.parse_args()


def _run(arguments: argparse.Namespace, postgres: Postgres) -> None:
    began = time.monotonic()
    crashes, faulty = arguments.only != "faults", arguments.only != "crash"
    chosen = stages.all_stages(quick=arguments.quick) if crashes else []
    waiting, randoms = stages.triggerer_dag(quick=arguments.quick), stages.random_dags(quick=arguments.quick)
    fault_dags = faults.fault_dags(quick=arguments.quick) if faulty else []
    dags = [*(stage.dag for stage in chosen), *((waiting, *randoms) if crashes else ()), *fault_dags]
    apis = stages.apis(chosen) if crashes else {}
    apis |= {faults.CONN_ID: faults.faulty_api(arguments.seed)} if faulty else {}
    _say(f"Seed {arguments.seed}.")
    with _scene(postgres, dags, apis) as scene:
        try:
            if crashes:
                _crash(scene, arguments, chosen, waiting, randoms)
            if faulty:
                result = faults.draw_through_faults(scene, fault_dags)
                _say(f"\n{table(('while one answer in five is a fault', 'number'), result.rows)}\n")
        except AssertionError as error:
            # What was waited for in vain may be explained by what was found before.
            scene.complaints.append(str(error))
        if scene.complaints:
            raise CannotGoOnError("FAILED:\n  " + "\n  ".join(scene.complaints))
    _say(f"Nothing was paid twice, nothing is lost. Seed {arguments.seed}; {time.monotonic() - began:.0f} s.")


def _crash(
    scene: Scene,
    arguments: argparse.Namespace,
    chosen: Sequence[stages.Stage],
    waiting: DrawingDag,
    randoms: Sequence[DrawingDag],
) -> None:
    seed, quick = arguments.seed, arguments.quick
    rows = crash.kill_at_stages(scene, chosen)
    rows.append(crash.kill_triggerer(scene, waiting, 2 if quick else 10, seed=seed))
    row, random_drawings = crash.kill_at_random(
        scene, randoms, 8 if quick else 100, at_first=1 if quick else 3, seed=seed
    )
    rows.append(row)
    drawings = [drawing for stage in chosen for drawing in stage.dag.drawings]
    sentences = [
        crash.where_they_hit(scene, random_drawings),
        clear_what_stopped(scene, [*drawings, *waiting.drawings, *random_drawings]),
        run_again(scene, stages.finished_dag(chosen).drawings),
    ]
    _say(f"\n{table(_HEADER, [row.cells for row in rows], total=total(rows).cells)}\n")
    _say("\n".join(sentences))


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


@contextmanager
def _scene(postgres: Postgres, dags: Sequence[DrawingDag], apis: dict[str, Sandbox]) -> Iterator[Scene]:
    """Start everything, and stop it at the end; the folder with the logs is kept where something is wrong."""
    folder = Path(tempfile.mkdtemp(prefix="qwenimage-chaos-"))
    progress = Progress()
    keep = False
    try:
        with ExitStack() as stack:
            with progress.step("Starting PostgreSQL, the sandboxes and Airflow"):
                stack.enter_context(postgres)
                for api in apis.values():
                    stack.enter_context(api)
                home, images, stops = (folder / name for name in ("airflow", "images", "checkpoints"))
                for path in (home, images, stops):
                    path.mkdir()
                cluster = Cluster(home, _ROOT, postgres.url, stops)
                stack.callback(cluster.stop)
                for dag in dags:
                    (cluster.dags / f"{dag.dag_id}.py").write_text(dag.file(f"file://{images}"))
                cluster.prepare(json.dumps({conn_id: _connection(api) for conn_id, api in apis.items()}))
                cluster.start(*(dag.dag_id for dag in dags))
            yield Scene(cluster, apis, images, stops, progress)
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
    return {
        "conn_type": "qwenimage",
        "host": api.url,
        "password": api.api_key,
        "extra": json.dumps({"timeout_seconds": api.settings.hang_seconds / 2}),
    }


if __name__ == "__main__":
    sys.exit(main())
