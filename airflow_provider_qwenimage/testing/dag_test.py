"""Prepares DAGs and Airflow for `dag.test()`, which runs a DAG's tasks and triggers in this process."""

from __future__ import annotations

import contextlib
import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from airflow.listeners import hookimpl
from airflow.providers.common.compat.sdk import DAG, Asset, AssetAlias, BaseOperator

from airflow_provider_qwenimage.airflow_versions import CALLS_TRIGGER_ON_KILL, HAS_PLUGIN_PAGES, HAS_SUPERVISOR
from airflow_provider_qwenimage.testing.time_limit import TimeIsUp, postponed_interruption

if TYPE_CHECKING:
    import httpx
    from airflow.providers.common.compat.sdk import Context

Errors = dict[tuple[str, int], list[BaseException]]
"""The exceptions of tries, by task id and map index."""

_ENDED = frozenset({"success", "failed", "skipped", "upstream_failed", "removed"})


def make_known(dag: Any) -> None:
    """Write a DAG to the metadata database, as the DAG processor does: Airflow 3 runs no others."""
    if not HAS_SUPERVISOR:
        # Tables of Airflow 2 refer to those of these models, which only the creation of a database imports.
        import_module("airflow.providers.fab.auth_manager.models")
        outlets = [outlet for task in dag.tasks for outlet in getattr(task, "outlets", None) or ()]
        if any(isinstance(outlet, Asset | AssetAlias) for outlet in outlets):
            # It runs DAGs that are not known, but only known assets have events, and only known aliases have assets.
            dag.bulk_write_to_db([dag])
        return
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
        sync_bag_to_db = dagbag.sync_bag_to_db if HAS_PLUGIN_PAGES else dagbag.DagBag.sync_to_db
    bag.bag_dag(dag)
    sync_bag_to_db(bag, "dags-folder", None)


@contextlib.contextmanager
def as_in_newest_airflow() -> Iterator[None]:
    """Make dag.test() of Airflow 3.0 to 3.2 work as that of 3.3.

    As in a worker, callbacks get the exception of a try, and a sensor gets the date of its first reschedule. All tasks
    share an API server, since starting one for each task takes a second.
    """
    if not HAS_SUPERVISOR or CALLS_TRIGGER_ON_KILL:
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


@contextlib.contextmanager
def whole_requests() -> Iterator[None]:
    """Let the API server, in a thread of this process, finish a request before an interruption.

    It commits what it has written only once its client has read the response. Until then the database is locked.
    """
    if not HAS_SUPERVISOR:
        yield
        return
    import httpx

    handle: Any = httpx.WSGITransport.handle_request

    def handle_whole(transport: httpx.WSGITransport, request: httpx.Request) -> httpx.Response:
        with postponed_interruption():
            response: httpx.Response = handle(transport, request)
            response.read()
            return response

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(httpx.WSGITransport, "handle_request", handle_whole)
        yield


@cache
def _api_server() -> Any:
    return import_module("airflow.api_fastapi.execution_api.app").InProcessExecutionAPI()


@contextlib.contextmanager
def retrying_at_once(dag: Any) -> Iterator[None]:
    """Let the tasks of a DAG retry without their delay, five minutes by default."""
    with pytest.MonkeyPatch.context() as patch:
        for task in dag.tasks:
            # A mapped task has the arguments of its instances here.
            arguments = getattr(task, "partial_kwargs", None)
            for name, value in (("retry_delay", timedelta(0)), ("retry_exponential_backoff", False)):
                if isinstance(arguments, dict):
                    patch.setitem(arguments, name, value)
                else:
                    patch.setattr(task, name, value)
        yield


class _Nothing(BaseOperator):
    def execute(self, context: Context) -> None:
        """Do nothing."""


def smallest_dag() -> DAG:
    """Return a DAG with one task, which does nothing."""
    with DAG("smallest_dag", schedule=None, start_date=datetime(2024, 1, 1, tzinfo=UTC)) as dag:
        _Nothing(task_id="nothing")
    return dag


def run_once(dag: Any, conf: Mapping[str, Any] | None, logical_date: datetime | None) -> str:
    """Run a DAG with `dag.test()`.

    Returns:
        The id of the run.
    """
    date = {} if logical_date is None else {"logical_date" if HAS_SUPERVISOR else "execution_date": logical_date}
    with retrying_at_once(dag), as_in_newest_airflow(), whole_requests():
        make_known(dag)
        return str(dag.test(run_conf=None if conf is None else dict(conf), **date).run_id)


def unfinished(dag_id: str, errors: Mapping[tuple[str, int], list[BaseException]]) -> str:
    """Return which tasks of the newest run had not ended when its time was up, as a sentence."""
    from airflow import settings
    from airflow.models.dagrun import DagRun
    from airflow.utils.session import create_session

    sessions: Any = settings.Session
    with contextlib.suppress(Exception):
        # The interruption may have hit it anywhere.
        sessions.remove()
    with contextlib.suppress(Exception), create_session() as session:
        (*_, run) = sorted(DagRun.find(dag_id=dag_id, session=session), key=lambda run: run.id)
        names = []
        for task in run.get_task_instances(session=session):
            # A task that was interrupted has failed since.
            was_running = any(isinstance(error, TimeIsUp) for error in errors.get((task.task_id, task.map_index), ()))
            if was_running or task.state not in _ENDED:
                index = f"[{task.map_index}]" if task.map_index >= 0 else ""
                names.append(f"{task.task_id}{index} ({'running' if was_running else task.state or 'waiting'})")
        return f"Not ended: {', '.join(sorted(names))}. "
    return ""


@contextlib.contextmanager
def recorded_errors() -> Iterator[Mapping[tuple[str, int], list[BaseException]]]:
    """Collect the exceptions that tries of tasks end with, in a listener and from the log of `dag.test()`."""
    errors: Errors = defaultdict(list)

    def record(instance: Any, error: BaseException) -> None:
        known = errors[instance.task_id, instance.map_index]
        if not any(error is other for other in known):
            known.append(error)

    manager = _listener_manager()
    listener = _Listener(record)
    handler = _LogHandler(record)
    manager.add_listener(listener)
    loggers = [logging.getLogger(name) for name in ("airflow.sdk.definitions.dag", "airflow.models.dag.DAG")]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield errors
    finally:
        manager.pm.unregister(listener)
        for logger in loggers:
            logger.removeHandler(handler)


def _listener_manager() -> Any:
    for name in ("airflow.sdk.listener", "airflow.listeners.listener"):
        with contextlib.suppress(ImportError):
            return import_module(name).get_listener_manager()
    raise RuntimeError("This Airflow has no listeners. Report it with the version of Airflow.")


class _Listener:
    """Airflow calls it when a try fails, also if the task is retried."""

    def __init__(self, record: Callable[[Any, BaseException], None]) -> None:
        self._record = record

    @hookimpl
    def on_task_instance_failed(self, task_instance: Any, error: BaseException | str | None) -> None:
        """Record the error of a try."""
        if isinstance(error, BaseException):
            self._record(task_instance, error)


class _LogHandler(logging.Handler):
    """Reads what `dag.test()` only logs: the exceptions of triggers."""

    def __init__(self, record: Callable[[Any, BaseException], None]) -> None:
        super().__init__(logging.ERROR)
        self._record = record

    def emit(self, record: logging.LogRecord) -> None:
        """Record the error that a message about a task instance has."""
        error = record.exc_info[1] if record.exc_info else None
        instances: tuple[Any, ...] = record.args if isinstance(record.args, tuple) else ()
        for instance in instances:
            if error is not None and hasattr(instance, "map_index"):
                self._record(instance, error)
                if not HAS_SUPERVISOR and instance.state in {"scheduled", "running"}:
                    # Airflow 2 would run a task whose trigger failed for ever.
                    instance.set_state("failed")
