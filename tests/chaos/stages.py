"""The stages of a generate task at which its process is killed, and how the task must end after each kill."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from airflow_provider_qwenimage.sandbox import Sandbox
from tests.chaos import checkpoints
from tests.chaos.drawings import DrawingDag, Group, mixed_groups
from tests.chaos.judge import Expectation, Verdict

_RETRIES = 6
_RANDOM_RETRIES = 12
# Longer than the test, which decides itself when these images are drawn.
NEVER_SECONDS = 3600.0
STORED = Expectation(Verdict.STORED)
_UNKNOWN = Expectation(Verdict.UNKNOWN)
# The process is killed just before it sends the request, and the next process cannot know whether it was sent.
_UNKNOWN_UNSENT = Expectation(Verdict.UNKNOWN, accepted=frozenset({0}))
# A task that is killed at any moment must end as stored or as unknown.
RANDOM = Expectation(None, accepted=frozenset({0, 1}))


@dataclass(frozen=True)
class Stage:
    """A stage in the life of a task at which its process is killed.

    Attributes:
        title: The title of its row in the table.
        dag: The tasks that are killed at this stage.
        expected: How these tasks must end.
        kills_per_task: How often each task is killed.
        checkpoint: The checkpoint at which the process stops, or None.
        hang: The route and the scripted behaviour that hold the process instead of a checkpoint.
        seconds_per_image: How long an image takes.
    """

    title: str
    dag: DrawingDag
    expected: Expectation
    kills_per_task: int = 1
    checkpoint: str | None = None
    hang: tuple[str, str] | None = None
    seconds_per_image: float = 2.0

    @property
    def name(self) -> str:
        return self.dag.dag_id

    @property
    def planned_kills(self) -> int:
        return self.kills_per_task * len(self.dag.drawings)


def all_stages(*, quick: bool) -> list[Stage]:
    """Return the stages in the order of a task's life; `quick` makes fewer tasks."""
    few, many = (1, 1) if quick else (1, 3)
    mixed = mixed_groups(many)
    storing = mixed_groups(many, all_store=True)
    waiting = mixed_groups(1 if quick else 4, deferrable=False)
    # Two more than needed, because a task whose image is drawn in the meantime does not defer again.
    deferring = mixed_groups(1 if quick else 10, deferrable=True)
    return [
        Stage(
            "before the intent is stored",
            _dag("before_intent", mixed_groups(few)),
            STORED,
            kills_per_task=2,
            checkpoint=checkpoints.INTENT,
        ),
        Stage(
            "after the intent, before the request",
            _dag("before_request", mixed),
            _UNKNOWN_UNSENT,
            checkpoint=checkpoints.REQUEST,
        ),
        Stage(
            "accepted, not answered",
            _dag("before_answer", mixed),
            _UNKNOWN,
            hang=("generate", "hang_after"),
        ),
        Stage("answered, id not stored", _dag("before_id", mixed), _UNKNOWN, checkpoint=checkpoints.ID),
        Stage("id stored, then a late write of the intent", _dag("late", mixed), STORED, checkpoint=checkpoints.LATE),
        Stage("waiting in the worker", _dag("waiting", waiting), STORED, kills_per_task=2, checkpoint=checkpoints.WAIT),
        Stage(
            "deferring to the triggerer",
            _dag("deferring", deferring),
            STORED,
            checkpoint=checkpoints.DEFER,
            seconds_per_image=6.0,
        ),
        Stage(
            "resuming after the triggerer",
            _dag("resuming", deferring),
            STORED,
            checkpoint=checkpoints.RESUME,
            seconds_per_image=6.0,
        ),
        Stage(
            "downloading",
            _dag("downloading", mixed_groups(few, all_store=True)),
            STORED,
            kills_per_task=2,
            hang=("image", "hang"),
        ),
        Stage("stored, end not recorded", _dag("stored", storing), STORED, checkpoint=checkpoints.STORED),
        Stage("end recorded", _dag("finished", mixed), STORED, checkpoint=checkpoints.FINISHED),
    ]


def triggerer_dag(*, quick: bool) -> DrawingDag:
    """Return the tasks that wait while the triggerer is killed."""
    return _dag("triggerer", mixed_groups(1 if quick else 6, deferrable=True))


def random_dags(*, quick: bool) -> list[DrawingDag]:
    """Return the tasks that are killed at random; the later DAGs are used if the first give too few kills."""
    return [
        DrawingDag(f"random_{number}", "random", mixed_groups(1 if quick else 6), _RANDOM_RETRIES)
        for number in range(1, 3 if quick else 9)
    ]


def finished_dag(chosen: Sequence[Stage]) -> DrawingDag:
    """Return the DAG whose run is rerun; it has all kinds of tasks."""
    return next(stage.dag for stage in chosen if stage.checkpoint == checkpoints.FINISHED)


def apis(chosen: Sequence[Stage]) -> dict[str, Sandbox]:
    """Return the sandboxes, one for each stage, so that each stage has its own books and faults."""
    seconds = {stage.name: stage.seconds_per_image for stage in chosen}
    seconds |= {"triggerer": NEVER_SECONDS, "random": 4.0}
    return {conn_id: Sandbox(seconds_per_image=value, hang_seconds=60.0) for conn_id, value in seconds.items()}


def _dag(name: str, groups: Sequence[Group]) -> DrawingDag:
    return DrawingDag(name, name, groups, _RETRIES)
