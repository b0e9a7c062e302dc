"""The stages of a generate task at which its process is killed, and what each of them promises."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from airflow_provider_qwenimage.sandbox import Sandbox
from tests.chaos import checkpoints
from tests.chaos.drawings import DrawingDag, Group, mixed_groups
from tests.chaos.judge import Expectation, Verdict

_RETRIES = 6
_RANDOM_RETRIES = 12
# Longer than the test: an image that is done when the test says so.
NEVER_SECONDS = 3600.0
STORED = Expectation(Verdict.STORED)
_UNKNOWN = Expectation(Verdict.UNKNOWN)
# The process dies just before the request leaves, and the next one cannot know.
_UNKNOWN_UNSENT = Expectation(Verdict.UNKNOWN, accepted=frozenset({0}))
# The two honest ends of a task that is killed at any moment.
RANDOM = Expectation(None, accepted=frozenset({0, 1}))


@dataclass(frozen=True)
class Stage:
    """A place in the life of a task where each process that comes there is killed.

    Attributes:
        title: Its row in the table.
        dag: The tasks that are killed there.
        expected: How they must end.
        kills_per_task: How often each of them is killed.
        checkpoint: The checkpoint, where the process stops by itself.
        hang: The request and the behaviour by which the API keeps the process at the place instead.
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
    """Return the stages in the order of a task's life.

    Args:
        quick: Fewer tasks, for a look while developing.
    """
    few, many = (1, 1) if quick else (1, 3)
    mixed = mixed_groups(many)
    storing = mixed_groups(many, all_store=True)
    waiting = mixed_groups(1 if quick else 4, deferrable=False)
    # Two more than needed: a task whose image is done meanwhile does not defer again.
    deferring = mixed_groups(1 if quick else 10, deferrable=True)
    return [
        Stage(
            "before the intent is written",
            _dag("before_intent", mixed_groups(few)),
            STORED,
            kills_per_task=2,
            checkpoint=checkpoints.INTENT,
        ),
        Stage(
            "between intent and request",
            _dag("before_request", mixed),
            _UNKNOWN_UNSENT,
            checkpoint=checkpoints.REQUEST,
        ),
        Stage(
            "accepted, no answer yet",
            _dag("before_answer", mixed),
            _UNKNOWN,
            hang=("generate", "hang_after"),
        ),
        Stage("answered, id not written", _dag("before_id", mixed), _UNKNOWN, checkpoint=checkpoints.ID),
        Stage("waiting in the worker", _dag("waiting", waiting), STORED, kills_per_task=2, checkpoint=checkpoints.WAIT),
        Stage(
            "going into the triggerer",
            _dag("deferring", deferring),
            STORED,
            checkpoint=checkpoints.DEFER,
            seconds_per_image=6.0,
        ),
        Stage(
            "back from the triggerer",
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
        Stage("stored, not yet noted", _dag("stored", storing), STORED, checkpoint=checkpoints.STORED),
        Stage("noted as finished", _dag("finished", mixed), STORED, checkpoint=checkpoints.FINISHED),
    ]


def triggerer_dag(*, quick: bool) -> DrawingDag:
    """Return the tasks that wait while the triggerer is killed."""
    return _dag("triggerer", mixed_groups(1 if quick else 6, deferrable=True))


def random_dags(*, quick: bool) -> list[DrawingDag]:
    """Return the tasks that are killed at random; the later DAGs are there in case that the first do not suffice."""
    return [
        DrawingDag(f"random_{number}", "random", mixed_groups(2 if quick else 6), _RANDOM_RETRIES)
        for number in range(1, 3 if quick else 9)
    ]


def finished_dag(chosen: Sequence[Stage]) -> DrawingDag:
    """Return the DAG whose run is run again: whole, and with all kinds of tasks."""
    return next(stage.dag for stage in chosen if stage.checkpoint == checkpoints.FINISHED)


def apis(chosen: Sequence[Stage]) -> dict[str, Sandbox]:
    """Return the stand-ins of the API, one for each stage, so that each has its own books and faults."""
    seconds = {stage.name: stage.seconds_per_image for stage in chosen}
    seconds |= {"triggerer": NEVER_SECONDS, "random": 4.0}
    return {conn_id: Sandbox(seconds_per_image=value, hang_seconds=60.0) for conn_id, value in seconds.items()}


def _dag(name: str, groups: Sequence[Group]) -> DrawingDag:
    return DrawingDag(name, name, groups, _RETRIES)
