"""Send task processes a SIGKILL: at a checkpoint, while their request hangs, or at a random moment."""

from __future__ import annotations

import math
import os
import random
import signal
import time
from collections.abc import Mapping, Sequence

import psutil

from tests.chaos import checkpoints
from tests.chaos.cluster import InstanceKey, TaskRow
from tests.chaos.drawings import Drawing
from tests.chaos.scene import Scene


class StageKiller:
    """Kills task processes at checkpoints and while their requests hang."""

    def __init__(self, scene: Scene, drawings: Sequence[Drawing]) -> None:
        self._scene = scene
        self._by_key = {drawing.key: drawing for drawing in drawings}
        self._by_prompt = {drawing.prompt: drawing for drawing in drawings}
        self._hung: set[int] = set()

    def kill_at_checkpoints(self, rows: Mapping[InstanceKey, TaskRow]) -> None:
        """Kill each process at a checkpoint. It must be the process that Airflow has recorded for the task."""
        for stop in checkpoints.reached(self._scene.checkpoints):
            key = self._by_key[stop.key].instance_key
            if rows[key].pid != stop.pid:
                # The rows may be older than the process.
                rows = self._scene.cluster.task_rows()
            if rows[key].pid != stop.pid:
                self._scene.complaints.append(
                    f"{stop.key}: process {stop.pid} is at the checkpoint, but Airflow has recorded {rows[key].pid}"
                )
            self._kill(key, stop.pid)
            checkpoints.remove(stop)

    def kill_in_requests(self, conn_id: str, behaviour: str) -> None:
        """Kill each process that waits for a hanging request.

        Args:
            conn_id: The connection to the API.
            behaviour: The scripted behaviour of the hanging requests.
        """
        api = self._scene.apis[conn_id]
        prompts = {submission.task_id: submission.request["prompt"] for submission in api.submissions}
        for request in api.requests:
            # The record of a submission has a task id as soon as it is accepted; the path of an image contains it.
            image_task_id = request.task_id or request.path.rpartition("/")[2].partition(".")[0]
            if request.behaviour != behaviour or id(request) in self._hung or image_task_id not in prompts:
                continue
            key = self._by_prompt[prompts[image_task_id]].instance_key
            pid = self._scene.cluster.task_rows()[key].pid
            if pid is not None:
                # The books keep the record, so no other object can have the same id().
                self._hung.add(id(request))
                self._kill(key, pid)

    def _kill(self, key: InstanceKey, pid: int) -> None:
        if kill_process(pid):
            self._scene.kills[key] += 1
        else:
            self._scene.complaints.append(f"{key}: process {pid} ended before it could be killed")


class RandomKiller:
    """Kills running task processes at random moments.

    Args:
        seed: The seed of the moments.
        lives: Limits, in seconds, for the time from when a process is first seen running to its kill; one is drawn for
            each process.
        most_per_task: The maximum number of kills per task.
    """

    def __init__(self, scene: Scene, *, seed: int, lives: Sequence[float], most_per_task: int) -> None:
        self._scene = scene
        self._random = random.Random(seed)
        self._lives = lives
        self._most = most_per_task
        self._moments: dict[tuple[InstanceKey, int], float] = {}

    def kill_due(self, drawings: Sequence[Drawing], rows: Mapping[InstanceKey, TaskRow]) -> None:
        """Kill the processes of these tasks whose moment has come."""
        for drawing in drawings:
            row = rows.get(drawing.instance_key)
            if row is None or row.state != "running" or row.pid is None:
                continue
            process = (row.key, row.pid)
            if process not in self._moments:
                moment = self._random.uniform(0.0, self._random.choice(self._lives))
                self._moments[process] = time.monotonic() + moment
            if time.monotonic() >= self._moments[process] and self._scene.kills[row.key] < self._most:
                # The row stays "running" for a moment after the kill, so each process is killed only once.
                self._moments[process] = math.inf
                self._scene.kills[row.key] += kill_process(row.pid)


def kill_process(pid: int) -> bool:
    """Send a SIGKILL, and return whether the process was still running."""
    try:
        if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return False
        os.kill(pid, signal.SIGKILL)
    except (psutil.NoSuchProcess, ProcessLookupError):
        return False
    return True
