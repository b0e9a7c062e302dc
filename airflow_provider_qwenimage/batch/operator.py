"""The operator that draws many images in one task, with one process and one client."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import BaseOperator, BaseOperatorLink

from airflow_provider_qwenimage import contract
from airflow_provider_qwenimage.client.connection import DEFAULT_CONN_ID, read_connection
from airflow_provider_qwenimage.links import GENERATED_IMAGES, PendingLinks
from airflow_provider_qwenimage.rules import polling
from airflow_provider_qwenimage.rules.arguments import ALLOWED_REQUESTS, BATCH_ARGUMENTS, is_rendered_later, path_text
from airflow_provider_qwenimage.rules.made_by import map_index_of, writer_of
from airflow_provider_qwenimage.rules.task_arguments import TaskArguments, reads_arguments
from airflow_provider_qwenimage.storage.paths import open_output_path

if TYPE_CHECKING:
    from typing import SupportsIndex

    from airflow.providers.common.compat.sdk import Context, ObjectStoragePath

    from airflow_provider_qwenimage.batch.image import DrawingOptions
    from airflow_provider_qwenimage.batch.manifest import BatchManifest
    from airflow_provider_qwenimage.batch.requests import BatchRequests
    from airflow_provider_qwenimage.batch.run import Batch
    from airflow_provider_qwenimage.rules.arguments import Number, Seconds
    from airflow_provider_qwenimage.rules.task_arguments import Folder, Requests, Text

_PROGRESS_SECONDS = 5.0
# Longer than the submissions that are under way are waited for, shorter than Airflow waits before it kills.
_STOP_SECONDS = 4.5


class QwenImageBatchOperator(TaskArguments, BaseOperator):
    """Draws many images in one task: one process, one client. Each image costs credits (5, as documented).

    Every request is checked before the first credit is spent. Then at most `max_in_flight` images are submitted, drawn,
    downloaded, verified and stored at once, each with its ``.json`` sidecar, as by `QwenImageGenerateOperator`:
    no image is paid twice, whatever crashes. Each submission is written down in a hidden file in `output_path`,
    before and after it is sent; a retry goes on where the try before it has stopped, and what stands in `output_path`
    already is not drawn again. Equal requests with the same seed are drawn once; with a random seed (the default)
    four equal prompts are four images.

    While it runs it logs its progress and pushes it as the XCom `progress`: ``requests``, ``done``, ``reused``,
    ``failed``, ``in_flight``, ``consumed_credits``, ``images_per_second``, ``seconds_left``, and ``rows``, a hidden
    file from which the gallery in Airflow's UI fills. At the end there is a ``manifest.jsonl`` beside the
    images (``manifest-<map index>.jsonl`` in a mapped task) with one row for each request, in their order, also where
    the task fails. The XCom `manifest` is its path, `consumed_credits` what the task has spent since it was first run
    or last cleared.

    It returns a dict: ``manifest``, ``requests``, ``images``, ``reused``, ``failed``, ``consumed_credits``.

    Args:
        requests: The prompts, or objects with the fields of a request (``prompt``, ``size``, ``seed``,
            ``output_format``, ``callback_url``); or the path or URL of a JSON Lines, JSON or CSV file of them, in any
            storage that Airflow knows. Templated.
        output_path: The folder to store images in: a path or any URL of Airflow's object storage. Templated.
        max_in_flight: How many images are under way at once.
        max_credits: The most credits that this task may spend until it is cleared, or None for no limit. Before an
            image that would pass it, at 5 credits for each (the documented price), it stops submitting.
        max_failures: How many images may fail. With one more, nothing more is submitted, what is paid is finished, and
            the task fails.
        overwrite: Whether to draw new images where those of the requests stand already.
        qwenimage_conn_id: The Airflow connection that holds the API key and the base URL. Templated.
        poll_interval: Seconds between the first polls of an image; it grows up to 10 s (the API's documented range).
        timeout: Seconds to wait at most for each image, from its submission on, as a number or a timedelta.
        max_consecutive_failures: How many failed reads in a row end the wait for an image.
        max_image_bytes: A longer download is refused. Default 50 MiB.
        **kwargs: What every operator takes.

    Raises:
        ValueError: If an argument that is not a template is not what is allowed. What is known only when the task runs
            is checked then, before anything is paid; the task fails without a retry.
    """

    template_fields: Sequence[str] = ("requests", "output_path", "qwenimage_conn_id")
    native_fields = ("requests",)
    argument_readers = BATCH_ARGUMENTS
    operator_extra_links: Collection[BaseOperatorLink] = (GENERATED_IMAGES,)
    ui_color = "#cdbff9"

    @reads_arguments
    def __init__(
        self,
        *,
        requests: Requests,
        output_path: Folder,
        max_in_flight: SupportsIndex = 16,
        max_credits: Number | None = None,
        max_failures: SupportsIndex = 0,
        overwrite: bool = False,
        qwenimage_conn_id: Text = DEFAULT_CONN_ID,
        poll_interval: Seconds = polling.DEFAULT_POLL_INTERVAL,
        timeout: Seconds = polling.DEFAULT_TIMEOUT,
        max_consecutive_failures: SupportsIndex = polling.DEFAULT_MAX_CONSECUTIVE_FAILURES,
        max_image_bytes: SupportsIndex = contract.DEFAULT_MAX_IMAGE_BYTES,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        # As `reads_arguments` has converted them.
        self.requests: Any = requests
        self.output_path: Any = output_path
        self.max_in_flight: Any = max_in_flight
        self.max_credits: Any = max_credits
        self.max_failures: Any = max_failures
        self.overwrite = overwrite
        self.qwenimage_conn_id: Any = qwenimage_conn_id
        self.poll_interval: Any = poll_interval
        self.timeout: Any = timeout
        self.max_consecutive_failures: Any = max_consecutive_failures
        self.max_image_bytes: Any = max_image_bytes
        self._batch: Batch | None = None

    def execute(self, context: Context) -> dict[str, Any]:
        """Draw the batch.

        Returns:
            The dict described above.
        """
        # Airflow parses DAG files all day: what only a task needs is not loaded for them.
        from airflow_provider_qwenimage.batch.manifest import BatchManifest
        from airflow_provider_qwenimage.batch.run import Batch
        from airflow_provider_qwenimage.hooks import QwenImageHook
        from airflow_provider_qwenimage.rules.batch_totals import Limits
        from airflow_provider_qwenimage.rules.made_by import description_of
        from airflow_provider_qwenimage.tasks.failures import reporting_failures

        ti = context["ti"]
        with reporting_failures(ti), ExitStack() as stack:
            self.check_rendered()
            scratch = stack.enter_context(_scratch_folder(writer_of(description_of(ti))))
            connection = QwenImageHook.get_connection(self.qwenimage_conn_id)
            read_connection(connection)
            requests = stack.enter_context(closing(self._read_requests(map_index_of(ti))))
            # Before a submission: storage that cannot be reached must not cost an image.
            folder = open_output_path(self.output_path)
            limits = Limits(self.max_credits, self.max_failures)
            options = self._options(ti, folder, scratch)
            batch = Batch(requests, connection, options, limits, self.max_in_flight)
            self._batch = stack.enter_context(closing(batch))
            self.log.info(
                "%d requests, %d images, %d at once, into %s.",
                len(requests),
                requests.number_to_draw,
                self.max_in_flight,
                folder,
            )
            PendingLinks(self).store_gallery(ti)
            manifest = BatchManifest(folder, requests, batch, options.made_by, scratch)
            manifest.check()
            self._run(ti, batch, manifest)
            return self._conclude(ti, self._put_manifest(ti, manifest), len(requests), batch)

    def on_kill(self) -> None:
        """Have the batch end within seconds. The API has no way to cancel an image task; the next try goes on."""
        if self._batch is not None:
            self._batch.stop("the task is ended from outside")

    def _run(self, ti: Any, batch: Batch, manifest: BatchManifest) -> None:
        last: dict[str, Any] = {}
        batch.start()
        try:
            while not batch.wait(_PROGRESS_SECONDS):
                last = self._report(ti, batch, last, manifest.list_rows())
        except BaseException as error:
            # A signal, or the task's `execution_timeout`; nothing that is paid may be lost with it.
            batch.stop(f"{type(error).__name__}: {error}")
            with suppress(Exception):
                batch.wait(_STOP_SECONDS)
            self._report(ti, batch, last)
            raise
        self._report(ti, batch, last)

    def _report(self, ti: Any, batch: Batch, last: Mapping[str, Any], rows: str | None = None) -> dict[str, Any]:
        from airflow_provider_qwenimage.tasks.failures import logging_errors

        progress = batch.progress() | ({} if rows is None else {"rows": rows})
        if progress == last:
            return progress
        with logging_errors("the progress"):
            ti.xcom_push(key="progress", value=progress)
        seconds_left = progress["seconds_left"]
        self.log.info(
            "%d of %d images are there (%d reused), %d failed, %d in flight; %g credits, %.1f images a second%s.",
            progress["done"],
            progress["requests"],
            progress["reused"],
            progress["failed"],
            progress["in_flight"],
            progress["consumed_credits"],
            progress["images_per_second"],
            f", about {seconds_left:.0f} s left" if seconds_left else "",
        )
        return progress

    def _conclude(self, ti: Any, manifest: str, requests: int, batch: Batch) -> dict[str, Any]:
        totals = batch.totals
        ti.xcom_push(key="manifest", value=manifest)
        ti.xcom_push(key="consumed_credits", value=totals.spent)
        problem = totals.problem(manifest, batch.interruption)
        if problem is not None:
            raise problem
        if totals.failures:
            self.log.warning("%d images failed, as max_failures allows; see %s.", totals.failures, manifest)
        return {
            "manifest": manifest,
            "requests": requests,
            "images": totals.drawn + totals.reused,
            "reused": totals.reused,
            "failed": totals.failures,
            "consumed_credits": totals.spent,
        }

    def _put_manifest(self, ti: Any, manifest: BatchManifest) -> str:
        return manifest.put(is_first_try=ti.try_number == 1)

    def _read_requests(self, map_index: int) -> BatchRequests:
        from airflow_provider_qwenimage.batch.request_files import open_requests
        from airflow_provider_qwenimage.batch.requests import BatchRequests, read_list
        from airflow_provider_qwenimage.rules.request_rows import file_reader

        source = path_text(self.requests) or self.requests
        reader = file_reader(source) if isinstance(source, str) else None
        if reader is None:
            return BatchRequests(read_list(source), map_index=map_index)
        with open_requests(source) as stream:
            return BatchRequests(reader(stream), map_index=map_index)

    def _options(self, ti: Any, folder: ObjectStoragePath, scratch: Path) -> DrawingOptions:
        from airflow_provider_qwenimage.batch.image import DrawingOptions
        from airflow_provider_qwenimage.rules.made_by import description_of

        return DrawingOptions(
            ti=ti,
            made_by=description_of(ti),
            folder=folder,
            scratch=scratch,
            poll_interval=self.poll_interval,
            timeout=self.timeout,
            max_consecutive_failures=self.max_consecutive_failures,
            max_image_bytes=self.max_image_bytes,
            overwrite=self.overwrite,
        )

    @classmethod
    def check_content(cls, name: str, value: Any) -> None:
        """Refuse bad requests while the DAG is parsed, rather than at night when it runs."""
        if name != "requests":
            return
        from airflow_provider_qwenimage.rules.request_rows import file_reader, shown_source

        if not isinstance(value, str):
            for number, row in enumerate(value, start=1):
                _check_literal(number, row)
        elif not (value.strip().startswith("[") or file_reader(value)):
            raise ValueError(f"requests is {shown_source(value)}; allowed is {ALLOWED_REQUESTS}.")


def _check_literal(number: int, value: object) -> None:
    from airflow_provider_qwenimage.batch.requests import read_request

    if any(map(is_rendered_later, value.values() if isinstance(value, Mapping) else [value])):
        return
    try:
        read_request(value)
    except ValueError as error:
        raise ValueError(f"requests has a bad row {number}: {error}") from None


@contextmanager
def _scratch_folder(writer: str) -> Iterator[Path]:
    """Make a local folder for temporary files, and remove those that killed tries of the task have left here."""
    prefix = f"qwenimage-batch-{writer}-"
    for left in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    try:
        yield folder
    finally:
        # A download that was cut off may still write there.
        shutil.rmtree(folder, ignore_errors=True)
