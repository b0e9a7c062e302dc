"""The sensor that waits until an image task ends. It never spends a credit."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import (
    AirflowException,
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowSkipException,
    AirflowTaskTimeout,
    BaseSensorOperator,
    PokeReturnValue,
)

from airflow_provider_qwenimage.client.connection import DEFAULT_CONN_ID
from airflow_provider_qwenimage.exceptions import QwenImageTaskFailedError, QwenImageTimeoutError
from airflow_provider_qwenimage.links import GENERATED_IMAGES, IMAGE, links_to_store, show_gallery
from airflow_provider_qwenimage.rules import polling
from airflow_provider_qwenimage.rules.arguments import WAIT_ARGUMENTS
from airflow_provider_qwenimage.rules.task_arguments import TaskArguments, reads_arguments
from airflow_provider_qwenimage.text.storable import storable

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import SupportsIndex

    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_qwenimage.contract import TaskSnapshot
    from airflow_provider_qwenimage.exceptions import QwenImageError
    from airflow_provider_qwenimage.hooks import QwenImageHook
    from airflow_provider_qwenimage.rules.arguments import Seconds
    from airflow_provider_qwenimage.rules.task_arguments import Text


# What Airflow resumes a task with, instead of its own method, when its trigger failed or timed out.
_TRIGGER_FAILED = "__fail__"
# With `silent_fail`, only the timeout ends a wait whose reads fail.
_AS_MANY_AS_IT_TAKES = 1_000_000_000


class QwenImageStatusSensor(TaskArguments, BaseSensorOperator):
    """Waits until an image task is ``SUCCESS`` or ``FAILED``.

    On ``SUCCESS`` it returns the list of image URLs. On ``FAILED`` it fails at once, without a retry, with the
    API's message. In both cases it pushes the XCom `consumed_credits`; before, the XCom `task_id`, the id that it
    waits for; and where it fails, the XCom `error`. It never spends a credit.

    Args:
        image_task_id: The API's id of the image task, for example the output of a submit-only
            `QwenImageGenerateOperator`. Templated.
        qwenimage_conn_id: The Airflow connection that holds the API key and the base URL. Templated.
        deferrable: Whether to wait in the triggerer, without a worker slot. With False, `mode` ("poke" or
            "reschedule") counts, as for any sensor.
        poke_interval: Seconds between the first polls; it grows up to 10 s (the API's documented range).
        timeout: Seconds to wait at most, as a number or a timedelta. Then the sensor fails without a retry, as
            sensors do.
        max_consecutive_failures: How many failed reads in a row end the wait (in "reschedule" mode, where
            every poke is a new process, only `timeout` bounds them).
        **kwargs: What every sensor takes: `mode`, `retries`, … In every mode alike, `soft_fail` skips the task if the
            image task failed or the time is over, `never_fail` skips it after any error, and with `silent_fail` a
            wait goes on until the timeout, however many reads fail.

    Raises:
        ValueError: If an argument that is not a template is not what is allowed. What is known only when the task runs
            is checked then; the task fails without a retry.
    """

    template_fields: Sequence[str] = ("image_task_id", "qwenimage_conn_id")
    argument_readers = WAIT_ARGUMENTS
    operator_extra_links = (GENERATED_IMAGES, IMAGE)
    ui_color = "#e8e4fb"

    @reads_arguments
    def __init__(
        self,
        *,
        image_task_id: Text,
        qwenimage_conn_id: Text = DEFAULT_CONN_ID,
        deferrable: bool = True,
        poke_interval: Seconds = polling.DEFAULT_POLL_INTERVAL,
        timeout: Seconds = polling.DEFAULT_TIMEOUT,
        max_consecutive_failures: SupportsIndex = polling.DEFAULT_MAX_CONSECUTIVE_FAILURES,
        **kwargs: Any,
    ) -> None:
        # As `reads_arguments` has converted them.
        waits: Any = {"poke_interval": poke_interval, "timeout": timeout}
        super().__init__(**waits, **kwargs)
        self.image_task_id: Any = image_task_id
        self.qwenimage_conn_id: Any = qwenimage_conn_id
        self.deferrable = deferrable
        self.max_consecutive_failures: Any = max_consecutive_failures
        self._state = polling.PollState()
        self._delay = self.poke_interval
        # Of the pokes of this process; in "reschedule" mode there are more before and after it.
        self._end_time: float | None = None
        self._last_read: TaskSnapshot | QwenImageError | None = None
        self._poking_hook: QwenImageHook | None = None
        # For the link "Image": what the image task ended with.
        self.outcome: dict[str, Any] | None = None

    def execute(self, context: Context) -> Any:
        """Wait, in the way that `deferrable` and `mode` say.

        Returns:
            The list of image URLs.
        """
        with self._skipping_softly(), self._failing_as_sensors_do(context):
            self.check_rendered()
        if not self.deferrable:
            self._end_time = time.time() + self.timeout
            self._announce(context)
            # One client for all pokes of this process: a kept-alive connection instead of a new one each time.
            try:
                with self._hook() as self._poking_hook:
                    return super().execute(context)
            except (AirflowSensorTimeout, AirflowSkipException, AirflowTaskTimeout) as end:
                if end.__cause__ is not None:
                    # The end of a poke, which has reported it.
                    raise
                with self._skipping_softly(), self._failing_as_sensors_do(context):
                    if isinstance(end, AirflowTaskTimeout):
                        raise
                    # Airflow's own has no word about the image task.
                    raise polling.timed_out(self.image_task_id, self._last_read, time.time()) from end
        with self._skipping_softly(), self._failing_as_sensors_do(context), self._hook() as hook:
            self._announce(context)
            from airflow_provider_qwenimage.tasks.deferral import end_time_of, wait_deferred

            policy = self._policy(end_time_of(self, self.timeout))
            snapshot = wait_deferred(self, hook, self.image_task_id, policy, try_number=context["ti"].try_number)
            return self._finish(context, snapshot)

    def execute_complete(self, context: Context, event: Any = None) -> Any:
        """Go on when the trigger has fired.

        Args:
            context: The task's context.
            event: What the trigger fired.
        """
        from airflow_provider_qwenimage.tasks.deferral import is_of_an_earlier_try
        from airflow_provider_qwenimage.triggers import snapshot_of

        if event is None or is_of_an_earlier_try(event, context["ti"].try_number):
            # Without an event, the API knows how far the image task is.
            return self.execute(context)
        links_to_store(self)
        with self._skipping_softly(), self._failing_as_sensors_do(context):
            return self._finish(context, snapshot_of(event))

    def poke(self, context: Context) -> bool | PokeReturnValue:
        """Ask once after the image task; Airflow calls this in "poke" and "reschedule" mode."""
        with self._failing_as_sensors_do(context):
            seconds = self._policy(self._end_time).seconds_for_a_read(time.time())
            hook = self._poking_hook or self._hook()
            outcome = self._last_read = hook.check(self.image_task_id, seconds=seconds)
            decision = polling.decide(
                self._policy(), self._state, outcome, image_task_id=self.image_task_id, now=time.time()
            )
            if isinstance(decision, polling.Done):
                return PokeReturnValue(is_done=True, xcom_value=self._finish(context, decision.snapshot))
            if isinstance(decision, polling.GiveUp):
                raise decision.error
            if decision.notice:
                self.log.info("%s", decision.notice)
            self._state, self._delay = decision.state, decision.delay
            return False

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Go on when the trigger has fired, or end as a sensor does if it could not."""
        if next_method != _TRIGGER_FAILED:
            return super().resume_execution(next_method, next_kwargs, context)
        with self._skipping_softly(AirflowException), self._failing_as_sensors_do(context):
            try:
                # Past the sensor's own, which differs between the versions of Airflow.
                return super(BaseSensorOperator, self).resume_execution(next_method, next_kwargs, context)
            except AirflowException as error:
                if "timeout" in str(error).lower():
                    raise polling.timed_out(self.image_task_id, None, None) from error
                raise AirflowException(
                    f"The trigger that waited for image task {self.image_task_id} failed: {error}. The image task is "
                    "not touched by that: the next try of this task, automatic or after a Clear, waits for it again."
                ) from error

    def on_kill(self) -> None:
        """Say what stays paid when the task is ended from outside while it pokes; it does nothing else."""
        if self._poking_hook is not None:
            from airflow_provider_qwenimage.rules.submissions import what_stays_paid

            self.log.warning("%s", what_stays_paid(self.image_task_id, self._poking_hook.last_credits))

    def _get_next_poke_interval(
        self, started_at: datetime | float, run_duration: Callable[[], float], poke_count: int
    ) -> float:
        """Pace the pokes as every other wait of this package, and not past the timeout."""
        if self.exponential_backoff:
            return float(super()._get_next_poke_interval(started_at, run_duration, poke_count))
        return max(0.0, min(self._delay, self.timeout - run_duration()))

    def _hook(self) -> QwenImageHook:
        # Airflow parses DAG files all day: what only a task needs is not loaded for them.
        from airflow_provider_qwenimage.hooks import QwenImageHook

        return QwenImageHook(self.qwenimage_conn_id)

    def _policy(self, end_time: float | None = None) -> polling.PollPolicy:
        return polling.PollPolicy(
            poll_interval=self.poke_interval,
            end_time=end_time,
            max_consecutive_failures=_AS_MANY_AS_IT_TAKES if self.silent_fail else self.max_consecutive_failures,
        )

    def _announce(self, context: Context) -> None:
        """Tell the gallery what is waited for, as soon as it is."""
        ti = context["ti"]
        ti.xcom_push(key="task_id", value=storable(self.image_task_id))
        if self.deferrable:
            links_to_store(self, GENERATED_IMAGES)
        else:
            show_gallery(self, ti)

    def _finish(self, context: Context, snapshot: TaskSnapshot) -> list[str]:
        from airflow_provider_qwenimage.tasks.metrics import count_end

        self.outcome = {"image_urls": list(snapshot.image_urls), "paths": []}
        links_to_store(self, *self.operator_extra_links, IMAGE)
        _show(context, snapshot)
        count_end(len(snapshot.image_urls), snapshot.consumed_credits)
        self.log.info(
            "Image task %s is done: %d image(s), %s credits.",
            snapshot.task_id,
            len(snapshot.image_urls),
            snapshot.consumed_credits,
        )
        return list(snapshot.image_urls)

    @contextmanager
    def _failing_as_sensors_do(self, context: Context) -> Iterator[None]:
        from airflow_provider_qwenimage.tasks.failures import failing_for_good
        from airflow_provider_qwenimage.tasks.metrics import count_end

        with failing_for_good(context["ti"]):
            try:
                yield
            except QwenImageTimeoutError as error:
                raise AirflowSensorTimeout(str(error)) from error
            except QwenImageTaskFailedError as error:
                if error.snapshot is not None:
                    _show(context, error.snapshot)
                    count_end(0, error.snapshot.consumed_credits)
                # The task has ended: asking again would bring the same answer.
                raise AirflowFailException(f"{type(error).__name__}: {error}") from error
            except AirflowTaskTimeout as error:
                story = polling.timed_out(self.image_task_id, self._last_read, time.time())
                raise AirflowTaskTimeout(f"{error}. {story}") from error

    @contextmanager
    def _skipping_softly(self, *also: type[BaseException]) -> Iterator[None]:
        """Treat `soft_fail` and `never_fail` in every mode as Airflow does in a poke, in all of its versions."""
        try:
            yield
        except AirflowSkipException:
            raise
        except (Exception, AirflowTaskTimeout) as error:
            soft = isinstance(error, (AirflowFailException, AirflowSensorTimeout, AirflowTaskTimeout, *also))
            if self.never_fail or (self.soft_fail and soft):
                name = "never_fail" if self.never_fail else "soft_fail"
                raise AirflowSkipException(f"Skipped because of {name}: {error}") from error
            raise


def _show(context: Context, snapshot: TaskSnapshot) -> None:
    ti = context["ti"]
    ti.xcom_push(key="consumed_credits", value=snapshot.consumed_credits)
    if request := snapshot.described_request():
        # Where another DAG has submitted it, nothing else tells what the image is of.
        ti.xcom_push(key="request", value=request)
