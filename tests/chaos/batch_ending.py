"""The batch part of the crash test: a batch that is marked as failed while it draws must shut down cleanly."""

from __future__ import annotations

import time

import psutil

from airflow_provider_qwenimage.sandbox import Sandbox
from tests.chaos.batch_dag import BatchDag
from tests.chaos.batch_evidence import gather_batch, manifest_version, recorded_ids, stored_ids
from tests.chaos.scene import Scene
from tests.integration.standalone import wait_for

_SECONDS = 120.0
# Airflow sends a SIGTERM when the task's next heartbeat is refused, and a SIGKILL five seconds later, after which there
# is no manifest. How soon that heartbeat comes depends on the machine.
_LONGEST_END_SECONDS = 60.0
_ANSWER_SECONDS = 1.5
_ENDED = "the task was ended from outside"


def ended_dag() -> BatchDag:
    """Return the batch that is marked as failed."""
    return BatchDag("batch_ended", images=40)


def slower_api() -> Sandbox:
    """Return an API that answers submissions late, so that the end always interrupts some."""
    return Sandbox(seconds_per_image=2.0, hang_after_share=1.0, hang_seconds=_ANSWER_SECONDS, fault_paths=("generate",))


def end_batch(scene: Scene, dag: BatchDag) -> str:
    """Mark a batch as failed while it draws, then clear it. No paid image may be lost. Return a sentence to print."""
    api, task, folder = scene.apis[dag.dag_id], dag.task, dag.folder(scene.images)
    with scene.progress.step("A batch that is marked as failed"):
        scene.cluster.run(dag)
        wait_for("a batch in the middle", lambda: len(stored_ids(folder)) >= dag.images / 4, _SECONDS)
        wait_for("a submission without an answer", lambda: bool(_unanswered(api)), _SECONDS)
        seconds = _mark_failed(scene, dag)
        accepted = {submission.task_id for submission in api.submissions}
        stored, recorded = stored_ids(folder), recorded_ids(folder)
    forgotten = accepted - stored - recorded
    found = []
    if seconds > _LONGEST_END_SECONDS:
        found.append(f"its process ran for another {seconds:.1f} s")
    if manifest_version(folder) is None or _ENDED not in scene.cluster.tries(task)[-1]:
        found.append("its process did not end with a manifest and an error")
    found += [f"{image_task_id} was accepted, but is neither stored nor recorded" for image_task_id in forgotten]
    scene.clear([task], only_failed=True)
    scene.wait_for_end("Clearing the batch that was marked as failed", [task], seconds=_SECONDS)
    found += gather_batch(dag, api, scene.images, {}).complaints()
    if len(api.submissions) != dag.images:
        found.append(f"{len(api.submissions)} submissions were accepted for {dag.images} images")
    scene.complaints.extend(f"batch marked as failed: {complaint}" for complaint in found)
    return (
        f"A batch of {dag.images} images that was marked as failed ended after {seconds:.1f} s. Of its {len(accepted)} "
        f"submissions, {len(accepted & stored)} were stored, {len(accepted & recorded - stored)} recorded for a "
        f"resume and {len(forgotten)} lost. After a clear it finished with {len(api.submissions)} submissions in total."
    )


def _unanswered(api: Sandbox) -> list[str]:
    """Return the ids of the image tasks whose submissions are accepted but not answered."""
    return [
        request.task_id
        for request in api.requests
        if request.route == "generate" and request.task_id is not None and request.status is None
    ]


def _mark_failed(scene: Scene, dag: BatchDag) -> float:
    """Mark the batch as failed, and return how many seconds its process keeps running."""
    pid = scene.cluster.task_rows()[dag.task.instance_key].pid
    assert pid is not None, "the running batch has no process"
    process = psutil.Process(pid)
    scene.cluster.mark_task_failed(dag.task)
    since = time.monotonic()
    deadline = since + 2 * _LONGEST_END_SECONDS
    while _runs(process) and time.monotonic() < deadline:
        time.sleep(0.05)
    return time.monotonic() - since


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
