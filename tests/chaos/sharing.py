"""The part of the crash test in which two runs draw the same images into one folder at the same time."""

from __future__ import annotations

import pprint
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from airflow_provider_qwenimage.sandbox import Sandbox
from tests.chaos.cluster import MAYBE_PAID, OVER, UNKNOWN
from tests.chaos.evidence import accepted_ids, whole_images
from tests.chaos.judge import Evidence, Expectation, Verdict, complaints
from tests.chaos.killing import kill_process
from tests.chaos.scene import Scene
from tests.integration.standalone import wait_for

_DAG_FILE = '''"""Written by the crash test."""

from datetime import timedelta

import pendulum
from airflow.providers.common.compat.sdk import DAG

from airflow_provider_qwenimage import QwenImageBatchOperator, QwenImageGenerateOperator

REQUESTS = {requests}

with DAG(
    {dag_id!r},
    schedule=None,
    start_date=pendulum.datetime(2024, 1, 1),
    max_active_tasks=64,
    default_args={{
        "qwenimage_conn_id": {dag_id!r},
        "output_path": {output_path!r},
        "poll_interval": 0.5,
        "timeout": 600,
        "retries": 6,
        "retry_delay": timedelta(0),
    }},
):
    QwenImageBatchOperator(task_id="batch", requests=REQUESTS, max_in_flight=4)
    # A prompt of the batch, and two equal ones that the batch does not have.
    QwenImageGenerateOperator.partial(task_id="draw", seed=7, size="768*1024").expand(prompt={prompts})
    QwenImageGenerateOperator.partial(task_id="draw_deferred", seed=7, size="768*1024", deferrable=True).expand(
        prompt={prompts}
    )
'''
_SECONDS = 240.0
_MOST_ROUNDS = 4
_RUNS = 2
_ASK = (UNKNOWN, MAYBE_PAID)
# The kill comes when no submission is on its way, so that it costs nobody a Clear unless the books are away just then.
_QUIET_SECONDS = 1.0
_ALONE = "A bridge that only the mapped tasks ask for"


@dataclass(frozen=True)
class SharingDag:
    """A DAG with a batch and mapped tasks that ask for some images of the batch; all of its runs use one folder.

    Attributes:
        dag_id: Also the name of its connection, its sandbox and its folder.
        images: How many images the batch asks for.
    """

    dag_id: str
    images: int

    @property
    def prompts(self) -> list[str]:
        """The prompts of the different images that are asked for."""
        return [*(f"A bridge {number}" for number in range(self.images)), _ALONE]

    @property
    def mapped(self) -> list[str]:
        """The prompts of the mapped tasks."""
        return [self.prompts[0], _ALONE, _ALONE]

    def folder(self, images: Path) -> Path:
        """Return its folder inside the folder for all images of the crash test."""
        return images / self.dag_id

    def file(self, output_path: str) -> str:
        """Return the text of its DAG file."""
        requests = [{"prompt": prompt, "seed": 7, "size": "768*1024"} for prompt in self.prompts[:-1]]
        return _DAG_FILE.format(
            dag_id=self.dag_id,
            requests=pprint.pformat(requests, indent=4),
            prompts=pprint.pformat(self.mapped),
            output_path=f"{output_path}/{self.dag_id}",
        )


def shared_api() -> Sandbox:
    """Return an API whose images take long enough for a kill between two submissions."""
    return Sandbox(seconds_per_image=4.0)


def run_at_once(scene: Scene, dag: SharingDag, *, kills: int) -> str:
    """Start two runs at once, and kill the batch of each run in turn. Return a sentence to print.

    Each image must be paid once, whoever asks for it and however often, and every task of both runs must have it.
    """
    folder, consented = dag.folder(scene.images), Counter[str]()
    folder.mkdir()
    with scene.progress.step("Two runs at once in one folder"):
        runs = [scene.cluster.trigger(dag.dag_id, {}) for _ in range(_RUNS)]
        made = sum(_kill_batch(scene, dag, runs[number % _RUNS]) for number in range(kills))
        for run_id in runs:
            try:
                scene.cluster.wait_for_run(dag.dag_id, run_id, _SECONDS)
            except AssertionError as error:
                # What was paid so far may explain it.
                scene.complaints.append(str(error))
        for _ in range(_MOST_ROUNDS):
            if not (stopped := [run_id for run_id in runs if _stopped_as_unknown(scene, dag, run_id)]):
                break
            # Clearing is the consent to pay once more for what may be paid.
            consented.update(prompt for prompt in dag.prompts if prompt not in whole_images(folder))
            for run_id in stopped:
                scene.cluster.clear(dag.dag_id, run_id)
                scene.cluster.wait_for_run(dag.dag_id, run_id, _SECONDS)
    states = Counter(state for run_id in runs for state in scene.cluster.states(dag.dag_id, run_id).values())
    found = gather_shared(
        dag.prompts,
        accepted_ids([scene.apis[dag.dag_id]]),
        whole_images(folder),
        consented,
        state="success" if set(states) == {"success"} else "failed",
    )
    title = "two runs at once"
    scene.complaints.extend(complaints(title, Expectation(Verdict.STORED, frozenset({1, 2})), found))
    if made < kills:
        scene.complaints.append(f"{title}: only {made} of {kills} kills hit a batch while it drew")
    if set(states) != {"success"}:
        scene.complaints.append(f"{title}: the tasks ended as {dict(states)}")
    accepted = sum(evidence.accepted for evidence in found)
    return (
        f"Two runs at once with {states.total()} tasks for {len(found)} images in one folder, {made} times killed: "
        f"{accepted} submissions were accepted, {consented.total()} images were cleared as unknown, "
        f"{sum(evidence.paid_twice for evidence in found)} were paid twice and "
        f"{sum(evidence.verdict is not Verdict.STORED for evidence in found)} lost."
    )


def gather_shared(
    prompts: list[str],
    accepted: dict[str, list[str]],
    stored: dict[str, str],
    consented: Counter[str],
    *,
    state: str,
) -> list[Evidence]:
    """Return the evidence on each image that several tasks have asked for.

    Args:
        prompts: The prompts of the images.
        accepted: The ids of the accepted image tasks of each prompt.
        stored: The ids of the image tasks whose images are stored, by prompt.
        consented: How often each prompt was cleared after a report that it may be paid.
        state: The state in which the tasks ended.
    """
    return [
        Evidence(
            name=prompt,
            state=state,
            accepted=len(accepted.get(prompt, ())),
            result_is_whole=stored.get(prompt) in accepted.get(prompt, ()),
            clears=consented[prompt],
        )
        for prompt in prompts
    ]


def _kill_batch(scene: Scene, dag: SharingDag, run_id: str) -> bool:
    """Kill the batch of a run when some images are accepted and no submission is on its way; False if it has ended."""
    api = scene.apis[dag.dag_id]
    before = len(api.submissions)
    task = scene.cluster.tasks(dag.dag_id, run_id).get(("batch", -1), {})

    def is_due() -> bool:
        nonlocal task
        task = scene.cluster.tasks(dag.dag_id, run_id).get(("batch", -1), {})
        submissions = api.submissions
        is_quiet = bool(submissions) and time.time() - submissions[-1].accepted_at > _QUIET_SECONDS
        return task.get("state") in OVER or (
            len(submissions) > before and is_quiet and task.get("state") == "running" and task.get("pid") is not None
        )

    wait_for("a quiet moment of a batch", is_due, _SECONDS)
    return task["state"] not in OVER and kill_process(task["pid"])


def _stopped_as_unknown(scene: Scene, dag: SharingDag, run_id: str) -> bool:
    return any(
        state == "failed" and any(words in scene.cluster.log(dag.dag_id, run_id, task_id) for words in _ASK)
        for (task_id, _), state in scene.cluster.states(dag.dag_id, run_id).items()
    )
