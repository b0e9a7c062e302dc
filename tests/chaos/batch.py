"""The batch part of the crash test: one task of many images, killed again and again while it draws."""

from __future__ import annotations

import math
import random
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from airflow_provider_qwenimage.contract import CREDITS_PER_IMAGE
from airflow_provider_qwenimage.sandbox import Sandbox
from tests.chaos.batch_dag import BatchDag
from tests.chaos.batch_evidence import accepted_ids, gather_batch, manifest_version, read_manifest
from tests.chaos.batch_judge import Key, unknown
from tests.chaos.cluster import Place, TaskRow
from tests.chaos.killing import kill_process
from tests.chaos.scene import Scene
from tests.chaos.watching import FolderWatch

_SECONDS = 300.0
_MOST_ROUNDS = 8
_LONGEST_LIFE_SECONDS = 3.0
_ANSWER_SECONDS = 0.3
_FIRST_SECONDS_PER_IMAGE = 8.0
_QUICK_SECONDS_PER_IMAGE = 1.0
# How much of the batch the kills are spread over, and for how many tries an image takes where it is ahead of them.
_SHARE_UNDER_KILLS = 0.8
_SLOW_TRIES = 4.0
# Whose lines a try's log has once the task has begun, and what it says of images that only a Clear submits again.
_BEGUN = "QwenImageBatchOperator"
_MAYBE_PAID = "may be paid"


@dataclass(frozen=True)
class BatchResult:
    """What came of a batch.

    Attributes:
        requests: How many rows it has.
        images: How many images they ask for.
        kills: How often its process was killed while it drew.
        tries: How many tries Airflow made, with those of the Clears.
        clears: How often the task was cleared because images may have been paid.
        cleared: How many images that was about, each time it was.
        accepted: How many submissions the API accepted.
        accepted_under_kills: How many of them before the last kill of the first round.
        paid_twice: How many of them without a row or a Clear.
        lost: How many images are not there.
        seen: How many files the watch looked at.
        partial: How many of them were not whole.
        again: How many submissions the finished task made when it was cleared.
    """

    requests: int
    images: int
    kills: int
    tries: int
    clears: int
    cleared: int
    accepted: int
    accepted_under_kills: int
    paid_twice: int
    lost: int
    seen: int
    partial: int
    again: int

    @property
    def rows(self) -> list[tuple[str, int]]:
        return [
            ("rows", self.requests),
            ("images that they ask for", self.images),
            ("kills", self.kills),
            ("tries", self.tries),
            ("submissions accepted", self.accepted),
            ("  while the kills went on", self.accepted_under_kills),
            ("stopped as unknown and cleared", self.cleared),
            ("clears for that", self.clears),
            ("paid twice without consent", self.paid_twice),
            ("lost", self.lost),
            ("files looked at as they came", self.seen),
            ("partial files among them", self.partial),
            ("submissions when the finished task is cleared", self.again),
        ]


def killed_dag(*, quick: bool) -> BatchDag:
    """Return the batch that is killed."""
    return BatchDag("batch", images=40 if quick else 200, max_in_flight=8 if quick else 16)


def slow_api() -> Sandbox:
    """Return an API that takes its time to answer a submission that it has accepted: kills are to hit there too."""
    return Sandbox(
        seconds_per_image=_FIRST_SECONDS_PER_IMAGE,
        hang_after_share=1.0,
        hang_seconds=_ANSWER_SECONDS,
        fault_paths=("generate",),
    )


class BatchKiller:
    """Kills the process of a batch at a random moment of each try.

    Args:
        scene: Where it runs.
        dag: Its DAG.
        seed: What the moments are drawn from.
    """

    def __init__(self, scene: Scene, dag: BatchDag, *, seed: int) -> None:
        self._scene = scene
        self._dag = dag
        self._folder = dag.folder(scene.images)
        self._random = random.Random(seed)
        self._moments: dict[int, float] = {}
        self._manifest: tuple[int, int] | None = None
        self._left = 0

    def plan(self, kills: int) -> None:
        """Kill so often from now on, as long as no further manifest is there: with that, the batch is over."""
        self._left = kills
        self._manifest = manifest_version(self._folder)

    def look(self, rows: Mapping[Place, TaskRow]) -> bool:
        """Kill the process if its moment has come, and return whether that has hit the batch."""
        row = rows.get(self._dag.task.place)
        if not self._left or row is None or row.state != "running" or row.pid is None:
            return False
        number = row.try_number
        if number not in self._moments:
            if _BEGUN not in self._scene.cluster.log_of_try(self._dag.task, number):
                return False
            self._moments[number] = time.monotonic() + self._random.uniform(0.0, _LONGEST_LIFE_SECONDS)
        if time.monotonic() < self._moments[number]:
            return False
        # Airflow says "running" for a moment more: once is enough.
        self._moments[number] = math.inf
        hit = kill_process(row.pid) and manifest_version(self._folder) == self._manifest
        self._scene.kills[row.place] += hit
        self._left -= hit
        return hit


def kill_batch(scene: Scene, dag: BatchDag, *, kills: int, late_kills: int, seed: int) -> BatchResult:
    """Kill a batch while it draws, clear what stops as unknown until nothing does, and judge.

    Args:
        scene: Where it runs.
        dag: Its DAG.
        kills: How often it must be killed before it is cleared.
        late_kills: How often it may be killed while it submits again what was cleared.
        seed: What the moments are drawn from.
    """
    api, task, folder = scene.apis[dag.dag_id], dag.task, dag.folder(scene.images)
    killer = BatchKiller(scene, dag, seed=seed)
    folder.mkdir()
    with FolderWatch(folder) as watch:
        accepted_under_kills = _draw(scene, dag, killer, kills)
        made = scene.kills[task.place]
        consented = _clear_what_is_unknown(scene, dag, killer, late_kills)
    evidence = gather_batch(dag, api, scene.images, consented)
    found = evidence.complaints()
    accepted = len(api.submissions)
    if made < kills:
        found.append(f"only {made} of {kills} kills were made while it drew")
    if scene.states([task]) != {"success"}:
        found.append(f"it must have ended as success: {scene.states([task])}")
    if api.credits_charged != CREDITS_PER_IMAGE * accepted:
        found.append(f"{api.credits_charged:g} credits were charged for {accepted} submissions")
    found += [f"{name} stood there while it was not whole" for name in watch.partial]
    scene.complaints.extend(f"batch: {complaint}" for complaint in found)
    clears, tries = scene.clears[task.place], len(scene.cluster.tries(task))
    return BatchResult(
        requests=len(dag.requests),
        images=dag.images,
        kills=scene.kills[task.place],
        tries=tries,
        clears=clears,
        cleared=consented.total(),
        accepted=accepted,
        accepted_under_kills=accepted_under_kills,
        paid_twice=evidence.paid_twice,
        lost=evidence.lost,
        seen=watch.seen,
        partial=len(watch.partial),
        again=_run_again(scene, dag),
    )


def _draw(scene: Scene, dag: BatchDag, killer: BatchKiller, kills: int) -> int:
    """Run it until it is over, and return how many submissions were accepted before its last kill.

    The API draws slowly or quickly, so that the kills are spread over the batch.
    """
    api, began, accepted = scene.apis[dag.dag_id], time.monotonic(), [0]

    def look(rows: Mapping[Place, TaskRow]) -> None:
        if not killer.look(rows):
            return
        made = len(accepted)
        accepted.append(len(api.submissions))
        is_ahead = made < kills and accepted[-1] > _SHARE_UNDER_KILLS * dag.images * made / kills
        # However long this machine takes for a try: then less is drawn between two kills than should be.
        slow = _SLOW_TRIES * (time.monotonic() - began) / made
        api.configure(seconds_per_image=slow if is_ahead else _QUICK_SECONDS_PER_IMAGE)

    killer.plan(kills)
    scene.cluster.run(dag)
    scene.follow(f"Kills of a batch of {dag.images} images", [dag.task], look, seconds=_SECONDS)
    api.configure(seconds_per_image=_QUICK_SECONDS_PER_IMAGE)
    return accepted[-1]


def _clear_what_is_unknown(scene: Scene, dag: BatchDag, killer: BatchKiller, kills: int) -> Counter[Key]:
    """Clear the batch until no image may be paid, and return for how many images that was done, each time it was.

    Args:
        scene: Where it runs.
        dag: Its DAG.
        killer: What kills it in the first round.
        kills: How often.
    """
    api, task, folder = scene.apis[dag.dag_id], dag.task, dag.folder(scene.images)
    consented: Counter[Key] = Counter()
    for _ in range(_MOST_ROUNDS):
        stopped = unknown(read_manifest(folder))
        if not stopped:
            break
        if scene.states([task]) != {"failed"} or _MAYBE_PAID not in scene.cluster.tries(task)[-1]:
            scene.complaints.append(f"batch: it must have failed and said that {stopped.total()} images may be paid")
        before = accepted_ids(api)
        consented += stopped
        scene.clear([task], only_failed=True)
        killer.plan(kills)
        kills = 0
        scene.follow(f"{stopped.total()} images that may be paid, cleared", [task], killer.look, seconds=_SECONDS)
        new = Counter({key: len(ids) - len(before.get(key, ())) for key, ids in accepted_ids(api).items()})
        cut_off = unknown(read_manifest(folder))
        # One that was cut off once more may or may not have been accepted; every other one was, once.
        if not stopped - cut_off <= +new <= stopped:
            scene.complaints.append(f"batch: cleared, it must have submitted {dict(stopped)}, and did {dict(+new)}")
        if not cut_off:
            _check_result(scene, dag, reused=dag.images - stopped.total())
    return consented


def _run_again(scene: Scene, dag: BatchDag) -> int:
    """Clear the finished batch, and return how many submissions it makes: none, because all its images are there."""
    api, task = scene.apis[dag.dag_id], dag.task
    before = len(api.submissions)
    scene.clear([task], only_failed=False)
    scene.follow("The finished batch, cleared", [task], seconds=_SECONDS)
    new = len(api.submissions) - before
    if new:
        scene.complaints.append(f"batch: finished and cleared, it made {new} submissions")
    _check_result(scene, dag, reused=dag.images)
    return new


def _check_result(scene: Scene, dag: BatchDag, *, reused: int) -> None:
    """Complain if a batch that has ended well says something else of what it has drawn since it was cleared."""
    result = scene.cluster.result(dag.task)
    expected = {
        "requests": len(dag.requests),
        "images": dag.images,
        "reused": reused,
        "failed": 0,
        "consumed_credits": CREDITS_PER_IMAGE * (dag.images - reused),
    }
    if not result.items() >= expected.items():
        scene.complaints.append(f"batch: cleared, it must have returned {expected}, and did {dict(result)}")
