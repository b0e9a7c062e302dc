"""What a user does after the crashes: clears what stopped as unknown, and clears a finished run to run it again."""

from __future__ import annotations

from collections.abc import Sequence

from tests.chaos.drawings import Drawing
from tests.chaos.judge import Evidence, Verdict
from tests.chaos.scene import Scene

_SECONDS = 240.0


def clear_what_stopped(scene: Scene, drawings: Sequence[Drawing]) -> str:
    """Clear the tasks that stopped as unknown, and say what came of it: each must submit once, and store."""
    before = {evidence.name: evidence for evidence in scene.gather(drawings)}
    stopped = [drawing for drawing in drawings if before[drawing.key].verdict is Verdict.UNKNOWN]
    if not stopped:
        scene.complaints.append("Clear: no task stopped as unknown, so there was nothing to clear")
        return "Cleared: nothing, because no task stopped as unknown."
    scene.clear(stopped, only_failed=True)
    scene.follow("The tasks that stopped as unknown, cleared", stopped, seconds=_SECONDS)
    wrong = [after for after in scene.gather(stopped) if not _submitted_once_more(before[after.name], after)]
    scene.complaints.extend([f"Clear: must have submitted once more and stored: {evidence}" for evidence in wrong])
    return (
        f"Cleared {len(stopped)} tasks that had stopped as unknown: {len(stopped) - len(wrong)} made exactly one new "
        "submission and ended with their image."
    )


def run_again(scene: Scene, drawings: Sequence[Drawing]) -> str:
    """Clear finished tasks that stored their images, and say what it cost: nothing."""
    chosen = [drawing for drawing in drawings if drawing.stores]
    before = _credits(scene)
    tries = {drawing.place: scene.cluster.look()[drawing.place].try_number for drawing in chosen}
    scene.clear(chosen, only_failed=False)
    scene.follow("A finished DAG run, cleared", chosen, seconds=_SECONDS)
    spent = _credits(scene) - before
    rows = scene.cluster.look()
    again = [evidence for evidence in scene.gather(chosen) if evidence.verdict is Verdict.STORED]
    ran = sum(rows[place].try_number > number for place, number in tries.items())
    if spent or len(again) < len(chosen) or ran < len(chosen):
        scene.complaints.append(
            f"Run again: {ran} of {len(chosen)} tasks ran, {len(again)} succeeded, for {spent:g} credits instead of 0"
        )
    return (
        f"Ran a finished DAG run with {len(chosen)} stored images again: {len(again)} succeeded, for {spent:g} credits."
    )


def _credits(scene: Scene) -> float:
    return sum(api.credits_charged for api in scene.apis.values())


def _submitted_once_more(before: Evidence, after: Evidence) -> bool:
    return after.verdict is Verdict.STORED and after.accepted == before.accepted + 1 and not after.paid_twice
