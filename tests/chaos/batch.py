"""The batch part of the crash test: one task of many images, killed repeatedly while it draws."""

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
from tests.chaos.cluster import MAYBE_PAID, InstanceKey, TaskRow
from tests.chaos.killing import kill_process
from tests.chaos.scene import Scene
from tests.chaos.watching import FolderWatch

_SECONDS = 300.0
_MOST_ROUNDS = 8
_LONGEST_LIFE_SECONDS = 3.0
_ANSWER_SECONDS = 0.3
_FIRST_SECONDS_PER_IMAGE = 8.0
_QUICK_SECONDS_PER_IMAGE = 1.0
# The kills are spread over this share of the images. If the batch gets ahead of them, an image takes as long as this
# many tries.
_SHARE_UNDER_KILLS = 0.8
_SLOW_TRIES = 4.0
# The log of a try contains this logger name once the batch runs.
_STARTED = "airflow_provider_qwenimage.batch"


@dataclass(frozen=True)
class BatchResult:
    """The counts of a batch that was killed.

    Attributes:
        requests: Rows of the batch.
        images: Images that the rows ask for.
        kills: Kills of its process while it drew.
        tries: Airflow's tries, including those after Clears.
        clears: Clears of the task because images may have been paid.
        cleared: Images that may have been paid, added up over these Clears.
        accepted: Submissions that the API accepted.
        accepted_under_kills: Submissions accepted before the last kill of the first round.
        paid_twice: Accepted submissions without a row or a Clear.
        lost: Images that were not stored.
        seen: Files that the watch checked.
        partial: Files that were not complete when the watch checked them.
        again: Submissions that the finished task made when it was cleared.
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
            ("images", self.images),
            ("kills", self.kills),
            ("tries", self.tries),
            ("submissions accepted", self.accepted),
            ("  before the last kill", self.accepted_under_kills),
            ("images stopped as unknown, then cleared", self.cleared),
            ("clears of the task", self.clears),
            ("paid twice without consent", self.paid_twice),
            ("lost", self.lost),
            ("files checked on arrival", self.seen),
            ("  incomplete", self.partial),
            ("submissions after the finished task was cleared", self.again),
        ]


def killed_dag(*, quick: bool) -> BatchDag:
    """Return the batch that is killed."""
    return BatchDag("batch", images=30 if quick else 200, max_in_flight=8 if quick else 16)


def slow_api() -> Sandbox:
    """Return an API that accepts submissions at once and answers them late, so that kills hit in between too."""
    return Sandbox(
        seconds_per_image=_FIRST_SECONDS_PER_IMAGE,
        hang_after_share=1.0,
        hang_seconds=_ANSWER_SECONDS,
        fault_paths=("generate",),
    )


class BatchKiller:
    """Kills the process of a batch at a random moment of each try; the moments depend on the seed."""

    def __init__(self, scene: Scene, dag: BatchDag, *, seed: int) -> None:
        self._scene = scene
        self._dag = dag
        self._folder = dag.folder(scene.images)
        self._random = random.Random(seed)
        self._moments: dict[int, float] = {}
        self._manifest: tuple[int, int] | None = None
        self._left = 0

    def plan(self, kills: int) -> None:
        """Allow so many kills from now on, until the batch writes a new manifest, which ends it."""
        self._left = kills
        self._manifest = manifest_version(self._folder)

    def kill_if_due(self, rows: Mapping[InstanceKey, TaskRow]) -> bool:
        """Kill the process if its moment has come, and return whether this interrupted the batch."""
        row = rows.get(self._dag.task.instance_key)
        if not self._left or row is None or row.state != "running" or row.pid is None:
            return False
        number = row.try_number
        if number not in self._moments:
            if _STARTED not in self._scene.cluster.log_of_try(self._dag.task, number):
                return False
            self._moments[number] = time.monotonic() + self._random.uniform(0.0, _LONGEST_LIFE_SECONDS)
        if time.monotonic() < self._moments[number]:
            return False
        # The row stays "running" for a moment after the kill, so each try is killed only once.
        self._moments[number] = math.inf
        hit = kill_process(row.pid) and manifest_version(self._folder) == self._manifest
        self._scene.kills[row.key] += hit
        self._left -= hit
        return hit


def kill_batch(scene: Scene, dag: BatchDag, *, kills: int, late_kills: int, seed: int) -> BatchResult:
    """Kill a batch while it draws, clear it until no image stops as unknown, and check the result.

    Args:
        kills: How often it must be killed before it is cleared.
        late_kills: How often it may be killed after the first Clear.
        seed: The seed of the moments.
    """
    api, task, folder = scene.apis[dag.dag_id], dag.task, dag.folder(scene.images)
    killer = BatchKiller(scene, dag, seed=seed)
    folder.mkdir()
    with FolderWatch(folder) as watch:
        accepted_under_kills = _draw(scene, dag, killer, kills)
        made = scene.kills[task.instance_key]
        consented = _clear_unknown(scene, dag, killer, late_kills)
    evidence = gather_batch(dag, api, scene.images, consented)
    found = evidence.complaints()
    accepted = len(api.submissions)
    if made < kills:
        found.append(f"only {made} of {kills} kills hit it while it drew")
    if scene.states([task]) != {"success"}:
        found.append(f"the task should have ended as success, not as {scene.states([task])}")
    if api.credits_charged != CREDITS_PER_IMAGE * accepted:
        found.append(f"{api.credits_charged:g} credits were charged for {accepted} submissions")
    found += [f"{name} was incomplete under its final name" for name in watch.partial]
    scene.complaints.extend(f"batch: {complaint}" for complaint in found)
    clears, tries = scene.clears[task.instance_key], len(scene.cluster.tries(task))
    return BatchResult(
        requests=len(dag.requests),
        images=dag.images,
        kills=scene.kills[task.instance_key],
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
    """Run the batch to its end, and return how many submissions were accepted before its last kill.

    The API's speed is adjusted so that the kills are spread over the batch.
    """
    api, began, accepted = scene.apis[dag.dag_id], time.monotonic(), [0]

    def kill_and_adjust(rows: Mapping[InstanceKey, TaskRow]) -> None:
        if not killer.kill_if_due(rows):
            return
        made = len(accepted)
        accepted.append(len(api.submissions))
        is_ahead = made < kills and accepted[-1] > _SHARE_UNDER_KILLS * dag.images * made / kills
        # Measured in tries, because a try takes longer on a slower machine.
        slow = _SLOW_TRIES * (time.monotonic() - began) / made
        api.configure(seconds_per_image=slow if is_ahead else _QUICK_SECONDS_PER_IMAGE)

    killer.plan(kills)
    scene.cluster.run(dag)
    scene.wait_for_end(f"Kills of a batch of {dag.images} images", [dag.task], kill_and_adjust, seconds=_SECONDS)
    api.configure(seconds_per_image=_QUICK_SECONDS_PER_IMAGE)
    return accepted[-1]


def _clear_unknown(scene: Scene, dag: BatchDag, killer: BatchKiller, kills: int) -> Counter[Key]:
    """Clear the batch until no image may be paid, and return how often each image was cleared.

    Args:
        kills: How often to kill the task after the first Clear.
    """
    api, task, folder = scene.apis[dag.dag_id], dag.task, dag.folder(scene.images)
    consented: Counter[Key] = Counter()
    for _ in range(_MOST_ROUNDS):
        stopped = unknown(read_manifest(folder))
        if not stopped:
            break
        if scene.states([task]) != {"failed"} or MAYBE_PAID not in scene.cluster.tries(task)[-1]:
            scene.complaints.append(
                f"batch: the task should have failed and reported that {stopped.total()} images may be paid"
            )
        before = accepted_ids(api)
        consented += stopped
        scene.clear([task], only_failed=True)
        killer.plan(kills)
        kills = 0
        scene.wait_for_end(
            f"Clearing {stopped.total()} images that may be paid", [task], killer.kill_if_due, seconds=_SECONDS
        )
        new = Counter({key: len(ids) - len(before.get(key, ())) for key, ids in accepted_ids(api).items()})
        cut_off = unknown(read_manifest(folder))
        # An image that was cut off again may or may not have been accepted; every other one was accepted once.
        if not stopped - cut_off <= +new <= stopped:
            scene.complaints.append(
                f"batch: after the clear it should have submitted {dict(stopped)}, not {dict(+new)}"
            )
        if not cut_off:
            _check_result(scene, dag, reused=dag.images - stopped.total())
    return consented


def _run_again(scene: Scene, dag: BatchDag) -> int:
    """Clear the finished batch, and return how many submissions it makes; it should be none."""
    api, task = scene.apis[dag.dag_id], dag.task
    before = len(api.submissions)
    scene.clear([task], only_failed=False)
    scene.wait_for_end("Clearing the finished batch", [task], seconds=_SECONDS)
    new = len(api.submissions) - before
    if new:
        scene.complaints.append(f"batch: it made {new} submissions when it was cleared after its end")
    _check_result(scene, dag, reused=dag.images)
    return new


def _check_result(scene: Scene, dag: BatchDag, *, reused: int) -> None:
    """Complain if the result of a cleared batch does not match the images that it drew since the Clear."""
    result = scene.cluster.result(dag.task)
    expected = {
        "requests": len(dag.requests),
        "images": dag.images,
        "reused": reused,
        "failed": 0,
        "consumed_credits": CREDITS_PER_IMAGE * (dag.images - reused),
    }
    if not result.items() >= expected.items():
        scene.complaints.append(f"batch: after the clear it should have returned {expected}, not {dict(result)}")
