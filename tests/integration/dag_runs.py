"""Builds small DAGs, runs them with `dag.test()` on the Airflow that is installed, and reads what came out."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import count
from typing import Any

import airflow
import pendulum
from airflow.providers.common.compat.sdk import DAG

AIRFLOW_3 = not airflow.__version__.startswith("2.")

# The three ways in which a sensor waits.
WAITS: dict[str, dict[str, Any]] = {
    "deferrable": {},
    "poke": {"deferrable": False, "mode": "poke"},
    "reschedule": {"deferrable": False, "mode": "reschedule"},
}

_numbers = count(1)


@dataclass
class TaskEnd:
    """How one task instance ended.

    Attributes:
        state: The state of the task instance.
        tries: How often it was tried.
        xcoms: What it pushed, by key.
        errors: What its tries ended with, oldest first; a skip is one as well.
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
        """The only error, of the only try."""
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

    Use it as a context manager to add tasks, then call `run`.
    """

    __test__ = False

    def __init__(self, **arguments: Any) -> None:
        errors: dict[tuple[str, int], list[BaseException]] = defaultdict(list)

        # Not a method: Airflow 2 copies default arguments deeply, and a method's object with them.
        def remember(context: Any) -> None:
            instance = context["ti"]
            if context.get("exception") is not None:
                errors[instance.task_id, instance.map_index].append(context["exception"])

        self._errors = errors
        self.dag = DAG(
            f"integration_{next(_numbers)}",
            schedule=None,
            start_date=pendulum.datetime(2024, 1, 1),
            default_args={
                "retries": 2,
                "retry_delay": timedelta(0),
                "on_failure_callback": remember,
                "on_retry_callback": remember,
                "on_skipped_callback": remember,
            },
            **arguments,
        )

    def __enter__(self) -> DAG:
        return self.dag.__enter__()

    def __exit__(self, *error: object) -> None:
        self.dag.__exit__(*error)

    def run(self, **arguments: Any) -> DagRun:
        if AIRFLOW_3:
            _make_known(self.dag)
        run = self.dag.test(**arguments)
        xcoms = _read_xcoms(self.dag.dag_id)
        tasks = {}
        for instance in run.get_task_instances():
            place = (instance.task_id, instance.map_index)
            tasks[place] = TaskEnd(
                state=None if instance.state is None else str(instance.state),
                tries=instance.try_number,
                xcoms=xcoms[place],
                errors=self._errors[place],
            )
        return DagRun(str(run.state), tasks)


def _make_known(dag: Any) -> None:
    """Write the DAG to the metadata database, as the DAG processor does: Airflow 3 tests no others."""
    from pathlib import Path

    from airflow.configuration import conf
    from airflow.dag_processing.bundles.manager import DagBundlesManager
    from airflow.dag_processing.dagbag import BundleDagBag, sync_bag_to_db

    DagBundlesManager().sync_bundles_to_db()
    folder = Path(conf.get("core", "dags_folder"))
    bag = BundleDagBag(dag_folder=folder, bundle_path=folder, bundle_name="dags-folder", collect_dags=False)
    bag.bag_dag(dag)
    sync_bag_to_db(bag, "dags-folder", None)


def _read_xcoms(dag_id: str) -> dict[tuple[str, int], dict[str, Any]]:
    from airflow.utils.session import create_session
    from sqlalchemy import select

    found: dict[tuple[str, int], dict[str, Any]] = defaultdict(dict)
    with create_session() as session:
        if AIRFLOW_3:
            from airflow.models.xcom import XComModel

            for row in session.scalars(select(XComModel).where(XComModel.dag_id == dag_id)):
                found[row.task_id, row.map_index][row.key] = XComModel.deserialize_value(row)
        else:
            from airflow.models.xcom import XCom

            for row in session.scalars(select(XCom).where(XCom.dag_id == dag_id)):
                # Airflow 2 decodes the value while it loads the row.
                found[row.task_id, row.map_index][row.key] = row.value
    return found
