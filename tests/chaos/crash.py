"""The crash test: kills at every stage of a task, of the triggerer, and at random moments."""

from __future__ import annotations

import functools
import random
import time
from collections.abc import Callable, Mapping, Sequence

from airflow_provider_qwenimage.sandbox import Sandbox
from tests.chaos import checkpoints, stages
from tests.chaos.cluster import SUBMITTED, Place, TaskRow
from tests.chaos.drawings import Drawing, DrawingDag
from tests.chaos.judge import Tally, complaints, tally
from tests.chaos.killing import RandomKiller, StageKiller
from tests.chaos.scene import Scene
from tests.chaos.stages import Stage
from tests.integration.standalone import wait_for

_KILLED = "SIGKILL"
_STAGES_SECONDS = 480.0
_RANDOM_SECONDS = 240.0
_TRIGGERER_SECONDS = 90.0
# A task that defers is through in a second; one that waits in the worker takes the seconds of its image.
_RANDOM_LIVES = (1.0, 4.0)
_RANDOM_KILLS_PER_TASK = 4
_KILLS_OF_A_STAGE = 10


def kill_at_stages(scene: Scene, chosen: Sequence[Stage]) -> list[Tally]:
    """Kill the processes of all stages' tasks, and return their rows."""
    drawings = [drawing for stage in chosen for drawing in stage.dag.drawings]
    killer = StageKiller(scene, drawings)
    for stage in chosen:
        if stage.checkpoint is not None:
            for drawing in stage.dag.drawings:
                checkpoints.plan(scene.stops, stage.checkpoint, drawing.key, stage.kills_per_task)
        if stage.hang is not None:
            route, behaviour = stage.hang
            scene.apis[stage.name].script(route, (behaviour, stage.planned_kills))
        scene.cluster.run(stage.dag)

    def look(rows: Mapping[Place, TaskRow]) -> None:
        killer.kill_at_checkpoints(rows)
        for stage in chosen:
            if stage.hang is not None:
                killer.kill_in_requests(stage.name, stage.hang[1])

    scene.follow("Kills at the stages of a task", drawings, look, seconds=_STAGES_SECONDS)
    rows = []
    for stage in chosen:
        found = scene.gather(stage.dag.drawings)
        rows.append(tally(stage.title, found))
        # Not every task comes to every place: an image can be done before its task would have waited.
        kills = min(_KILLS_OF_A_STAGE, stage.planned_kills)
        scene.complaints.extend(complaints(stage.title, stage.expected, found, kills=kills))
    return rows


def kill_triggerer(scene: Scene, dag: DrawingDag, kills: int, *, seed: int) -> Tally:
    """Kill the triggerer again and again under tasks that wait in it, and return the row."""
    api, moments, title = scene.apis[dag.conn_id], random.Random(seed), "the triggerer, while tasks wait in it"
    with scene.progress.step("Kills of the triggerer"):
        scene.cluster.run(dag)
        wait_for("the deferral", lambda: scene.states(dag.drawings) == {"deferred"}, _TRIGGERER_SECONDS)
        since = time.time()
        for made in range(1, kills + 1):
            wait_for("the triggerer to ask after each image", _asked(api, dag.drawings, since), _TRIGGERER_SECONDS)
            time.sleep(moments.uniform(0.0, 0.5))
            scene.cluster.kill_triggerer()
            since = time.time()
            scene.cluster.start_triggerer()
            scene.progress.update(f"Kills of the triggerer: {made} of {kills}")
        wait_for("the triggerer to ask after each image", _asked(api, dag.drawings, since), _TRIGGERER_SECONDS)
    # The stand-in's clock decides when an image is done: now.
    api._state.books.clock = lambda: time.time() + 2 * stages.NEVER_SECONDS
    scene.follow("The tasks that waited in the triggerer", dag.drawings, seconds=_TRIGGERER_SECONDS)
    found = scene.gather(dag.drawings)
    scene.complaints.extend(complaints(title, stages.STORED, found))
    # Each wait went on after each kill, or there would have been a complaint in time.
    return tally(title, found) + Tally(title, kills=kills, resumed=kills)


def kill_at_random(
    scene: Scene, dags: Sequence[DrawingDag], kills: int, *, at_first: int, seed: int
) -> tuple[Tally, list[Drawing]]:
    """Kill task processes at random moments, and return the row and the tasks.

    Args:
        scene: Where they run.
        dags: Their DAGs, more than will be needed.
        kills: How many kills must be made.
        at_first: How many of the DAGs to start at once; the next ones follow one by one while kills are missing.
        seed: What the moments are drawn from.
    """
    killer = RandomKiller(scene, seed=seed, lives=_RANDOM_LIVES, most_per_task=_RANDOM_KILLS_PER_TASK)
    left, drawings = list(dags), list[Drawing]()
    while left and sum(scene.kills[drawing.place] for drawing in drawings) < kills:
        started, left = (left[:at_first], left[at_first:]) if not drawings else (left[:1], left[1:])
        for dag in started:
            scene.cluster.run(dag)
            drawings += dag.drawings
        look = functools.partial(killer.look, drawings)
        scene.follow("Kills at random moments", drawings, look, seconds=_RANDOM_SECONDS)
    found = scene.gather(drawings)
    title = "at a random moment"
    scene.complaints.extend(complaints(title, stages.RANDOM, found, kills=kills))
    return tally(title, found), drawings


def where_they_hit(scene: Scene, drawings: Sequence[Drawing]) -> str:
    """Return how many random kills came before a submission, where nothing is at stake yet, and how many later."""
    killed = [log for drawing in drawings for log in scene.cluster.tries(drawing) if _KILLED in log]
    later = sum(any(words in log for words in SUBMITTED) for log in killed)
    return (
        f"Of the kills at a random moment that left a line in the task's log, {len(killed) - later} came before a "
        f"submission and {later} after it."
    )


def _asked(api: Sandbox, drawings: Sequence[Drawing], since: float) -> Callable[[], bool]:
    """Return a check whether the API was asked after the image of every task since then."""
    prompts = {drawing.prompt for drawing in drawings}

    def all_asked() -> bool:
        ids = {submission.task_id for submission in api.submissions if submission.request["prompt"] in prompts}
        asked = {request.task_id for request in api.requests if request.route == "status" and request.time > since}
        return asked >= ids

    return all_asked
