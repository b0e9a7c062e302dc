"""The crash test: kill tasks at every stage and at random moments, and kill the triggerer."""

from __future__ import annotations

import functools
import random
import time
from collections.abc import Callable, Mapping, Sequence

from airflow_provider_qwenimage.sandbox import Sandbox
from tests.chaos import checkpoints, stages
from tests.chaos.cluster import SUBMITTED, InstanceKey, TaskRow
from tests.chaos.drawings import Drawing, DrawingDag
from tests.chaos.judge import Tally, complaints, tally
from tests.chaos.killing import RandomKiller, StageKiller
from tests.chaos.scene import Scene
from tests.chaos.stages import Stage
from tests.integration.standalone import wait_for

_KILLED = "SIGKILL"
_STAGES_SECONDS = 600.0
_RANDOM_SECONDS = 240.0
_TRIGGERER_SECONDS = 90.0
# The process of a deferrable task ends within a second; one that waits in the worker runs as long as its image takes.
_RANDOM_LIVES = (1.0, 4.0)
_KILLS_OF_A_STAGE = 10


def kill_at_stages(scene: Scene, chosen: Sequence[Stage]) -> list[Tally]:
    """Kill the tasks of all stages, and return a row of the table for each stage."""
    drawings = [drawing for stage in chosen for drawing in stage.dag.drawings]
    killer = StageKiller(scene, drawings)
    for stage in chosen:
        if stage.checkpoint is not None:
            for drawing in stage.dag.drawings:
                checkpoints.plan(scene.checkpoints, stage.checkpoint, drawing.key, stage.kills_per_task)
        if stage.hang is not None:
            route, behaviour = stage.hang
            scene.apis[stage.name].script(route, (behaviour, stage.planned_kills))
        scene.cluster.run(stage.dag)

    def kill_due(rows: Mapping[InstanceKey, TaskRow]) -> None:
        killer.kill_at_checkpoints(rows)
        for stage in chosen:
            if stage.hang is not None:
                killer.kill_in_requests(stage.name, stage.hang[1])

    scene.wait_for_end("Kills at the stages of a task", drawings, kill_due, seconds=_STAGES_SECONDS)
    rows = []
    for stage in chosen:
        found = scene.gather(stage.dag.drawings)
        rows.append(tally(stage.title, found))
        # Not every task reaches every stage: an image may be drawn before its task has to wait.
        kills = min(_KILLS_OF_A_STAGE, stage.planned_kills)
        scene.complaints.extend(complaints(stage.title, stage.expected, found, kills=kills))
    return rows


def kill_triggerer(scene: Scene, dag: DrawingDag, kills: int, *, seed: int) -> Tally:
    """Kill the triggerer repeatedly while tasks wait in it, and return the row of the table."""
    api, moments, title = scene.apis[dag.conn_id], random.Random(seed), "triggerer, while tasks wait in it"
    with scene.progress.step("Kills of the triggerer"):
        scene.cluster.run(dag)
        wait_for("the deferral", lambda: scene.states(dag.drawings) == {"deferred"}, _TRIGGERER_SECONDS)
        since = time.time()
        for made in range(1, kills + 1):
            wait_for("the triggerer to poll each image", _all_polled(api, dag.drawings, since), _TRIGGERER_SECONDS)
            time.sleep(moments.uniform(0.0, 0.5))
            scene.cluster.kill_triggerer()
            since = time.time()
            scene.cluster.start_triggerer()
            scene.progress.update(f"Kills of the triggerer: {made} of {kills}")
        wait_for("the triggerer to poll each image", _all_polled(api, dag.drawings, since), _TRIGGERER_SECONDS)
    # Every image is drawn now, because the sandbox's clock decides it.
    api._state.books.clock = lambda: time.time() + 2 * stages.NEVER_SECONDS
    scene.wait_for_end("Tasks that waited in the triggerer", dag.drawings, seconds=_TRIGGERER_SECONDS)
    found = scene.gather(dag.drawings)
    scene.complaints.extend(complaints(title, stages.STORED, found))
    # Each wait was resumed after each kill, else the waits above would have timed out.
    return tally(title, found) + Tally(title, kills=kills, resumed=kills)


def kill_at_random(
    scene: Scene, dags: Sequence[DrawingDag], kills: int, *, most_per_task: int, at_first: int, seed: int
) -> tuple[Tally, list[Drawing]]:
    """Kill task processes at random moments, and return the row of the table and the tasks.

    Args:
        dags: More DAGs than needed.
        kills: How many kills are required.
        most_per_task: The maximum number of kills per task.
        at_first: How many DAGs to start at once; the others follow one by one until there are enough kills.
        seed: The seed of the moments.
    """
    killer = RandomKiller(scene, seed=seed, lives=_RANDOM_LIVES, most_per_task=most_per_task)
    left, drawings = list(dags), list[Drawing]()
    while left and sum(scene.kills[drawing.instance_key] for drawing in drawings) < kills:
        started, left = (left[:at_first], left[at_first:]) if not drawings else (left[:1], left[1:])
        for dag in started:
            scene.cluster.run(dag)
            drawings += dag.drawings
        kill_due = functools.partial(killer.kill_due, drawings)
        scene.wait_for_end("Kills at random moments", drawings, kill_due, seconds=_RANDOM_SECONDS)
    found = scene.gather(drawings)
    title = "at a random moment"
    scene.complaints.extend(complaints(title, stages.RANDOM, found, kills=kills))
    return tally(title, found), drawings


def count_before_and_after_submission(scene: Scene, drawings: Sequence[Drawing]) -> str:
    """Return a sentence with the number of random kills before a submission, which risk nothing, and after one."""
    killed = [log for drawing in drawings for log in scene.cluster.tries(drawing) if _KILLED in log]
    later = sum(any(words in log for words in SUBMITTED) for log in killed)
    return (
        f"Of the kills at a random moment that the task's log reports, {len(killed) - later} came before the "
        f"submission and {later} after it."
    )


def _all_polled(api: Sandbox, drawings: Sequence[Drawing], since: float) -> Callable[[], bool]:
    """Return a check whether the image of every task was polled since a time in epoch seconds."""
    prompts = {drawing.prompt for drawing in drawings}

    def all_polled() -> bool:
        ids = {submission.task_id for submission in api.submissions if submission.request["prompt"] in prompts}
        polled = {request.task_id for request in api.requests if request.route == "status" and request.time > since}
        return polled >= ids

    return all_polled
