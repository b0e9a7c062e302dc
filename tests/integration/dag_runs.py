"""Build small DAGs, run them with `dag.test()` on the installed Airflow, and read their results."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any

import pendulum
import pytest
from airflow.providers.common.compat.sdk import DAG, AirflowTaskTimeout

from airflow_provider_qwenimage import QwenImageGenerateOperator
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


@dataclass
class TaskEnd:
    """How one task instance ended.

    Attributes:
        tries: The number of tries.
        xcoms: The pushed values, by key.
        errors: The exceptions that its tries ended with, oldest first; including a skip.
    """

    state: str | None
    tries: int
    xcoms: dict[str, Any] = field(default_factory=dict)
    errors: list[BaseException] = field(default_factory=list)

    @property
    def returned(self) -> Any:
        return self.xcoms["return_value"]

    @property
    def error(self) -> BaseException:
        """The only error of the only try."""
        (error,) = self.errors
        return error


@dataclass
class DagRun:
    """How a DAG run ended."""

    state: str
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
        if AIRFLOW_3:
            _make_known(self.dag)
        try:
            with _as_in_airflow_3_3():
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
        if AIRFLOW_3:
            _make_known(self.dag)
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

        with create_session() as session, _as_in_airflow_3_3():
            run = _find_run(self.dag.dag_id, self._run_id, session)
            run.dag = _as_scheduled(self.dag) if AIRFLOW_3 else self.dag
            while run.state == DagRunState.RUNNING:
                session.expire_all()
                for instance in run.update_state(session=session)[0]:
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
        from airflow.utils.session import create_session

        xcoms = _read_xcoms(self.dag.dag_id, self._run_id)
        with create_session() as session:
            run = _find_run(self.dag.dag_id, self._run_id, session)
            tasks = {}
            for instance in run.get_task_instances(session=session):
                key = (instance.task_id, instance.map_index)
                tasks[key] = TaskEnd(
                    state=None if instance.state is None else str(instance.state),
                    tries=instance.try_number,
                    xcoms=xcoms[key],
                    errors=self._errors[key],
                )
            return DagRun(str(run.state), tasks)


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


@contextlib.contextmanager
def _as_in_airflow_3_3() -> Iterator[None]:
    """Make dag.test() of Airflow 3.0 to 3.2 work as that of 3.3.

    As in a worker, callbacks get the exception of a try, and a sensor gets the date of its first reschedule. All tasks
    share an API server, since starting one for each task takes a second.
    """
    if not AIRFLOW_3 or AIRFLOW >= (3, 3):
        yield
        return
    supervisor: Any = import_module("airflow.sdk.execution_time.supervisor")
    task_runner: Any = import_module("airflow.sdk.execution_time.task_runner")
    finalize = task_runner.finalize

    def finalize_with_error(ti: Any, state: Any, context: Any, log: Any, error: BaseException | None = None) -> None:
        context["exception"] = error
        finalize(ti, state, context, log, error)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(task_runner, "finalize", finalize_with_error)
        patch.setattr(supervisor, "in_process_api_server", _api_server)
        # Airflow 3.0 leaves the date a string, which is parsed only on its way to another process.
        answer: Any = import_module("airflow.sdk.execution_time.comms").TaskRescheduleStartDate
        patch.setattr(answer, "model_construct", staticmethod(lambda **fields: answer.model_validate(fields)))
        yield


@cache
def _api_server() -> Any:
    return import_module("airflow.api_fastapi.execution_api.app").InProcessExecutionAPI()


def _make_known(dag: Any) -> None:
    """Write the DAG to the metadata database, as the DAG processor does: Airflow 3 runs no others."""
    from airflow.configuration import conf
    from airflow.dag_processing.bundles.manager import DagBundlesManager

    DagBundlesManager().sync_bundles_to_db()
    folder = Path(conf.get("core", "dags_folder"))
    if find_spec("airflow.dag_processing.dagbag"):
        from airflow.dag_processing.dagbag import BundleDagBag, sync_bag_to_db

        bag: Any = BundleDagBag(dag_folder=folder, bundle_path=folder, bundle_name="dags-folder", collect_dags=False)
    else:
        # Up to Airflow 3.1.
        dagbag: Any = import_module("airflow.models.dagbag")
        bag = dagbag.DagBag(dag_folder=folder, collect_dags=False)
        # In Airflow 3.0 it is a method, which needs the path of the DAG within its bundle.
        dag.relative_fileloc = Path(dag.fileloc).name
        sync_bag_to_db = dagbag.DagBag.sync_to_db if AIRFLOW < (3, 1) else dagbag.sync_bag_to_db
    bag.bag_dag(dag)
    sync_bag_to_db(bag, "dags-folder", None)


def _read_xcoms(dag_id: str, run_id: str) -> dict[tuple[str, int], dict[str, Any]]:
    from airflow.utils.session import create_session
    from sqlalchemy import select

    found: dict[tuple[str, int], dict[str, Any]] = defaultdict(dict)
    with create_session() as session:
        if AIRFLOW_3:
            from airflow.models.xcom import XComModel

            for row in session.scalars(select(XComModel).where(XComModel.dag_id == dag_id, XComModel.run_id == run_id)):
                # Links of tasks are XComs as well, with keys of their own; see tests/test_links.py.
                if not row.key.startswith("_link_"):
                    found[row.task_id, row.map_index][row.key] = XComModel.deserialize_value(row)
        else:
            from airflow.models.xcom import XCom

            for row in session.scalars(select(XCom).where(XCom.dag_id == dag_id, XCom.run_id == run_id)):
                # Airflow 2 decodes the value while it loads the row.
                found[row.task_id, row.map_index][row.key] = row.value
    return found
