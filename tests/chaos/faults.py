"""The fault test: draw hundreds of images while one request in five gets a fault."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from airflow_provider_qwenimage.sandbox import Sandbox
from tests.chaos.cluster import ASKS, SUBMITTED
from tests.chaos.drawings import DrawingDag, Group
from tests.chaos.judge import Verdict
from tests.chaos.scene import Scene
from tests.chaos.watching import FolderWatch

CONN_ID = "faults"
BLIPS_CONN_ID = "blips"
TIMEOUT_SECONDS = 2

_SECONDS = 900.0
_MOST_ROUNDS = 8
_MOST_DOWNLOADS = 3000
_FAILED = "Task failed with exception"
# One request in five.
_FAULTY_SHARE = 0.2
_BLIP_SHARE = 0.1
_SHARES = {
    "server_error_share": 0.05,
    "rate_limit_share": 0.05,
    "html_share": 0.04,
    "drop_share": 0.02,
    "drop_after_share": 0.02,
    "hang_share": 0.01,
    "hang_after_share": 0.01,
}
_IMAGE_FAULTS = (
    "truncate",
    "truncate",
    "truncate_with_length",
    "truncate_with_length",
    "server_error",
    "rate_limit",
    "html",
    "drop",
    "drop_after",
    "hang",
)


def faulty_api(seed: int) -> Sandbox:
    """Return an API that answers one request in five wrongly or too late."""
    api = Sandbox(
        seconds_per_image=2.0,
        retry_after=1.0,
        hang_seconds=2.0 * TIMEOUT_SECONDS,
        fault_seed=seed,
        # Images have their own faults, because only an image can be truncated.
        fault_paths=("generate", "status"),
        **_SHARES,
    )
    draw = random.Random(seed)
    api.script(
        "image",
        *(draw.choice(_IMAGE_FAULTS) if draw.random() < _FAULTY_SHARE else "ok" for _ in range(_MOST_DOWNLOADS)),
    )
    return api


def forgetful_api(seed: int) -> Sandbox:
    """Return an API that does not know an image task for a second, and then refuses three status reads in ten."""
    return Sandbox(
        seconds_per_image=2.0,
        unknown_seconds=1.0,
        unauthorized_share=_BLIP_SHARE,
        forbidden_share=_BLIP_SHARE,
        not_found_share=_BLIP_SHARE,
        fault_seed=seed,
        # A submission that is refused ends its task, rightly.
        fault_paths=("status",),
    )


def blip_dags(*, quick: bool) -> list[DrawingDag]:
    """Return the DAGs whose status reads are refused now and then, which must cost neither a retry nor a Clear."""
    number = 3 if quick else 40
    groups = [Group("draw", deferrable=False, mapped=number), Group("draw_deferred", deferrable=True, mapped=number)]
    return [DrawingDag("blips", BLIPS_CONN_ID, groups, retries=0)]


def fault_dags(*, quick: bool) -> list[DrawingDag]:
    """Return the DAGs: mapped and unmapped tasks that wait in the worker and in the triggerer."""
    worker, deferred, single = (6, 4, 1) if quick else (170, 100, 15)
    shapes = {
        "faults_worker_mapped": [Group("draw", deferrable=False, mapped=worker)],
        "faults_deferred_mapped": [Group("draw", deferrable=True, mapped=deferred)],
        "faults_worker": [Group(f"draw_{number}", deferrable=False) for number in range(single)],
        "faults_deferred": [Group(f"draw_{number}", deferrable=True) for number in range(single)],
    }
    return [DrawingDag(name, CONN_ID, groups, retries=3, poll_interval=1.0) for name, groups in shapes.items()]


@dataclass(frozen=True)
class FaultResult:
    """The counts of the fault test.

    Attributes:
        images: Images requested.
        requests: Requests that the API received.
        faults: Faults that the API injected, by kind.
        cleared: Tasks that stopped as unknown and were cleared.
        paid_twice: Tasks that paid again without a Clear.
        lost: Images that are missing or incomplete.
        wait_failures: Tries that failed after their image was submitted.
        seen: Files that the watch checked.
        partial: Files that were incomplete when the watch checked them.
    """

    images: int
    requests: int
    faults: Counter[str]
    cleared: int
    paid_twice: int
    lost: int
    wait_failures: int
    seen: int
    partial: int

    @property
    def rows(self) -> list[tuple[str, int]]:
        return [
            ("images", self.images),
            ("requests", self.requests),
            ("faults", self.faults.total()),
            *((f"  {kind.replace('_', ' ')}", number) for kind, number in self.faults.most_common()),
            ("stopped as unknown, then cleared", self.cleared),
            ("paid twice", self.paid_twice),
            ("lost", self.lost),
            ("failures while waiting or downloading", self.wait_failures),
            ("files checked on arrival", self.seen),
            ("  incomplete", self.partial),
        ]


def draw_through_faults(
    scene: Scene, dags: Sequence[DrawingDag], title: str = "one fault in five requests"
) -> FaultResult:
    """Draw the images of all DAGs, clear the tasks that stop as unknown until none does, and check the result.

    Args:
        dags: They have one connection.
        title: The faults, for the progress line.
    """
    drawings = [drawing for dag in dags for drawing in dag.drawings]
    with FolderWatch(scene.images) as watch:
        for dag in dags:
            scene.cluster.run(dag)
        scene.wait_for_end(f"{len(drawings)} images with {title}", drawings, seconds=_SECONDS)
        for _ in range(_MOST_ROUNDS):
            verdicts = {evidence.name: evidence.verdict for evidence in scene.gather(drawings)}
            stopped = [drawing for drawing in drawings if verdicts[drawing.key] is Verdict.UNKNOWN]
            if not stopped:
                break
            scene.clear(stopped, only_failed=True)
            scene.wait_for_end("Clearing the tasks that stopped as unknown", stopped, seconds=_SECONDS)
    found = scene.gather(drawings)
    broken = [evidence for evidence in found if evidence.verdict is not Verdict.STORED]
    twice = [evidence for evidence in found if evidence.paid_twice]
    failures = [
        f"faults: {drawing.key}: try {number} failed after its image was submitted"
        for drawing in drawings
        for number, log in enumerate(scene.cluster.tries(drawing), start=1)
        if _FAILED in log and not any(words in log for words in ASKS) and any(words in log for words in SUBMITTED)
    ]
    scene.complaints.extend([f"faults: should have stored its image: {evidence}" for evidence in broken])
    scene.complaints.extend([f"faults: paid twice: {evidence}" for evidence in twice])
    scene.complaints.extend(failures)
    scene.complaints.extend([f"faults: {name} was incomplete under its final name" for name in watch.partial])
    requests = scene.apis[dags[0].conn_id].requests
    kinds = Counter(request.behaviour for request in requests if request.behaviour != "ok")
    return FaultResult(
        images=len(drawings),
        requests=len(requests),
        faults=kinds,
        cleared=sum(scene.clears[drawing.instance_key] for drawing in drawings),
        paid_twice=len(twice),
        lost=len(broken),
        wait_failures=len(failures),
        seen=watch.seen,
        partial=len(watch.partial),
    )
