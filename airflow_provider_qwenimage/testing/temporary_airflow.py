"""A throw-away Airflow that runs DAGs in this process."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Mapping
from datetime import datetime
from itertools import chain
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from airflow_provider_qwenimage.testing.isolation import own_airflow
from airflow_provider_qwenimage.testing.time_limit import TimeIsUp, let_go, time_limit

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import DAG

    from airflow_provider_qwenimage.testing.results import DagRunResult

DEFAULT_TIMEOUT_SECONDS = 120.0


class TemporaryAirflow:
    """An Airflow with an empty database, for the time of a ``with`` block.

    Nothing of the user's Airflow is read or changed, except for connections and variables in the environment, and
    settings there that do not name a place where Airflow keeps or sends something.

    Args:
        on_end: Called with each DAG run that has ended.
    """

    def __init__(self, on_end: Callable[[DagRunResult], None] | None = None) -> None:
        self._on_end = on_end
        self._stack: contextlib.ExitStack | None = None

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            stack.enter_context(own_airflow())
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        stack, self._stack = self._stack, None
        if stack is not None:
            stack.close()

    def run(
        self,
        dag: DAG,
        *,
        conf: Mapping[str, Any] | None = None,
        logical_date: datetime | None = None,
        timeout: float = DEFAULT_TIMEOUT_SECONDS,
    ) -> DagRunResult:
        """Run a DAG once, from its first task to its last, and return how it ended.

        Tasks run one after the other in this process, as in ``dag.test()``, so breakpoints and changes to the DAG's
        objects have an effect. Deferred tasks wait in this process too, and retries start at once, without their
        `retry_delay`. The DAG may be defined anywhere, also in a test.

        Args:
            dag: The DAG.
            conf: The configuration of the run, with values for the DAG's params.
            logical_date: The logical date of the run; now by default. A date without a time zone is in UTC.
            timeout: The most seconds that the run may take. There is no limit in another than the main thread.

        Raises:
            TimeoutError: If the run takes longer. Its message names the tasks that had not ended.
            ValueError: If an argument is not valid.
            RuntimeError: If the ``with`` block, or the test of the fixture, has ended.
        """
        if self._stack is None:
            raise RuntimeError("This Airflow is gone, because its test has ended. Run the DAG inside the test.")
        _check(dag, conf, logical_date, timeout)
        # Imported here, because their import imports Airflow, which must not happen before `own_airflow`.
        from airflow_provider_qwenimage.testing import dag_test

        with dag_test.recorded_errors() as errors:
            try:
                with time_limit(timeout):
                    run_id = dag_test.run_once(dag, conf, logical_date)
            except TimeIsUp as interruption:
                for error in (interruption, *chain.from_iterable(errors.values())):
                    let_go(error)
                unfinished = dag_test.unfinished(dag.dag_id, errors)
                raise TimeoutError(
                    f"The run of {dag.dag_id} did not end within {timeout:g} s. {unfinished}Where it was interrupted "
                    "is shown above. If it needs more time, set timeout."
                ) from interruption
        from airflow_provider_qwenimage.testing.results import read_run

        run = read_run(dag.dag_id, run_id, errors)
        if self._on_end is not None:
            self._on_end(run)
        return run


def _check(dag: Any, conf: Any, logical_date: Any, timeout: Any) -> None:
    if not hasattr(dag, "task_dict") or not hasattr(dag, "dag_id"):
        what_to_do = " Call the function that @dag decorates." if callable(dag) else ""
        raise ValueError(f"dag is {dag!r}; it must be a DAG.{what_to_do}")
    if not dag.task_dict:
        raise ValueError(f"dag is {dag!r}, which has no tasks; it must have at least one.")
    if conf is not None:
        try:
            json.dumps(conf, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"conf is {conf!r}; it must be a dict that JSON can express ({error}).") from error
        if not isinstance(conf, dict):
            raise ValueError(f"conf is {conf!r}; it must be a dict.")
    if logical_date is not None and not isinstance(logical_date, datetime):
        raise ValueError(f"logical_date is {logical_date!r}; it must be a datetime.")
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout < threading.TIMEOUT_MAX:
        raise ValueError(f"timeout is {timeout!r}; it must be a number of seconds above 0.")
