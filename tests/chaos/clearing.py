"""The part of the crash test that clears tasks while the answer to their submission is on its way."""

from __future__ import annotations

from collections.abc import Mapping

from airflow_provider_qwenimage.sandbox import Sandbox
from tests.chaos.cluster import InstanceKey, TaskRow
from tests.chaos.drawings import Drawing, DrawingDag, mixed_groups
from tests.chaos.judge import Evidence, Verdict
from tests.chaos.scene import Scene

CONN_ID = "cleared"
_SECONDS = 180.0
# After the Clear, Airflow refuses the next heartbeat of the process, and kills it five seconds after a SIGTERM.
_ANSWER_SECONDS = 2.0
_WHERE_THE_ID_IS = "log of try 1"


def cleared_dag(*, quick: bool) -> DrawingDag:
    """Return the tasks that are cleared while they submit."""
    return DrawingDag(CONN_ID, CONN_ID, mixed_groups(1 if quick else 4), retries=3)


def late_api() -> Sandbox:
    """Return an API that accepts submissions at once and answers them late."""
    return Sandbox(seconds_per_image=2.0, hang_after_share=1.0, hang_seconds=_ANSWER_SECONDS, fault_paths=("generate",))


def clear_while_submitting(scene: Scene, dag: DrawingDag) -> str:
    """Clear each task once while it submits, and those that stop as unknown once more. Return a sentence to print.

    A task with a folder must find its image there. One without must name the log that has the id.
    """
    api, drawings = scene.apis[dag.conn_id], dag.drawings
    left = {drawing.prompt: drawing for drawing in drawings}

    def clear_if_submitting(_: Mapping[InstanceKey, TaskRow]) -> None:
        unanswered = {each.task_id for each in api.requests if each.route == "generate" and each.status is None}
        for submission in api.submissions:
            if submission.task_id in unanswered and (drawing := left.pop(submission.request["prompt"], None)):
                scene.cluster.clear_tasks([drawing], only_failed=False)

    scene.cluster.run(dag)
    scene.wait_for_end("Clearing tasks that submit", drawings, clear_if_submitting, seconds=_SECONDS)
    cleared = [drawing for drawing in drawings if drawing.prompt not in left]
    after = {evidence.name: evidence for evidence in scene.gather(drawings)}
    found = [f"{drawing.key} was not cleared while it submitted" for drawing in left.values()]
    found += [problem for drawing in cleared if (problem := _problem(scene, drawing, after[drawing.key]))]
    stopped = [drawing for drawing in drawings if after[drawing.key].verdict is Verdict.UNKNOWN]
    if stopped:
        scene.clear(stopped, only_failed=True)
        scene.wait_for_end("Clearing the tasks that stopped as unknown", stopped, seconds=_SECONDS)
        found += [
            f"should have submitted once more: {evidence}"
            for evidence in scene.gather(stopped)
            if (evidence.verdict, evidence.accepted) != (Verdict.STORED, 2)
        ]
    scene.complaints.extend(f"clear while submitting: {complaint}" for complaint in found)
    return (
        f"Cleared {len(cleared)} tasks while they submitted: {len(cleared) - len(stopped)} found their image, "
        f"{len(stopped)} without a folder stopped as unknown, named the log that has the id, and were cleared again."
    )


def _problem(scene: Scene, drawing: Drawing, evidence: Evidence) -> str | None:
    if evidence.accepted != 1:
        return f"should have been accepted once: {evidence}"
    if evidence.verdict is Verdict.STORED:
        return None
    if drawing.stores or evidence.verdict is Verdict.LOST:
        return f"should have found its image: {evidence}"
    tries = scene.cluster.tries(drawing)
    if _WHERE_THE_ID_IS not in tries[-1] or "Submitted image task" not in tries[0]:
        return f"should name the log that has the id: {evidence}"
    return None
