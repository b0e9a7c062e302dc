"""Build small DAGs, run them with `dag.test()` on the installed Airflow, and read their results."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable
from datetime import timedelta
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import Any

import pendulum
import pytest
from airflow.providers.common.compat.sdk import DAG, AirflowTaskTimeout, BaseOperator

from airflow_provider_qwenimage import QwenImageGenerateOperator
from airflow_provider_qwenimage.testing.dag_test import as_in_newest_airflow, make_known
from airflow_provider_qwenimage.testing.results import DagRunResult, TaskResult, read_run
from tests.airflows import AIRFLOW, AIRFLOW_3, HAS_TASK_STATES

# The three ways in which a sensor waits.
WAITS: dict[str, dict[str, Any]] = {
    "deferrable": {},
    "poke": {"deferrable": False, "mode": "poke"},
    "reschedule": {"deferrable": False, "mode": "reschedule"},
}

_TWINS = ["A tin robot", "A tin robot"]
# Ways to use the generate operator: its arguments. The `aim` fixture replaces the folder.
AIMS: dict[str, dict[str, Any]] = {
    "submitted": {},
    "submitted, mapped": {"prompts": _TWINS},
    "waited for": {"wait_for_completion": True},
    "waited for, deferred": {"wait_for_completion": True, "deferrable": True},
    "stored": {"output_path": "…"},
    "stored, deferred": {"output_path": "…", "deferrable": True},
    "stored, mapped": {"output_path": "…", "prompts": _TWINS},
    "stored, deferred, mapped": {"output_path": "…", "deferrable": True, "prompts": _TWINS},
}

_DRAW: dict[str, Any] = {"task_id": "draw", "poll_interval": 0.01}
_RECORD = ".submission-"

_numbers = count(1)


def is_recorded(aim: dict[str, Any]) -> bool:
    """Whether a submission is recorded for the next try: below Airflow 3.3 only in an output folder."""
    return HAS_TASK_STATES or "output_path" in aim


def with_aims(*names: str, recorded: bool = False) -> pytest.MarkDecorator:
    """Run a test for these `AIMS`; with `recorded`, only for those whose submissions are recorded."""
    chosen = [name for name in names if is_recorded(AIMS[name]) or not recorded]
    return pytest.mark.parametrize("aim", chosen, indirect=True)


class Crash(BaseException):
    """Ends a try as a killed process does: no handler for an Exception catches it."""


def crash_once(monkeypatch: pytest.MonkeyPatch, owner: object, name: str, *, after: bool = False) -> None:
    """Make the next call of a function end its try, before or after the function runs.

    Args:
        owner: The class or module of the function.
        after: Whether the function runs before the try ends.
    """
    function = getattr(owner, name)
    crashes = count()

    def crashing(*args: Any, **kwargs: Any) -> Any:
        is_time = next(crashes) == 0
        if is_time and not after:
            raise Crash(name)
        try:
            return function(*args, **kwargs)
        finally:
            if is_time:
                raise Crash(name)

    monkeypatch.setattr(owner, name, crashing)


class TaskEnd(TaskResult):
    """How one task instance ended; its errors include a skip."""

    @property
    def error(self) -> BaseException:
        """The only error of the only try."""
        (error,) = self.errors
        return error


class DagRun(DagRunResult):
    """How a DAG run ended."""

    tasks: dict[tuple[str, int], TaskEnd]

    def __getitem__(self, task_id: str) -> TaskEnd:
        return self.tasks[task_id, -1]

    def mapped(self, task_id: str) -> list[TaskEnd]:
        return [end for (name, index), end in sorted(self.tasks.items()) if name == task_id and index >= 0]


class TestDag:
    """A DAG whose tasks retry twice and at once, so that an unwanted retry cannot hide.

    Add tasks inside a `with` block, then call `run`.
    """

    __test__ = False

    def __init__(self, **arguments: Any) -> None:
        errors: dict[tuple[str, int], list[BaseException]] = defaultdict(list)

        # Not a method: Airflow 2 deep-copies default arguments, and the object of a method with them.
        def record(context: Any) -> None:
            instance = context["ti"]
            if context.get("exception") is not None:
                errors[instance.task_id, instance.map_index].append(context["exception"])

        self._errors = errors
        self._run_id = ""
        self.dag = DAG(
            f"integration_{next(_numbers)}",
            schedule=None,
            start_date=pendulum.datetime(2024, 1, 1),
            default_args={
                "retries": 2,
                "retry_delay": timedelta(0),
                "on_failure_callback": record,
                "on_retry_callback": record,
                "on_skipped_callback": record,
            },
            **arguments,
        )

    def __enter__(self) -> DAG:
        return self.dag.__enter__()

    def __exit__(self, *error: object) -> None:
        self.dag.__exit__(*error)

    @property
    def run_id(self) -> str:
        """The id of the last DAG run."""
        return self._run_id

    def run(self, **arguments: Any) -> DagRun:
        """Start a new DAG run."""
        self._errors.clear()
        make_known(self.dag)
        try:
            with as_in_newest_airflow():
                self._run_id = self.dag.test(**arguments).run_id
        except (Crash, AirflowTaskTimeout):
            # In Airflow 2, an error that is not an Exception also ends dag.test(), after the try's state is stored.
            self._run_id = _last_run_id(self.dag.dag_id)
            return self._continue()
        return self._ends()

    def clear(self, task_id: str, *, with_latest_dag: bool = False) -> DagRun:
        """Clear a task in the last DAG run, as a user does, and continue the run.

        Args:
            task_id: The task.
            with_latest_dag: Whether to run the DAG as it is now, if this Airflow remembers how it was before.
        """
        from airflow.models.taskinstance import clear_task_instances
        from airflow.utils.session import create_session
        from airflow.utils.state import DagRunState

        self._errors.clear()
        make_known(self.dag)
        with create_session() as session:
            instances = [
                instance
                for instance in _find_run(self.dag.dag_id, self._run_id, session).get_task_instances(session=session)
                if instance.task_id == task_id
            ]
            dag: dict[str, Any] = {} if AIRFLOW_3 else {"dag": self.dag}
            if with_latest_dag and AIRFLOW >= (3, 1):
                dag["run_on_latest_version"] = True
            clear_task_instances(instances, session, dag_run_state=DagRunState.RUNNING, **dag)
        return self._continue()

    def _continue(self) -> DagRun:
        """Continue the last DAG run as dag.test() does, one task at a time."""
        from airflow.utils.session import create_session
        from airflow.utils.state import DagRunState

        with create_session() as session, as_in_newest_airflow():
            run = _find_run(self.dag.dag_id, self._run_id, session)
            run.dag = _as_scheduled(self.dag) if AIRFLOW_3 else self.dag
            while run.state == DagRunState.RUNNING:
                session.expire_all()
                for instance in run.update_state(session=session)[0]:
                    # Since Airflow 3.4 a retry and a Clear make a task instance that has the number of its try.
                    if AIRFLOW < (3, 4) or instance.try_number == 0:
                        instance.try_number += 1
                    # After a crash, the scheduler drops the method with which a deferred try was to resume.
                    instance.next_method = instance.next_kwargs = None
                    instance.state = "scheduled"
                session.commit()
                for instance in run.get_task_instances(session=session):
                    if instance.state == "scheduled":
                        with contextlib.suppress(Exception, Crash, AirflowTaskTimeout):
                            _try(self.dag.task_dict[instance.task_id], instance, session)
                        session.commit()
        return self._ends()

    def _ends(self) -> DagRun:
        run = read_run(self.dag.dag_id, self._run_id, self._errors)
        ends = {key: TaskEnd(**vars(task)) for key, task in run.tasks.items()}
        return DagRun(**vars(run) | {"tasks": ends})


def dag_that_draws(dag: TestDag | None = None, **arguments: Any) -> TestDag:
    """Return a DAG with one task, "draw", that submits an image; mapped if `prompts` is a list."""
    dag = dag or TestDag()
    prompts = arguments.pop("prompts", None)
    with dag:
        if prompts is None:
            QwenImageGenerateOperator(**_DRAW | {"prompt": "A red kite over the sea"} | arguments)
        else:
            QwenImageGenerateOperator.partial(**_DRAW | arguments).expand(prompt=prompts)
    return dag


class _Ends(BaseOperator):
    """Ends the body of a loop, which has one last task."""

    def execute(self, context: Any) -> None:
        return


def dag_with_a_loop(operator: Callable[[], Any], iterations: int) -> TestDag:
    """Return a DAG that repeats a task in a loop, since Airflow 3.4.

    Args:
        operator: Makes the task.
    """
    task_group: Any = import_module("airflow.sdk").task_group
    dag = TestDag()
    with dag:

        def again() -> None:
            operator() >> _Ends(task_id="ends")

        task_group(again).loop(max_iterations=iterations)
    return dag


def stored_files(folder: Path) -> list[str]:
    """Return the names of all files under a folder of images, except the records of submissions."""
    return sorted(file.name for file in folder.rglob("*") if not file.name.startswith(_RECORD))


def visible_files(folder: Path) -> list[str]:
    """Return the names of the files in a folder that users see: of images and sidecars."""
    return sorted(file.name for file in folder.iterdir() if not file.name.startswith("."))


def records(dag: TestDag, folder: Path) -> list[str]:
    """Return the records of submissions as text, from task state or from the output folder."""
    if not HAS_TASK_STATES:
        return [file.read_text() for file in sorted(folder.glob(f"{_RECORD}*.json"))]
    from airflow.models.task_state_store import TaskStateStoreModel
    from airflow.utils.session import create_session
    from sqlalchemy import select

    with create_session() as session:
        mine = select(TaskStateStoreModel).where(TaskStateStoreModel.dag_id == dag.dag.dag_id)
        return [str(row.value) for row in session.scalars(mine)]


def labels_in_the_ui(dag: TestDag, task_id: str) -> list[Any]:
    """Return what Airflow stores to be shown instead of the map indexes of a task of the last run."""
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session
    from sqlalchemy import select

    model: Any = TaskInstance
    with create_session() as session:
        mine = select(model).where(model.dag_id == dag.dag.dag_id, model.run_id == dag.run_id, model.task_id == task_id)
        instances = sorted(session.scalars(mine), key=lambda instance: instance.map_index)
        return [instance.rendered_map_index for instance in instances]


def _last_run_id(dag_id: str) -> str:
    from airflow.models.dagrun import DagRun as AirflowDagRun
    from airflow.utils.session import create_session

    with create_session() as session:
        (*_, last) = sorted(AirflowDagRun.find(dag_id=dag_id, session=session), key=lambda run: run.id)
        return str(last.run_id)


def _find_run(dag_id: str, run_id: str, session: Any) -> Any:
    from airflow.models.dagrun import DagRun as AirflowDagRun

    (run,) = AirflowDagRun.find(dag_id=dag_id, run_id=run_id, session=session)
    return run


def _try(task: Any, instance: Any, session: Any) -> None:
    # Up to Airflow 3.0 the instance knows its task.
    knows_its_task = AIRFLOW < (3, 1)
    if knows_its_task:
        instance.task = task
    if AIRFLOW_3:
        run: Any = import_module("airflow.sdk.definitions.dag")._run_task
        run(ti=instance, run_triggerer=True, **({} if knows_its_task else {"task": task}))
    else:
        from airflow.models import dag

        dag._run_task(ti=instance, inline_trigger=True, session=session)


def _as_scheduled(dag: Any) -> Any:
    if AIRFLOW < (3, 1):
        return dag
    serialization = dag_serialization()
    return serialization.deserialize_dag(serialization.serialize_dag(dag))


def dag_serialization() -> Any:
    """Return the class that serializes DAGs; it has another name since Airflow 3.2."""
    module: Any = import_module("airflow.serialization.serialized_objects")
    return module.DagSerialization if hasattr(module, "DagSerialization") else module.SerializedDAG
