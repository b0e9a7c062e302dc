"""Runs the task of the batch operator: reads its requests, draws them, reports progress and writes the manifest."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

from airflow_provider_qwenimage.batch.image import ImageOptions
from airflow_provider_qwenimage.batch.manifest import BatchManifest
from airflow_provider_qwenimage.batch.marker import BatchMarker
from airflow_provider_qwenimage.batch.publishing import Publishing
from airflow_provider_qwenimage.batch.request_files import read_requests
from airflow_provider_qwenimage.batch.run import Batch
from airflow_provider_qwenimage.batch.scratch import scratch_folder
from airflow_provider_qwenimage.client.connection import read_connection
from airflow_provider_qwenimage.hooks import QwenImageHook
from airflow_provider_qwenimage.rules.batch_totals import Limits
from airflow_provider_qwenimage.rules.made_by import description_of, variant_of, writer_of
from airflow_provider_qwenimage.storage.paths import open_output_path
from airflow_provider_qwenimage.tasks.bookkeeping import open_task_books
from airflow_provider_qwenimage.tasks.drawing import EFFORT, answer_seconds
from airflow_provider_qwenimage.tasks.failures import logging_errors, reporting_failures
from airflow_provider_qwenimage.tasks.lineage import MAX_TASK_IDS
from airflow_provider_qwenimage.tasks.opening import mark_of, warn_about_other_hosts
from airflow_provider_qwenimage.text.messages import shown_credits

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

log = logging.getLogger(__name__)

_PROGRESS_SECONDS = 5.0
# Longer than the wait for submissions under way, shorter than Airflow's between a signal and the kill.
_STOP_SECONDS = 4.5


class BatchOperator(Protocol):
    """The part of `QwenImageBatchOperator` that its task needs: its arguments, converted and rendered."""

    requests: Any
    output_path: Any
    max_in_flight: Any
    max_credits: Any
    max_failures: Any
    overwrite: bool
    qwenimage_conn_id: Any
    poll_interval: Any
    timeout: Any
    max_consecutive_failures: Any
    max_image_bytes: Any
    provenance: Any
    contact_sheet: bool
    dataset: Any

    def check_rendered(self, *names: str) -> None:
        """Check the rendered arguments."""


class BatchTask:
    """A batch and its manifest, for the Airflow task instance that runs.

    Args:
        ti: Airflow's task instance.
        batch: The batch, not started yet.
        manifest: The list of its rows.
        publishing: What else is stored at its end.
    """

    def __init__(self, ti: Any, batch: Batch, manifest: BatchManifest, publishing: Publishing) -> None:
        self._ti = ti
        self._batch = batch
        self._manifest = manifest
        self._publishing = publishing
        self._reported: Mapping[str, Any] = {}
        # For lineage.
        self.facts: dict[str, Any] = {}

    def run(self) -> dict[str, Any]:
        """Draw the batch, store its manifest and push the XComs.

        Returns:
            The dict that `QwenImageBatchOperator` documents.

        Raises:
            QwenImageBatchError: If images are missing, beyond the failures that are allowed.
        """
        self._manifest.check()
        self._publishing.check()
        try:
            self._draw()
        except Exception as error:
            # It must not hide ids that only this process knows.
            if not self._batch.totals.unrecorded:
                raise
            why = f"{type(error).__name__}: {error}"
            raise self._batch.totals.problem(None, why, not_started=self._rows_not_started()) or error from error
        return self._conclude()

    @property
    def event_facts(self) -> dict[str, Any]:
        """What the events of assets contain besides the result."""
        return {
            "rows": len(self._batch.requests),
            "manifest_sha256": self._manifest.sha256,
            **self._publishing.facts,
        }

    def stop(self, reason: str) -> None:
        """End the batch within seconds; see `Batch.stop`."""
        self._publishing.stop()
        self._batch.stop(reason)

    def _draw(self) -> None:
        self._batch.start()
        try:
            while not self._batch.wait(_PROGRESS_SECONDS):
                self._report(self._manifest.list_rows())
        except BaseException as error:
            # A signal, or the task's `execution_timeout`: write down everything that is paid.
            self._batch.stop(f"{type(error).__name__}: {error}")
            with suppress(Exception):
                self._batch.wait(_STOP_SECONDS)
            self._report()
            self._push_unrecorded()
            raise
        self._report()

    def _report(self, rows: str | None = None) -> None:
        """Push and log the progress, if it has changed; `rows` is the path of the list of rows, if there is one."""
        progress = self._batch.progress() | ({} if rows is None else {"rows": rows})
        if progress == self._reported:
            return
        self._reported = progress
        with logging_errors("the progress"):
            self._ti.xcom_push(key="progress", value=progress)
        seconds_left = progress["seconds_left"]
        log.info(
            "%d of %d images stored (%d reused), %d failed, %d in flight; %g credits%s, %.1f images per second%s.",
            progress["done"],
            progress["requests"],
            progress["reused"],
            progress["failed"],
            progress["in_flight"],
            progress["consumed_credits"],
            f" and {shown_credits(progress['at_risk'])} at risk" if progress["at_risk"] else "",
            progress["images_per_second"],
            f", about {seconds_left:.0f} s left" if seconds_left else "",
        )

    def _put_manifest(self) -> str:
        return self._manifest.put(is_first_try=self._ti.try_number == 1)

    def _conclude(self) -> dict[str, Any]:
        totals = self._batch.totals
        self.facts = {
            "task_ids": list(islice(self._image_task_ids(), MAX_TASK_IDS)),
            "consumed_credits": totals.spent,
            "images": totals.drawn + totals.reused,
            "reused": totals.reused,
            "failed": totals.failures,
        }
        errors = [*self._push_unrecorded(), *self._push("consumed_credits", totals.spent)]
        if totals.at_risk:
            errors += self._push("at_risk", totals.at_risk)
        manifest = None
        try:
            manifest = self._put_manifest()
        except Exception as error:  # noqa: BLE001  any storage's; it must not hide what the batch has to report
            errors.append(error)
        else:
            errors += self._push("manifest", manifest)
            self.facts["manifest"] = manifest
            sheets = self._publishing.put_contact_sheet()
            if sheets:
                # Without it, only the gallery shows less.
                self._push("contact_sheet", sheets)
        not_written = f"Not all of it could be stored ({type(errors[0]).__name__}: {errors[0]})." if errors else None
        problem = totals.problem(
            manifest, self._batch.interruption, not_started=self._rows_not_started(), not_written=not_written
        )
        if problem is not None:
            raise problem from (errors[0] if errors else None)
        try:
            self._publishing.put_dataset()
        except Exception as error:  # noqa: BLE001  as above
            errors.append(error)
        if errors:
            # All images are stored: a retry writes the rest, and costs nothing.
            raise errors[0]
        if totals.failures:
            log.warning("%d images failed, as max_failures allows; see %s.", totals.failures, manifest)
        return {
            "manifest": manifest,
            "requests": len(self._batch.requests),
            "images": totals.drawn + totals.reused,
            "reused": totals.reused,
            "failed": totals.failures,
            "consumed_credits": totals.spent,
            "at_risk": totals.at_risk,
        }

    def _image_task_ids(self) -> Iterator[str]:
        for number in range(len(self._batch.requests)):
            outcome = self._batch.outcome(number)
            if outcome is not None and outcome.get("task_id") is not None:
                yield outcome["task_id"]

    def _rows_not_started(self) -> Iterator[int]:
        """Yield the numbers of the rows that were not begun, counted from 1, without those that share an image."""
        for number in range(len(self._batch.requests)):
            if self._batch.outcome(number) is None and self._batch.requests[number].same_as is None:
                yield number + 1

    def _push_unrecorded(self) -> list[Exception]:
        """Push and log the image tasks that only this process knows; see `BatchTotals.unrecorded`."""
        unrecorded = self._batch.totals.unrecorded
        if not unrecorded:
            return []
        for row, image_task_id in unrecorded:
            log.error("Row %d: image task %s is accepted, and its id could not be recorded.", row, image_task_id)
        return self._push("unrecorded", [{"row": row, "task_id": image_task_id} for row, image_task_id in unrecorded])

    def _push(self, key: str, value: Any) -> list[Exception]:
        """Push an XCom, and return its error, if there is one, rather than have it hide another one."""
        try:
            self._ti.xcom_push(key=key, value=value)
        except Exception as error:  # Airflow's own, and every XCom backend's
            log.warning("The XCom %s could not be pushed.", key, exc_info=True)
            return [error]
        return []


@contextmanager
def opened_batch(operator: BatchOperator, context: Context) -> Iterator[BatchTask]:
    """Check a task's arguments, read its requests and open its folder, so that only a sound batch costs anything.

    Args:
        operator: The operator, rendered.
        context: The task's context.

    Raises:
        ValueError: If an argument, a request or the connection is not valid.
        OSError: If the requests cannot be read or the storage cannot be reached.
    """
    ti = context["ti"]
    with reporting_failures(ti), ExitStack() as stack:
        operator.check_rendered()
        made_by = description_of(ti)
        scratch = stack.enter_context(scratch_folder(writer_of(made_by)))
        connection = QwenImageHook.get_connection(operator.qwenimage_conn_id)
        settings = read_connection(connection)
        requests = stack.enter_context(closing(read_requests(operator.requests, variant_of(ti))))
        # Before a submission: storage that cannot be reached must not cost an image.
        folder = open_output_path(operator.output_path)
        warn_about_other_hosts(context, folder)
        books = open_task_books(settings, operator.qwenimage_conn_id, made_by, ti.try_number, is_batch=True)
        if books is not None:
            stack.enter_context(closing(books))
        marker = BatchMarker(context, folder, made_by)
        marker.check()
        options = ImageOptions(
            context=context,
            # New images that this task has drawn stay its own until it succeeds, also if it is cleared.
            instance=made_by | {EFFORT: marker.effort} if operator.overwrite else made_by,
            folder=folder,
            scratch=scratch,
            poll_interval=operator.poll_interval,
            timeout=operator.timeout,
            max_consecutive_failures=operator.max_consecutive_failures,
            max_image_bytes=operator.max_image_bytes,
            overwrite=operator.overwrite,
            answer_seconds=answer_seconds(settings, operator.max_in_flight),
            before_submission=marker.mark,
            books=books,
            mark=mark_of(operator.provenance),
        )
        limits = Limits(operator.max_credits, operator.max_failures)
        batch = stack.enter_context(closing(Batch(requests, connection, options, limits, operator.max_in_flight)))
        log.info(
            "%d requests, %d images, at most %d at once, into %s.",
            len(requests),
            requests.number_to_draw,
            operator.max_in_flight,
            folder,
        )
        manifest = BatchManifest(folder, batch, made_by, scratch)
        publishing = Publishing(
            folder,
            manifest,
            made_by,
            scratch,
            contact_sheet=operator.contact_sheet,
            is_marked=operator.provenance is not False,
            dataset=operator.dataset,
        )
        yield BatchTask(ti, batch, manifest, publishing)
        marker.remove()
