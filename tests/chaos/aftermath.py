"""Do what a user does after the crashes: clear the tasks that stopped as unknown, and rerun a finished DAG run."""

from __future__ import annotations

from collections.abc import Sequence

from tests.chaos.drawings import Drawing
from tests.chaos.judge import Evidence, Verdict
from tests.chaos.scene import Scene

_SECONDS = 240.0


def clear_unknown(scene: Scene, drawings: Sequence[Drawing]) -> str:
    """Clear the tasks that stopped as unknown; each must submit once more and store. Return a sentence to print."""
    before = {evidence.name: evidence for evidence in scene.gather(drawings)}
    stopped = [drawing for drawing in drawings if before[drawing.key].verdict is Verdict.UNKNOWN]
    if not stopped:
        scene.complaints.append("clear: no task stopped as unknown, so clearing could not be tested")
        return "Cleared no task, because none stopped as unknown."
    scene.clear(stopped, only_failed=True)
    scene.wait_for_end("Clearing the tasks that stopped as unknown", stopped, seconds=_SECONDS)
    wrong = [after for after in scene.gather(stopped) if not _submitted_once_more(before[after.name], after)]
    scene.complaints.extend([f"clear: should have submitted once more and stored: {evidence}" for evidence in wrong])
    return (
        f"Cleared {len(stopped)} tasks that had stopped as unknown: {len(stopped) - len(wrong)} submitted exactly once "
        "more and stored their image."
    )


def run_again(scene: Scene, drawings: Sequence[Drawing]) -> str:
    """Clear finished tasks that stored their images, which must cost nothing. Return a sentence to print."""
    chosen = [drawing for drawing in drawings if drawing.stores]
    before = _credits(scene)
    rows_before = scene.cluster.task_rows()
    scene.clear(chosen, only_failed=False)
    scene.wait_for_end("Rerunning a finished DAG run", chosen, seconds=_SECONDS)
    spent = _credits(scene) - before
    rows = scene.cluster.task_rows()
    again = [evidence for evidence in scene.gather(chosen) if evidence.verdict is Verdict.STORED]
    keys = [drawing.instance_key for drawing in chosen]
    ran = sum(rows[key].try_number > rows_before[key].try_number for key in keys)
    if spent or len(again) < len(chosen) or ran < len(chosen):
        scene.complaints.append(
            f"rerun: {ran} of {len(chosen)} tasks ran, {len(again)} succeeded, for {spent:g} credits instead of 0"
        )
    return f"Reran a finished DAG run with {len(chosen)} stored images: {len(again)} succeeded, for {spent:g} credits."


def _credits(scene: Scene) -> float:
    return sum(api.credits_charged for api in scene.apis.values())


def _submitted_once_more(before: Evidence, after: Evidence) -> bool:
    return after.verdict is Verdict.STORED and after.accepted == before.accepted + 1 and not after.paid_twice
