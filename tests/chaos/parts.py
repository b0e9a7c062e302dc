"""The parts of `make chaos`, each with its DAGs, its sandboxes and its report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from airflow_provider_qwenimage.sandbox import Sandbox
from tests.chaos import batch, batch_ending, clearing, crash, faults, full_disk, sharing, stages
from tests.chaos.aftermath import clear_unknown, run_again
from tests.chaos.judge import total
from tests.chaos.scene import Scene
from tests.chaos.tables import table
from tests.chaos.tasks import Dag

_HEADER = ("killed", "kills", "resumed", "stopped as unknown", "paid twice", "lost")


class Part(Protocol):
    """A part of the test, which runs in an Airflow with its DAGs and connections to its sandboxes.

    Attributes:
        apis: Its sandboxes by connection id.
    """

    dags: Sequence[Dag]
    apis: Mapping[str, Sandbox]

    def run(self, scene: Scene) -> str:
        """Run the part, add everything that is wrong to the scene's complaints, and return the report to print."""


class Crash:
    """Kills of tasks at every stage and at random moments, and of the triggerer.

    Args:
        seed: The seed of the random moments.
        quick: Fewer tasks and kills.
    """

    def __init__(self, *, seed: int, quick: bool) -> None:
        self._seed = seed
        self._quick = quick
        self._stages = stages.all_stages(quick=quick)
        self._waiting = stages.triggerer_dag(quick=quick)
        self._randoms = stages.random_dags(quick=quick)
        self._cleared = clearing.cleared_dag(quick=quick)
        self.dags: Sequence[Dag] = [
            *(stage.dag for stage in self._stages),
            self._waiting,
            *self._randoms,
            self._cleared,
        ]
        self.apis: Mapping[str, Sandbox] = stages.apis(self._stages) | {clearing.CONN_ID: clearing.late_api()}

    def run(self, scene: Scene) -> str:
        """Kill tasks and the triggerer, clear tasks that stopped as unknown or that submit, and rerun a DAG run."""
        seed, quick = self._seed, self._quick
        rows = crash.kill_at_stages(scene, self._stages)
        rows.append(crash.kill_triggerer(scene, self._waiting, 1 if quick else 10, seed=seed))
        row, random_drawings = crash.kill_at_random(
            scene,
            self._randoms,
            8 if quick else 100,
            most_per_task=2 if quick else 4,
            at_first=1 if quick else 3,
            seed=seed,
        )
        rows.append(row)
        drawings = [drawing for stage in self._stages for drawing in stage.dag.drawings]
        sentences = [
            crash.count_before_and_after_submission(scene, random_drawings),
            clear_unknown(scene, [*drawings, *self._waiting.drawings, *random_drawings]),
            run_again(scene, stages.finished_dag(self._stages).drawings),
            clearing.clear_while_submitting(scene, self._cleared),
        ]
        return "\n".join([table(_HEADER, [row.cells for row in rows], total=total(rows).cells), "", *sentences])


class Faults:
    """Hundreds of images while one request in five gets a fault, and some while status reads are refused.

    Args:
        seed: The seed of the faults.
        quick: Fewer images.
    """

    def __init__(self, *, seed: int, quick: bool) -> None:
        self._dags = faults.fault_dags(quick=quick)
        self._blips = faults.blip_dags(quick=quick)
        self.dags: Sequence[Dag] = [*self._dags, *self._blips]
        self.apis: Mapping[str, Sandbox] = {
            faults.CONN_ID: faults.faulty_api(seed),
            faults.BLIPS_CONN_ID: faults.forgetful_api(seed),
        }

    def run(self, scene: Scene) -> str:
        """Draw the images."""
        result = faults.draw_through_faults(scene, self._dags)
        blips = faults.draw_through_faults(scene, self._blips, "refused status reads")
        return "\n\n".join(
            (
                table(("with one fault in five requests", "number"), result.rows),
                table(("with refused status reads (401, 403, 404)", "number"), blips.rows),
            )
        )


class Batch:
    """A task of many images that is killed repeatedly, one that is marked as failed, and one whose disk is full.

    Args:
        seed: The seed of the random moments.
        quick: Fewer images and kills.
    """

    def __init__(self, *, seed: int, quick: bool) -> None:
        self._seed = seed
        self._quick = quick
        self._killed = batch.killed_dag(quick=quick)
        self._ended = batch_ending.ended_dag()
        self._full_disk = full_disk.full_disk_dag()
        self.dags: Sequence[Dag] = [self._killed, self._ended, self._full_disk]
        self.apis: Mapping[str, Sandbox] = {
            self._killed.dag_id: batch.slow_api(),
            self._ended.dag_id: batch_ending.slower_api(),
            self._full_disk.dag_id: full_disk.late_api(),
        }

    def run(self, scene: Scene) -> str:
        """Kill the first batch repeatedly, mark the second as failed, and fill the disk of the third."""
        kills, late_kills = (3, 1) if self._quick else (20, 2)
        result = batch.kill_batch(scene, self._killed, kills=kills, late_kills=late_kills, seed=self._seed)
        sentences = [batch_ending.end_batch(scene, self._ended), full_disk.fill_disk(scene, self._full_disk)]
        return "\n".join([table(("batch that is killed while it draws", "number"), result.rows), "", *sentences])


class Runs:
    """Two runs that draw the same images into one folder at once.

    Args:
        seed: Not used: the moments of the kills depend on the submissions.
        quick: Fewer images and kills.
    """

    def __init__(self, *, seed: int, quick: bool) -> None:
        self._kills = 1 if quick else 4
        self._dag = sharing.SharingDag("sharing", images=12 if quick else 60)
        self.dags: Sequence[Dag] = [self._dag]
        self.apis: Mapping[str, Sandbox] = {self._dag.dag_id: sharing.shared_api()}

    def run(self, scene: Scene) -> str:
        """Start the runs, and kill the batch of each of them."""
        return sharing.run_at_once(scene, self._dag, kills=self._kills)


class _MakePart(Protocol):
    def __call__(self, *, seed: int, quick: bool) -> Part: ...


PARTS: Mapping[str, _MakePart] = {"crash": Crash, "faults": Faults, "batch": Batch, "runs": Runs}
