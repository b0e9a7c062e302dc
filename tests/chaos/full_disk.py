"""The part of the crash test that fills the disk between the intents and the ids of a batch."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from airflow_provider_qwenimage.sandbox import Sandbox
from tests.chaos.batch_dag import BatchDag
from tests.chaos.batch_evidence import gather_batch, read_manifest, recorded_ids, stored_ids
from tests.chaos.batch_judge import unknown
from tests.chaos.cluster import OVER
from tests.chaos.scene import Scene
from tests.integration.standalone import wait_for

_SECONDS = 180.0
_ANSWER_SECONDS = 0.3
# Time to fill the disk between an intent and its id.
_LATE_ANSWER_SECONDS = 3.0
_MOST_ROUNDS = 4
_DISK_MEGABYTES = 48
_FILLER = ".filler"
_UNRECORDED = re.compile(r"image task (\w+) is accepted, and its id could not be recorded")
_PIECE = b"\0" * 2**16


def full_disk_dag() -> BatchDag:
    """Return the batch whose disk is full for a while."""
    return BatchDag("batch_full_disk", images=30, max_in_flight=8)


def late_api() -> Sandbox:
    """Return an API that accepts submissions at once and answers them a moment later."""
    return Sandbox(seconds_per_image=1.0, hang_after_share=1.0, hang_seconds=_ANSWER_SECONDS, fault_paths=("generate",))


def fill_disk(scene: Scene, dag: BatchDag) -> str:
    """Fill the disk of a batch while it draws, and free it after a try has ended. Return a sentence to print.

    No id may be lost: the error must name what the disk had no room for, and only a Clear may pay for it again.
    """
    if os.geteuid() != 0:
        return "Not run: a batch on a full disk, because only root can mount a small disk."
    api, task, folder = scene.apis[dag.dag_id], dag.task, dag.folder(scene.images)
    with _small_disk(folder):
        filler = folder / _FILLER
        with scene.progress.step("A batch whose disk is full"):
            scene.cluster.run(dag)
            wait_for("a batch in the middle", lambda: len(stored_ids(folder)) >= dag.images / 4, _SECONDS)
            api.configure(hang_seconds=_LATE_ANSWER_SECONDS)
            late = time.time()
            wait_for("a submission", lambda: api.submissions[-1].accepted_at > late, _SECONDS)
            number = scene.cluster.task_rows()[task.instance_key].try_number
            _fill(filler)
            wait_for("the end of a try", lambda: _is_over(scene, dag, number), _SECONDS)
            log = scene.cluster.log_of_try(task, number)
            keys = {each.task_id: (each.request["prompt"], each.request["seed"]) for each in api.submissions}
            named = keys.keys() & set(_UNRECORDED.findall(log))
            forgotten = keys.keys() - stored_ids(folder) - recorded_ids(folder) - named
            filler.unlink()
            api.configure(hang_seconds=_ANSWER_SECONDS)
        found = [f"{image_task_id} was accepted, but is in no record and no error" for image_task_id in forgotten]
        if not named:
            found.append("the disk had room for every id, so nothing was tested")
        # The error says that a Clear may submit these again; a row that stopped as unknown is submitted after a Clear.
        consented = Counter(keys[image_task_id] for image_task_id in named)
        for _ in range(_MOST_ROUNDS):
            scene.wait_for_end("The batch with a disk that has room again", [task], seconds=_SECONDS)
            if scene.states([task]) == {"success"}:
                break
            consented |= unknown(read_manifest(folder))
            scene.clear([task], only_failed=True)
        found += gather_batch(dag, api, scene.images, consented).complaints()
    scene.complaints.extend(f"full disk: {complaint}" for complaint in found)
    return (
        f"A batch of {dag.images} images whose disk was full for a while: of its {len(keys)} submissions, the ids of "
        f"{len(named)} had no room and are in its error, and {len(forgotten)} were lost. With room again and after "
        f"{scene.clears[task.instance_key]} Clears it finished with {len(api.submissions)} submissions in total."
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
