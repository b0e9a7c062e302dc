"""The common part of all tasks and DAGs of the crash test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from tests.chaos.checkpoints import key_of


@dataclass(frozen=True)
class Task:
    """A task instance of a DAG that has one run; `map_index` is -1 if it is not mapped."""

    dag_id: str
    task_id: str
    map_index: int

    @property
    def instance_key(self) -> tuple[str, str, int]:
        return self.dag_id, self.task_id, self.map_index

    @property
    def key(self) -> str:
        return key_of(*self.instance_key)


class Dag(Protocol):
    """A DAG that can write its own file."""

    @property
    def dag_id(self) -> str: ...

    def file(self, output_path: str) -> str:
        """Return the text of its DAG file.

        Args:
            output_path: The URL of the folder for all images of the crash test.
        """
