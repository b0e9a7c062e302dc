"""Airflow 3.4 still fails a task that runs again when the end of its deferred process is reported late.

That is why the trigger fires no event in its first seconds. If Airflow mends this, the wait can go.
"""

from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import BaseOperator

from tests.airflows import AIRFLOW
from tests.integration.dag_runs import TestDag

pytestmark = [
    pytest.mark.skipif(AIRFLOW < (3, 4), reason="Earlier versions fail queued tasks as well."),
    pytest.mark.usefixtures("airflow_database"),
]


class _Draws(BaseOperator):
    """Stands for a task that was deferred and resumed."""

    def execute(self, context: Any) -> None:
        return


@pytest.mark.parametrize(("state", "is_failed"), [("scheduled", False), ("queued", False), ("running", True)])
def test_a_late_report_of_the_deferred_process_fails_only_a_task_that_runs_again(state: str, is_failed: bool) -> None:
    from airflow.jobs.scheduler_job_runner import SchedulerJobRunner
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session
    from sqlalchemy import select

    base_executor: Any = import_module("airflow.executors.base_executor")
    key_of: Any = import_module("airflow.executors.workloads.types").TaskInstanceUuid
    bag: Any = import_module("airflow.models.dagbag").DBDagBag()
    dag = TestDag()
    with dag:
        _Draws(task_id="draw", retries=0)
    dag.run()
    mine = select(TaskInstance).where(TaskInstance.dag_id == dag.dag.dag_id)
    with create_session() as session:
        resumed = session.scalars(mine).one()
        resumed.state, resumed.next_method, resumed.queued_by_job_id = state, "resume", None
        executor = base_executor.BaseExecutor()
        # Callbacks of failed tasks go there.
        executor.callback_sink = SimpleNamespace(send=lambda _: None)
        executor.event_buffer[key_of(resumed.id)] = ("success", None)
        session.flush()
        SchedulerJobRunner.process_executor_events(executor, None, bag, session)
        session.flush()
        assert (resumed.state == "failed") == is_failed, resumed.state
