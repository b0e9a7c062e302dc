"""What a test sees of a DAG run: the ends of its tasks, their XComs, errors and images."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, Self

from airflow_provider_qwenimage.airflow_versions import HAS_SUPERVISOR

if TYPE_CHECKING:
    from PIL.Image import Image

Key = tuple[str, int]
"""A task id and a map index."""


@dataclass(frozen=True)
class ImageResult:
    """An image that a task returned.

    Attributes:
        path: The path or URL of the stored image, or None if it was not stored.
        url: The address of the image at the API, or None if it was stored by an earlier run.
    """

    path: str | None
    url: str | None

    def open(self) -> Image:
        """Return the stored image, decoded.

        Raises:
            ValueError: If it was not stored.
            OSError: If its file cannot be read, or is not an image.
        """
        from PIL import Image

        from airflow_provider_qwenimage.storage.paths import path_of

        if self.path is None:
            raise ValueError(f"path is None, since the task did not store {self.url}; it must have an output_path.")
        with path_of(self.path).open("rb") as stream, Image.open(stream) as image:
            image.load()
            return image


@dataclass
class TaskResult:
    """How one task instance ended.

    Attributes:
        state: The state in Airflow, such as ``success``, ``failed``, ``skipped`` or ``upstream_failed``.
        tries: The number of tries.
        xcoms: The pushed values, by key.
        errors: The exceptions that its tries ended with, oldest first.
    """

    task_id: str
    map_index: int
    state: str | None
    tries: int
    xcoms: dict[str, Any] = field(default_factory=dict)
    errors: list[BaseException] = field(default_factory=list)

    @property
    def returned(self) -> Any:
        """What the task returned; None if it returned nothing."""
        return self.xcoms.get("return_value")

    @property
    def error(self) -> BaseException | None:
        """The exception of the last try that failed, or None."""
        return self.errors[-1] if self.errors else None

    @property
    def images(self) -> list[ImageResult]:
        """The images that the task returned; of a batch, those of its manifest that were drawn, in their order."""
        return list(_images_in(self.returned))

    @property
    def name(self) -> str:
        """The task id, with the map index of a mapped task."""
        return self.task_id if self.map_index < 0 else f"{self.task_id}[{self.map_index}]"

    def describe(self) -> str:
        """Return its state and its error as a text."""
        tries = f" after {self.tries} tries" if self.tries > 1 else ""
        error = "".join(f": {type(error).__name__}: {error}" for error in self.errors[-1:])
        return f"{self.name} {self.state}{tries}{error}"


class RunState(str):
    """A state, with the reason for it, which pytest shows if it is not the expected one.

    Attributes:
        explanation: The failed tasks with their errors, one a line.
    """

    __slots__ = ("explanation",)
    explanation: str

    def __new__(cls, state: str, explanation: str) -> Self:
        """Create it from the state and the reason."""
        new = super().__new__(cls, state)
        new.explanation = explanation
        return new


@dataclass
class DagRunResult:
    """How a DAG run ended.

    Attributes:
        state: ``success`` or ``failed``.
        tasks: The task instances, by task id and map index (-1 if the task is not mapped).
    """

    dag_id: str
    run_id: str
    state: str
    tasks: Mapping[Key, TaskResult]

    def __post_init__(self) -> None:
        self.state = RunState(self.state, self.report())

    def __getitem__(self, task_id: str) -> TaskResult:
        """Return a task that is not mapped.

        Raises:
            KeyError: If the run has no such task, or it is mapped.
        """
        if (task_id, -1) in self.tasks:
            return self.tasks[task_id, -1]
        if self.mapped(task_id):
            raise KeyError(f"{task_id} is a mapped task; use mapped({task_id!r})")
        known = ", ".join(sorted({name for name, _ in self.tasks}))
        raise KeyError(f"{task_id} is not a task of the run; it has {known}")

    def mapped(self, task_id: str) -> Sequence[TaskResult]:
        """Return the instances of a mapped task, in the order of their map indexes."""
        return [task for (name, index), task in sorted(self.tasks.items()) if name == task_id and index >= 0]

    @property
    def images(self) -> list[ImageResult]:
        """The images of all tasks, in the order of task ids and map indexes."""
        return [image for _, task in sorted(self.tasks.items()) for image in task.images]

    @property
    def failures(self) -> list[TaskResult]:
        """The tasks that failed; not those after them."""
        return [task for _, task in sorted(self.tasks.items()) if task.state == "failed"]

    def report(self) -> str:
        """Return the failed tasks with their errors, one a line."""
        return "\n".join(task.describe() for task in self.failures)

    def __repr__(self) -> str:
        reasons = "".join(f"; {task.describe()}" for task in self.failures)
        return f"<DAG run of {self.dag_id}: {self.state}{reasons}>"


def _images_in(returned: Any) -> Iterator[ImageResult]:
    """Find images in what a task returned: an operator's dict, a batch's, or a sensor's list of addresses."""
    if isinstance(returned, Mapping) and isinstance(returned.get("manifest"), str):
        for row in _rows(returned["manifest"]):
            yield from _images_in({name: row.get(name) for name in ("image_urls", "paths")})
    elif isinstance(returned, Mapping):
        paths, urls = (_texts(returned.get(name)) for name in ("paths", "image_urls"))
        for number in range(max(len(paths), len(urls))):
            yield ImageResult(*(values[number] if number < len(values) else None for values in (paths, urls)))


def _texts(value: Any) -> list[str]:
    return [item for item in value if isinstance(item, str)] if isinstance(value, list | tuple) else []


def _rows(manifest: str) -> Iterable[Mapping[str, Any]]:
    from airflow_provider_qwenimage.storage.paths import path_of

    return [json.loads(line) for line in path_of(manifest).read_bytes().splitlines()]


def read_run(dag_id: str, run_id: str, errors: Mapping[Key, list[BaseException]]) -> DagRunResult:
    """Read a DAG run and its tasks from Airflow's database.

    Args:
        errors: The exceptions of the tasks' tries, which the database does not have.
    """
    from airflow.models.dagrun import DagRun
    from airflow.utils.session import create_session

    xcoms = _read_xcoms(dag_id, run_id)
    with create_session() as session:
        (run,) = DagRun.find(dag_id=dag_id, run_id=run_id, session=session)
        tasks = {}
        for instance in run.get_task_instances(session=session):
            key = (instance.task_id, instance.map_index)
            state = None if instance.state is None else str(instance.state)
            tasks[key] = TaskResult(
                *key, state, tries=instance.try_number, xcoms=xcoms[key], errors=list(errors.get(key, ()))
            )
        return DagRunResult(dag_id, run_id, str(run.state), tasks)


def _read_xcoms(dag_id: str, run_id: str) -> dict[Key, dict[str, Any]]:
    from airflow.utils.session import create_session
    from sqlalchemy import select

    models: Any = import_module("airflow.models.xcom")
    # The class that stores and decodes values, which may be the user's own. In Airflow 2 it is the model too.
    backend: Any = import_module("airflow.sdk.execution_time.xcom" if HAS_SUPERVISOR else "airflow.models.xcom").XCom
    model = models.XComModel if HAS_SUPERVISOR else backend
    found: dict[Key, dict[str, Any]] = defaultdict(dict)
    with create_session() as session:
        columns = (model.task_id, model.map_index, model.key, model.value)
        for row in session.execute(select(*columns).where(model.dag_id == dag_id, model.run_id == run_id)):
            # Links of tasks are XComs as well.
            if row.key.startswith("_link_"):
                continue
            try:
                value = backend.deserialize_value(row)
            except ImportError:
                # Its class is not in Airflow's list of those allowed, so no task can pull it either.
                value = row.value
            found[row.task_id, row.map_index][row.key] = value
    return found
