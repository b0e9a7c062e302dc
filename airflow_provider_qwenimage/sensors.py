"""The sensor that waits until an image task ends. It never spends a credit."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import BaseOperatorLink, BaseSensorOperator, PokeReturnValue

from airflow_provider_qwenimage.client.connection import DEFAULT_CONN_ID
from airflow_provider_qwenimage.links import GENERATED_IMAGES, IMAGE
from airflow_provider_qwenimage.rules import wait_defaults
from airflow_provider_qwenimage.rules.arguments import WAIT_ARGUMENTS
from airflow_provider_qwenimage.rules.task_arguments import TaskArguments, reads_arguments

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import SupportsIndex

    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_qwenimage.rules.arguments import Seconds
    from airflow_provider_qwenimage.rules.task_arguments import Text
    from airflow_provider_qwenimage.tasks.sensing import Sensing


# What Airflow resumes a task with, instead of its own method, if its trigger failed or timed out.
_TRIGGER_FAILED = "__fail__"


class QwenImageStatusSensor(TaskArguments, BaseSensorOperator):
    """Waits until an image task is ``SUCCESS`` or ``FAILED``.

    On ``SUCCESS`` it returns the list of image URLs. On ``FAILED`` it fails without a retry, with the API's message.
    It pushes the XComs `task_id` (the id that it waits for), `consumed_credits` when the image task ended, and `error`
    if it fails. It never spends a credit.

    Args:
        image_task_id: The API's id of the image task, for example the output of a submit-only
            `QwenImageGenerateOperator`. Templated.
        qwenimage_conn_id: The Airflow connection that holds the API key and the base URL. Templated.
        deferrable: Whether to wait in the triggerer, without a worker slot. With False, `mode` ("poke" or
            "reschedule") decides, as for any sensor.
        poke_interval: Seconds between the first polls; it grows up to 10 s (the API's documented range).
        timeout: Seconds to wait at most, as a number or a timedelta. After it the sensor fails without a retry, as
            sensors do.
        max_consecutive_failures: How many failed reads in a row end the wait (in "reschedule" mode, where
            every poke is a new process, only `timeout` bounds them).
        defer_after: With `deferrable`, seconds to wait in the worker before the task is deferred, as a number or a
            timedelta: an image that is ready by then needs no second process, but the task has a worker slot for so
            long.
        **kwargs: What every sensor takes: `mode`, `retries`, … In every mode, `soft_fail` skips the task if the image
            task failed or the timeout passed, `never_fail` skips it after any error, and `silent_fail` waits until the
            timeout, however many reads fail.

    Raises:
        ValueError: If an argument is not allowed. Templates are checked when the task runs; the task then fails without
            a retry.
    """

    template_fields: Sequence[str] = ("image_task_id", "qwenimage_conn_id")
    argument_readers = WAIT_ARGUMENTS
    operator_extra_links: Collection[BaseOperatorLink] = (GENERATED_IMAGES, IMAGE)
    ui_color = "#e8e4fb"

    @reads_arguments
    def __init__(
        self,
        *,
        image_task_id: Text,
        qwenimage_conn_id: Text = DEFAULT_CONN_ID,
        deferrable: bool = True,
        poke_interval: Seconds = wait_defaults.DEFAULT_POLL_INTERVAL,
        timeout: Seconds = wait_defaults.DEFAULT_TIMEOUT,
        max_consecutive_failures: SupportsIndex = wait_defaults.DEFAULT_MAX_CONSECUTIVE_FAILURES,
        defer_after: Seconds = wait_defaults.DEFAULT_DEFER_AFTER,
        **kwargs: Any,
    ) -> None:
        # As `reads_arguments` converted them.
        waits: Any = {"poke_interval": poke_interval, "timeout": timeout}
        super().__init__(**waits, **kwargs)
        self.image_task_id: Any = image_task_id
        self.qwenimage_conn_id: Any = qwenimage_conn_id
        self.deferrable = deferrable
        self.max_consecutive_failures: Any = max_consecutive_failures
        self.defer_after: Any = defer_after
        # The wait of this process.
        self._sensing: Sensing | None = None
        # For the link "Image": what the image task ended with.
        self.outcome: dict[str, Any] | None = None

    def execute(self, context: Context) -> Any:
        """Wait in the triggerer, or as `mode` says.

        Returns:
            The list of image URLs.
        """
        sensing = self._start_sensing(context)
        sensing.check_arguments()
        if self.deferrable:
            return sensing.wait_deferred()
        with sensing.poking():
            return super().execute(context)

    def execute_complete(self, context: Context, event: Any = None) -> Any:
        """Return the image URLs when the trigger fired.

        Args:
            context: The task's context.
            event: What the trigger fired.
        """
        sensing = self._start_sensing(context)
        # Without an event, the API knows how far the image task is.
        return self.execute(context) if sensing.starts_afresh(event) else sensing.resume(event)

    def poke(self, context: Context) -> bool | PokeReturnValue:
        """Ask once after the image task; Airflow calls this in "poke" and "reschedule" mode."""
        return (self._sensing or self._start_sensing(context)).poke()

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Resume when the trigger fired, or end as a sensor does if the trigger failed."""
        if next_method != _TRIGGER_FAILED:
            return super().resume_execution(next_method, next_kwargs, context)
        with self._start_sensing(context).resuming_after_failed_trigger():
            # Past the sensor's own, which differs between the versions of Airflow.
            return super(BaseSensorOperator, self).resume_execution(next_method, next_kwargs, context)

    def on_kill(self) -> None:
        """Log what stays paid when the task is ended from outside while it waits in the worker."""
        if self._sensing is not None:
            self._sensing.log_what_stays_paid()

    def _get_next_poke_interval(
        self, started_at: datetime | float, run_duration: Callable[[], float], poke_count: int
    ) -> float:
        """Pace the pokes as every other wait of this package, and not past the timeout."""
        if self.exponential_backoff:
            return float(super()._get_next_poke_interval(started_at, run_duration, poke_count))
        delay = self.poke_interval if self._sensing is None else self._sensing.delay
        return max(0.0, min(delay, self.timeout - run_duration()))

    def _start_sensing(self, context: Context) -> Sensing:
        # Airflow parses DAG files all day: what only a task needs is not loaded for them.
        from airflow_provider_qwenimage.tasks.sensing import Sensing

        self._sensing = Sensing(self, context)
        return self._sensing
