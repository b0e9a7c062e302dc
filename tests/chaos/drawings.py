"""The generate tasks of the crash test, and their DAG files."""

from __future__ import annotations

import pprint
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tests.chaos.tasks import Task

_DAG_FILE = '''"""Written by the crash test."""

from datetime import timedelta

import pendulum
from airflow.providers.common.compat.sdk import DAG

from airflow_provider_qwenimage import QwenImageGenerateOperator
from tests.chaos import checkpoints

checkpoints.install()

TASKS = {tasks}

with DAG(
    {dag_id!r},
    schedule=None,
    start_date=pendulum.datetime(2024, 1, 1),
    max_active_tasks=64,
    default_args={{"retries": {retries!r}, "retry_delay": timedelta(0)}},
):
    for arguments, prompts, is_mapped in TASKS:
        if is_mapped:
            QwenImageGenerateOperator.partial(**arguments).expand(prompt=prompts)
        else:
            QwenImageGenerateOperator(prompt=prompts[0], **arguments)
'''


@dataclass(frozen=True)
class Drawing(Task):
    """A task that draws one image, with a unique prompt.

    Attributes:
        stores: Whether the task has an `output_path`; otherwise it only waits for the image.
    """

    stores: bool

    @property
    def prompt(self) -> str:
        return f"{self.key}: a lighthouse"


@dataclass(frozen=True)
class Group:
    """A mapped task with that many images, or (mapped=0) a task that is not mapped."""

    task_id: str
    deferrable: bool
    mapped: int = 0
    stores: bool = True


@dataclass(frozen=True)
class DrawingDag:
    """A DAG of generate tasks.

    Attributes:
        conn_id: Its connection, which is also the name of its sandbox.
        retries: Airflow's retries for each task.
        poll_interval: In seconds.
    """

    dag_id: str
    conn_id: str
    groups: Sequence[Group]
    retries: int
    poll_interval: float = 0.5

    @cached_property
    def drawings(self) -> list[Drawing]:
        return [
            Drawing(self.dag_id, group.task_id, index, group.stores)
            for group in self.groups
            for index in (range(group.mapped) if group.mapped else (-1,))
        ]

    def file(self, output_path: str) -> str:
        """Return the text of its DAG file."""
        tasks = []
        for group in self.groups:
            arguments: dict[str, Any] = {
                "task_id": group.task_id,
                "qwenimage_conn_id": self.conn_id,
                "size": "768*1024",
                "deferrable": group.deferrable,
                "poll_interval": self.poll_interval,
                "timeout": 600,
            }
            arguments |= {"output_path": output_path} if group.stores else {"wait_for_completion": True}
            prompts = [drawing.prompt for drawing in self.drawings if drawing.task_id == group.task_id]
            tasks.append((arguments, prompts, bool(group.mapped)))
        return _DAG_FILE.format(dag_id=self.dag_id, retries=self.retries, tasks=pprint.pformat(tasks))


def mixed_groups(mapped: int, *, all_store: bool = False, deferrable: bool | None = None) -> list[Group]:
    """Return every kind of task: mapped and unmapped, waiting in the worker and in the triggerer.

    Args:
        mapped: The number of images of each mapped task.
        all_store: Whether every task has an `output_path`.
        deferrable: True for deferrable tasks only, False for the others only, None for both.
    """
    groups = []
    for waits, name in ((False, "worker"), (True, "deferred")):
        if deferrable in (None, waits):
            groups.append(Group(f"{name}_single", waits))
            groups.append(Group(f"{name}_unstored", waits, stores=all_store))
            groups.append(Group(f"{name}_mapped", waits, mapped=mapped))
    return groups
