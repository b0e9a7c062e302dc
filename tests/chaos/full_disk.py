"""The part of the crash test that fills the disk between the intents and the ids of a batch."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from airflow_provider_qwenimage.sandbox import Sandbox
from tests.chaos.batch_dag import BatchDag
from tests.chaos.batch_ending import unanswered
from tests.chaos.batch_evidence import gather_batch, recorded_ids, stored_ids
from tests.chaos.cluster import OVER
from tests.chaos.scene import Scene
from tests.integration.standalone import wait_for

_SECONDS = 180.0
_ANSWER_SECONDS = 1.5
_DISK_MEGABYTES = 48
_FILLER = ".filler"
_PIECE = b"\0" * 2**16


def full_disk_dag() -> BatchDag:
    """Return the batch whose disk is full for a while."""
    return BatchDag("batch_full_disk", images=40, max_in_flight=8)


def late_api() -> Sandbox:
    """Return an API that accepts submissions at once and answers them late, so that some ids meet the full disk."""
    return Sandbox(seconds_per_image=2.0, hang_after_share=1.0, hang_seconds=_ANSWER_SECONDS, fault_paths=("generate",))


def fill_disk(scene: Scene, dag: BatchDag) -> str:
    """Fill the disk of a batch while it draws, and free it after a try has ended. Return a sentence to print.

    No id may be lost: what the disk had no room for must be in the log, and the image must not be paid again.
    """
    if os.geteuid() != 0:
        return "Not run: a batch on a full disk, because only root can mount a small disk."
    api, task, folder = scene.apis[dag.dag_id], dag.task, dag.folder(scene.images)
    with _small_disk(folder):
        filler = folder / _FILLER
        with scene.progress.step("A batch whose disk is full"):
            scene.cluster.run(dag)
            wait_for("a batch in the middle", lambda: len(stored_ids(folder)) >= dag.images / 4, _SECONDS)
            wait_for("a submission without an answer", lambda: bool(unanswered(api)), _SECONDS)
            on_the_way = set(unanswered(api))
            number = scene.cluster.task_rows()[task.instance_key].try_number
            _fill(filler)
            wait_for("the end of a try", lambda: _is_over(scene, dag, number), _SECONDS)
            log = scene.cluster.log_of_try(task, number)
            accepted = {submission.task_id for submission in api.submissions}
            kept = stored_ids(folder) | recorded_ids(folder)
            in_log = {image_task_id for image_task_id in accepted - kept if image_task_id in log}
            filler.unlink()
        forgotten = accepted - kept - in_log
        found = [f"{image_task_id} was accepted, but is in no record and no log" for image_task_id in forgotten]
        if not in_log & on_the_way:
            found.append("the disk had room for every id, so nothing was tested")
        scene.wait_for_end("The batch with a disk that has room again", [task], seconds=_SECONDS)
        if scene.states([task]) != {"success"}:
            scene.clear([task], only_failed=True)
            scene.wait_for_end("Clearing the batch whose disk was full", [task], seconds=_SECONDS)
        found += gather_batch(dag, api, scene.images, {}).complaints()
        if len(api.submissions) != dag.images:
            found.append(f"{len(api.submissions)} submissions were accepted for {dag.images} images")
    scene.complaints.extend(f"full disk: {complaint}" for complaint in found)
    return (
        f"A batch of {dag.images} images whose disk was full for a while: of its {len(accepted)} submissions, "
        f"{len(in_log)} ids had no room and are in its log, and {len(forgotten)} were lost. With room again it "
        f"finished with {len(api.submissions)} submissions in total."
    )


def _is_over(scene: Scene, dag: BatchDag, number: int) -> bool:
    row = scene.cluster.task_rows()[dag.task.instance_key]
    return row.try_number > number or row.state in OVER or row.state == "up_for_retry"


def _fill(file: Path) -> None:
    """Write until there is no room for another byte."""
    with file.open("wb", buffering=0) as stream:
        for piece in (_PIECE, b"\0"):
            try:
                while stream.write(piece) == len(piece):
                    pass
            except OSError:
                continue


@contextmanager
def _small_disk(folder: Path) -> Iterator[None]:
    """Mount a small file system on a new folder."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_DISK_MEGABYTES}m", "none", str(folder)], check=True)
    try:
        yield
    finally:
        # Lazily: a process that is still being killed may have a file open.
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
