"""The wait of `QwenImageStatusSensor`: in the triggerer or by pokes, and how it ends as a sensor ends."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from airflow.providers.common.compat.sdk import (
    AirflowException,
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowSkipException,
    AirflowTaskTimeout,
    PokeReturnValue,
)

from airflow_provider_qwenimage.books.calls import settle_end
from airflow_provider_qwenimage.client.spans import Span, span
from airflow_provider_qwenimage.exceptions import QwenImageTaskFailedError, QwenImageTimeoutError
from airflow_provider_qwenimage.hooks import QwenImageHook
from airflow_provider_qwenimage.links import GENERATED_IMAGES, IMAGE, PendingLinks
from airflow_provider_qwenimage.rules import polling
from airflow_provider_qwenimage.rules.submissions import what_stays_paid
from airflow_provider_qwenimage.tasks import deferral
from airflow_provider_qwenimage.tasks.failures import logging_errors, reporting_failures
from airflow_provider_qwenimage.tasks.metrics import count_end
from airflow_provider_qwenimage.text.storable import storable
from airflow_provider_qwenimage.triggers import event_has_books, snapshot_of

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_qwenimage.contract import TaskSnapshot
    from airflow_provider_qwenimage.exceptions import QwenImageError

# With `silent_fail`, only the timeout ends a wait whose reads fail.
_UNLIMITED_FAILURES = 1_000_000_000


class WaitingSensor(deferral.DeferrableTask, Protocol):
    """The part of `QwenImageStatusSensor` that its wait needs: its arguments, converted and rendered."""

    image_task_id: Any
    qwenimage_conn_id: Any
    poke_interval: Any
    timeout: Any
    max_consecutive_failures: Any
    defer_after: Any
    soft_fail: bool
    never_fail: bool
    silent_fail: bool
    outcome: dict[str, Any] | None

    def check_rendered(self, *names: str) -> None:
        """Check the rendered arguments."""


class Sensing:
    """The wait of one task instance, in one of its processes.

    Args:
        sensor: The sensor, with its templates rendered.
        context: The task's context.
    """

    def __init__(self, sensor: WaitingSensor, context: Context) -> None:
        self._sensor = sensor
        self._ti: Any = context["ti"]
        self._log = sensor.log
        self._links = PendingLinks(sensor)
        self._poll_state = polling.PollState()
        self._end_time: float | None = None
        # One client for all polls of this process: a kept-alive connection instead of a new one each time.
        self._hook: QwenImageHook | None = None
        # Knows the connection, if it was needed.
        self._asked: QwenImageHook | None = None
        # The wait of this process in traces.
        self._span = Span()
        # Seconds until the next poke.
        self.delay: float = sensor.poke_interval

    def check_arguments(self) -> None:
        """End the task if a rendered argument is bad."""
        self._links.add(GENERATED_IMAGES)
        with self.skipping_softly(), self.failing_as_sensors_do():
            self._sensor.check_rendered()

    def wait_deferred(self) -> list[str]:
        """Return the image URLs if the image task has ended.

        Raises:
            TaskDeferred: If it has not.
        """
        sensor = self._sensor
        with self.skipping_softly(), self.failing_as_sensors_do(), QwenImageHook(sensor.qwenimage_conn_id) as hook:
            self._push("task_id", storable(sensor.image_task_id))
            policy = self._policy(deferral.end_time_of(sensor, sensor.timeout))
            self._asked = self._hook = hook
            if sensor.defer_after:
                self._links.store_gallery(self._ti)
            snapshot = deferral.wait_deferred(
                sensor,
                hook,
                sensor.image_task_id,
                policy,
                try_number=self._ti.try_number,
                defer_after=sensor.defer_after,
            )
            return self._finish(snapshot)

    def starts_afresh(self, event: Any) -> bool:
        """Whether the task was not resumed by the trigger of this try."""
        return event is None or deferral.is_of_an_earlier_try(event, self._ti.try_number)

    def resume(self, event: Any) -> list[str]:
        """Return the image URLs when the trigger fired."""
        with self.skipping_softly(), self.failing_as_sensors_do():
            if event_has_books(event):
                self._asked = QwenImageHook(self._sensor.qwenimage_conn_id)
            return self._finish(snapshot_of(event))

    @contextmanager
    def resuming_after_failed_trigger(self) -> Iterator[None]:
        """Have what Airflow raises in the block, because the trigger failed, end the task as a sensor ends."""
        image_task_id = self._sensor.image_task_id
        with self.skipping_softly(AirflowException), self.failing_as_sensors_do():
            try:
                yield
            except AirflowException as error:
                if "timeout" in str(error).lower():
                    raise polling.timed_out(image_task_id, None, None) from error
                raise AirflowException(
                    f"The trigger that waited for image task {image_task_id} failed: {error}. The image task goes on: "
                    "the next try of this task, automatic or after a Clear, waits for it again."
                ) from error

    @contextmanager
    def poking(self) -> Iterator[None]:
        """Have the pokes of the block share a client and a deadline, and end the task as a sensor ends."""
        sensor = self._sensor
        self._end_time = time.time() + sensor.timeout
        self._push("task_id", storable(sensor.image_task_id))
        self._links.store_gallery(self._ti)
        try:
            with (
                QwenImageHook(sensor.qwenimage_conn_id) as self._hook,
                span("wait", task_id=sensor.image_task_id) as self._span,
            ):
                yield
        except (AirflowSensorTimeout, AirflowSkipException, AirflowTaskTimeout) as end:
            if end.__cause__ is not None:
                # The end of a poke, which has reported it.
                raise
            with self.skipping_softly(), self.failing_as_sensors_do():
                if isinstance(end, AirflowTaskTimeout):
                    raise
                # Airflow's own error does not mention the image task.
                raise polling.timed_out(sensor.image_task_id, self._last_read, time.time()) from end

    def poke(self) -> bool | PokeReturnValue:
        """Ask once after the image task."""
        sensor = self._sensor
        with self.failing_as_sensors_do():
            seconds = self._policy(self._end_time).seconds_for_a_read(time.time())
            self._asked = hook = self._hook or QwenImageHook(sensor.qwenimage_conn_id)
            outcome = hook.check(sensor.image_task_id, seconds=seconds)
            # Airflow itself ends the pokes at the timeout.
            decision = polling.decide(
                self._policy(), self._poll_state, outcome, image_task_id=sensor.image_task_id, now=time.time()
            )
            if not isinstance(decision, polling.Wait):
                self._span.note_end(decision)
            if isinstance(decision, polling.Done):
                return PokeReturnValue(is_done=True, xcom_value=self._finish(decision.snapshot))
            if isinstance(decision, polling.GiveUp):
                raise decision.error
            polling.log_notice(self._log, decision)
            self._poll_state, self.delay = decision.state, decision.delay
            return False

    def log_what_stays_paid(self) -> None:
        """Log what stays paid when the task is ended from outside while it waits in the worker."""
        if self._hook is not None:
            self._log.warning("%s", what_stays_paid(self._sensor.image_task_id, self._hook.last_credits))

    @contextmanager
    def failing_as_sensors_do(self) -> Iterator[None]:
        """Count and show what is raised in the block, and raise what Airflow expects of a sensor."""
        with reporting_failures(self._ti):
            try:
                yield
            except QwenImageTimeoutError as error:
                raise AirflowSensorTimeout(str(error)) from error
            except QwenImageTaskFailedError as error:
                if error.snapshot is not None:
                    self._show(error.snapshot)
                    self._settle_books(error.snapshot)
                    count_end(0, error.snapshot.consumed_credits)
                # A retry would get the same answer.
                raise AirflowFailException(f"{type(error).__name__}: {error}") from error
            except AirflowTaskTimeout as error:
                explanation = polling.timed_out(self._sensor.image_task_id, self._last_read, time.time())
                raise AirflowTaskTimeout(f"{error}. {explanation}") from error

    @contextmanager
    def skipping_softly(self, *also: type[BaseException]) -> Iterator[None]:
        """Treat `soft_fail` and `never_fail` in every mode as Airflow does in a poke, in all of its versions."""
        sensor = self._sensor
        try:
            yield
        except AirflowSkipException:
            raise
        except (Exception, AirflowTaskTimeout) as error:
            soft = isinstance(error, (AirflowFailException, AirflowSensorTimeout, AirflowTaskTimeout, *also))
            if sensor.never_fail or (sensor.soft_fail and soft):
                name = "never_fail" if sensor.never_fail else "soft_fail"
                raise AirflowSkipException(f"Skipped because of {name}: {error}") from error
            raise

    @property
    def _last_read(self) -> TaskSnapshot | QwenImageError | None:
        return None if self._asked is None else self._asked.last_read

    def _policy(self, end_time: float | None = None) -> polling.PollPolicy:
        sensor = self._sensor
        return polling.PollPolicy(
            poll_interval=sensor.poke_interval,
            end_time=end_time,
            max_consecutive_failures=_UNLIMITED_FAILURES if sensor.silent_fail else sensor.max_consecutive_failures,
        )

    def _finish(self, snapshot: TaskSnapshot) -> list[str]:
        self._sensor.outcome = {"image_urls": list(snapshot.image_urls), "paths": []}
        self._links.add(IMAGE)
        self._show(snapshot)
        self._settle_books(snapshot)
        count_end(len(snapshot.image_urls), snapshot.consumed_credits)
        self._log.info(
            "Image task %s is done: %d image(s), %s credits.",
            snapshot.task_id,
            len(snapshot.image_urls),
            snapshot.consumed_credits,
        )
        return list(snapshot.image_urls)

    def _settle_books(self, snapshot: TaskSnapshot) -> None:
        """Write in the books how the image task ended, if the connection names some."""
        with logging_errors("the image in the books"):
            if self._asked is not None:
                settle_end(self._asked.settings.books, self._sensor.qwenimage_conn_id, snapshot)

    def _show(self, snapshot: TaskSnapshot) -> None:
        self._push("consumed_credits", snapshot.consumed_credits)
        if request := snapshot.described_request():
            # If another DAG submitted it, nothing else describes the image to the gallery.
            self._push("request", request)

    def _push(self, key: str, value: Any) -> None:
        self._ti.xcom_push(key=key, value=value)
