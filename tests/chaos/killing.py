"""Sends task processes a SIGKILL: at a checkpoint, while the API lets them hang, or at a random moment."""

from __future__ import annotations

import math
import os
import random
import signal
import time
from collections.abc import Mapping, Sequence

import psutil

from tests.chaos import checkpoints
from tests.chaos.cluster import Place, TaskRow
from tests.chaos.drawings import Drawing
from tests.chaos.scene import Scene


class StageKiller:
    """Kills the processes that stand where they were meant to be killed.

    Args:
        scene: Where they run.
        drawings: Their tasks.
    """

    def __init__(self, scene: Scene, drawings: Sequence[Drawing]) -> None:
        self._scene = scene
        self._by_key = {drawing.key: drawing for drawing in drawings}
        self._by_prompt = {drawing.prompt: drawing for drawing in drawings}
        self._hung: set[int] = set()

    def kill_at_checkpoints(self, rows: Mapping[Place, TaskRow]) -> None:
        """Kill each process that stands at a checkpoint, which must be the one that Airflow knows for its task."""
        for stop in checkpoints.stops(self._scene.stops):
            place = self._by_key[stop.key].place
            if rows[place].pid != stop.pid:
                # The rows may be older than the process.
                rows = self._scene.cluster.look()
            if rows[place].pid != stop.pid:
                self._scene.complaints.append(
                    f"{stop.key}: the checkpoint holds process {stop.pid}, Airflow's is {rows[place].pid}"
                )
            self._kill(place, stop.pid)
            checkpoints.deal_with(stop)

    def kill_in_requests(self, conn_id: str, behaviour: str) -> None:
        """Kill each process that waits for an answer which an API withholds.

        Args:
            conn_id: The connection to the API.
            behaviour: How the API's script lets requests hang.
        """
        api = self._scene.apis[conn_id]
        prompts = {submission.task_id: submission.request["prompt"] for submission in api.submissions}
        for request in api.requests:
            # A submission has an image task from the moment in which it is accepted; an image's URL names it.
            image_task_id = request.task_id or request.path.rpartition("/")[2].partition(".")[0]
            if request.behaviour != behaviour or id(request) in self._hung or image_task_id not in prompts:
                continue
            place = self._by_prompt[prompts[image_task_id]].place
            pid = self._scene.cluster.look()[place].pid
            if pid is not None:
                # The books keep the record, so no other object gets its id.
                self._hung.add(id(request))
                self._kill(place, pid)

    def _kill(self, place: Place, pid: int) -> None:
        if kill_process(pid):
            self._scene.kills[place] += 1
        else:
            self._scene.complaints.append(f"{place}: process {pid} was gone before it could be killed")


class RandomKiller:
    """Kills running task processes at random moments of their lives.

    Args:
        scene: Where they run.
        seed: What the moments are drawn from.
        lives: How many seconds a process may live after it was first seen running. One of them is drawn for each.
        most_per_task: A task is not killed more often.
    """

    def __init__(self, scene: Scene, *, seed: int, lives: Sequence[float], most_per_task: int) -> None:
        self._scene = scene
        self._random = random.Random(seed)
        self._lives = lives
        self._most = most_per_task
        self._moments: dict[tuple[Place, int], float] = {}

    def look(self, drawings: Sequence[Drawing], rows: Mapping[Place, TaskRow]) -> None:
        """Kill the processes of these tasks whose moment has come."""
        for drawing in drawings:
            row = rows.get(drawing.place)
            if row is None or row.state != "running" or row.pid is None:
                continue
            process = (row.place, row.pid)
            if process not in self._moments:
                moment = self._random.uniform(0.0, self._random.choice(self._lives))
                self._moments[process] = time.monotonic() + moment
            if time.monotonic() >= self._moments[process] and self._scene.kills[row.place] < self._most:
                # Airflow says "running" for a moment more, and a process takes a moment to die: once is enough.
                self._moments[process] = math.inf
                self._scene.kills[row.place] += kill_process(row.pid)


def kill_process(pid: int) -> bool:
    """Send a SIGKILL, and return whether there was a process to end."""
    try:
        if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return False
        os.kill(pid, signal.SIGKILL)
    except (psutil.NoSuchProcess, ProcessLookupError):
        return False
    return True
