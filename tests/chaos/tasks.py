"""What all tasks and DAGs of the crash test have in common, whatever they draw."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from tests.chaos.checkpoints import key_of


@dataclass(frozen=True)
class Task:
    """A task instance of a DAG that has one run.

    Attributes:
        dag_id: Its DAG.
        task_id: Its task.
        map_index: Its place in a mapped task, or -1.
    """

    dag_id: str
    task_id: str
    map_index: int

    @property
    def place(self) -> tuple[str, str, int]:
        return self.dag_id, self.task_id, self.map_index

    @property
    def key(self) -> str:
        return key_of(*self.place)


class Dag(Protocol):
    """A DAG that can write its own file."""

    @property
    def dag_id(self) -> str: ...

    def file(self, output_path: str) -> str:
        """Return the text of its DAG file.

        Args:
            output_path: The URL of the folder for all images of the crash test.
        """
