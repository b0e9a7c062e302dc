"""Interrupt a try at a chosen point, and watch or disturb what it writes to Airflow's task state."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import pytest

from airflow_provider_qwenimage.sandbox import Sandbox
from tests.airflows import HAS_TASK_STATES
from tests.events import run_when
from tests.integration.dag_runs import Crash, DagRun, TestDag

# Makes one write to the task state, as Airflow's own client does. It may be called again, at any time.
Write: TypeAlias = Callable[[], None]

needs_task_state = pytest.mark.skipif(not HAS_TASK_STATES, reason="Airflow below 3.3 has no task state")

# From the last byte of an answer until the task has read it and pauses.
_UNTIL_THE_PAUSE_SECONDS = 0.5


def crash() -> None:
    """End the current try as a killed process does."""
    raise Crash("interrupted")


@contextlib.contextmanager
def handling_signal(action: Callable[[], object]) -> Iterator[None]:
    """During the block, run an action in the main thread, as Airflow's signal handlers do, for each `send_signal`."""

    def handle(number: int, frame: object) -> None:
        action()

    before = signal.signal(signal.SIGUSR1, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, before)


def send_signal() -> None:
    """Interrupt the main thread with the action of `handling_signal`."""
    os.kill(os.getpid(), signal.SIGUSR1)


@contextlib.contextmanager
def in_the_pause_after_a_refusal(api: Sandbox, action: Callable[[], object]) -> Iterator[None]:
    """Run an action in the main thread in the pause after the first answered submission."""

    def interrupt() -> None:
        time.sleep(_UNTIL_THE_PAUSE_SECONDS)
        send_signal()

    with handling_signal(action), run_when(lambda: any(each.status for each in submitting(api)), interrupt):
        yield


def submitting(api: Sandbox) -> list[Any]:
    """Return the requests of submissions that have reached the sandbox, accepted or not."""
    return [request for request in api.requests if request.route == "generate"]


def around_each_write(monkeypatch: pytest.MonkeyPatch, handle: Callable[[Write], None]) -> None:
    """Have a function make, delay, repeat, lose or refuse each write to Airflow's task state; a deletion is one too."""
    if not HAS_TASK_STATES:
        return
    from airflow.sdk.execution_time.context import TaskStateStoreAccessor

    def watch(name: str) -> None:
        function = getattr(TaskStateStoreAccessor, name)

        def watched(*args: Any, **kwargs: Any) -> None:
            handle(lambda: function(*args, **kwargs))

        monkeypatch.setattr(TaskStateStoreAccessor, name, watched)

    watch("set")
    watch("delete")


def clear_running_task(dag: TestDag) -> None:
    """Clear the only task of a DAG while it runs, as a user does. Airflow gives its instance another id."""
    from airflow.models.taskinstance import clear_task_instances
    from airflow.utils.session import create_session
    from airflow.utils.state import DagRunState

    with create_session() as session:
        clear_task_instances([_only_instance(dag, session)], session, dag_run_state=DagRunState.RUNNING)


def run_next_try(dag: TestDag) -> DagRun:
    """Run the try that the scheduler starts when the process of a task that was cleared while it ran has ended."""
    from airflow.models.dagrun import DagRun as AirflowDagRun
    from airflow.utils.session import create_session
    from airflow.utils.state import DagRunState, TaskInstanceState

    with create_session() as session:
        instance = _only_instance(dag, session)
        instance.state = TaskInstanceState.UP_FOR_RETRY
        (run,) = AirflowDagRun.find(dag_id=dag.dag.dag_id, run_id=instance.run_id, session=session)
        run.state = DagRunState.RUNNING
        dag._run_id = run.run_id
    return dag._continue()


def _only_instance(dag: TestDag, session: Any) -> Any:
    from airflow.models.taskinstance import TaskInstance
    from sqlalchemy import select

    return session.scalars(select(TaskInstance).where(TaskInstance.dag_id == dag.dag.dag_id)).one()
