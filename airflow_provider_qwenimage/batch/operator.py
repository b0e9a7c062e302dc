"""The operator that draws many images in one task, with one process and one client."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import BaseOperator, BaseOperatorLink

from airflow_provider_qwenimage import contract
from airflow_provider_qwenimage.batch.requests import check_requests
from airflow_provider_qwenimage.client.connection import DEFAULT_CONN_ID
from airflow_provider_qwenimage.links import GENERATED_IMAGES, PendingLinks
from airflow_provider_qwenimage.rules import wait_defaults
from airflow_provider_qwenimage.rules.arguments import BATCH_ARGUMENTS
from airflow_provider_qwenimage.rules.task_arguments import TaskArguments, reads_arguments
from airflow_provider_qwenimage.tasks.lineage import ReportsLineage

if TYPE_CHECKING:
    from typing import SupportsIndex

    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_qwenimage.batch.task import BatchTask
    from airflow_provider_qwenimage.rules.arguments import Number, Seconds
    from airflow_provider_qwenimage.rules.task_arguments import Dataset, Folder, Provenance, Requests, Text


class QwenImageBatchOperator(ReportsLineage, TaskArguments, BaseOperator):
    """Draws many images in one task: one process, one client. Each image costs credits (5, as documented).

    Every request is checked before the first credit is spent. Then at most `max_in_flight` images at once are
    submitted, drawn, downloaded, verified and stored, each with its ``.json`` sidecar, as by
    `QwenImageGenerateOperator`. No image is paid twice, whatever crashes: each submission is recorded in hidden files
    in `output_path`, before and after it is sent. A retry resumes the images that are paid, and images that are stored
    in `output_path` already are not drawn again. What another task or run has submitted there is shared: it is
    ``reused``, for 0 credits. Equal requests with the same seed or name are drawn once; with a random seed (the
    default) and no name, four equal prompts are four images.

    While it runs, it logs its progress and pushes it as the XCom `progress`: ``requests``, ``done``, ``reused``,
    ``failed``, ``in_flight``, ``consumed_credits``, ``at_risk``, ``images_per_second``, ``seconds_left``, and ``rows``,
    the path of a hidden file that the gallery in the Airflow UI reads. At the end, even if the task fails, it stores a
    ``manifest.jsonl`` next to the images (``manifest-<map index>.jsonl`` in a mapped task) with one row for each
    request, in their order. The XCom `manifest` is its path; `consumed_credits` are what the API charged since the task
    was first run or last cleared, also for images that are not stored yet. `at_risk`, pushed if it is above 0, are
    credits that may have been charged as well: for submissions whose answers were lost, and for unfinished images whose
    price is not known. `unrecorded` lists the row and the id of each image task that was accepted although its id
    could not be recorded, for example because the disk was full.

    It returns a dict: ``manifest``, ``requests``, ``images``, ``reused``, ``failed``, ``consumed_credits``,
    ``at_risk``. While a paid image can still be fetched, it does not succeed, whatever `max_failures` allows.

    Args:
        requests: The prompts, or objects with the fields of a request (``prompt``, ``size``, ``seed``,
            ``output_format``, ``callback_url``) and ``name``, the name of the image's file without its suffix; or the
            path or URL of a JSON Lines, JSON or CSV file of them, in any storage that Airflow knows. Templated.
        output_path: The folder to store images in: a path or any URL of Airflow's object storage. Templated.
        max_in_flight: How many images are under way at once.
        max_credits: The most credits that this task may spend until it is cleared, or None for no limit. It stops
            submitting before an image that would exceed the limit. The price assumed for it, and for each image in
            flight, is what was last charged for one, and at least 5 credits (the documented price).
        max_failures: How many images may fail. After one more, nothing more is submitted, the images that are paid are
            finished, and the task fails.
        overwrite: Whether to draw new images for requests whose images are stored already, and to replace any file that
            has the name of an image. If it fails and is cleared, the images that it has drawn itself are reused.
        qwenimage_conn_id: The Airflow connection that holds the API key and the base URL. Templated.
        poll_interval: Seconds between the first polls of an image; it grows up to 10 s (the API's documented range).
        timeout: The longest wait for each image from its submission on, in seconds or as a timedelta.
        max_consecutive_failures: How many failed reads in a row end the wait for an image.
        max_image_bytes: A longer download is refused. Default 50 MiB.
        provenance: What is written into the file of each image; see `QwenImageGenerateOperator`.
        contact_sheet: Whether to store ``contact-sheet.jpg`` next to the manifest, also if the task fails: a picture of
            all images with their labels and seeds; for more than 100 rows also ``contact-sheet-2.jpg`` and so on. In a
            mapped task the name is ``contact-sheet-m<map index>.jpg``. The XCom `contact_sheet` is the list of their
            paths. An error in making it is logged as a warning.
        dataset: ``imagefolder`` makes the folder a dataset for the Hugging Face library `datasets` (3.6 or later): if
            the batch succeeds, it stores ``metadata.jsonl`` next to the images, which ``load_dataset("imagefolder",
            data_files="…/metadata.jsonl")`` loads. Each mapped batch needs a folder of its own. None for no dataset.
        dry_run: Whether only to plan the batch: nothing is submitted, paid or written, and the connection is not used.
            The task logs what it would do and what that costs, and returns it as ``airflow qwenimage plan --output
            json`` prints it. It fails if a row is bad, or if more rows are sure to fail than `max_failures` allows.
        **kwargs: Arguments of every operator.

    Raises:
        ValueError: If an argument that is not a template is not valid. Rendered arguments and the requests are checked
            when the task runs, before anything is paid; the task then fails without a retry.
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
        poll_interval: Seconds = wait_defaults.DEFAULT_POLL_INTERVAL,
        timeout: Seconds = wait_defaults.DEFAULT_TIMEOUT,
        max_consecutive_failures: SupportsIndex = wait_defaults.DEFAULT_MAX_CONSECUTIVE_FAILURES,
        max_image_bytes: SupportsIndex = contract.DEFAULT_MAX_IMAGE_BYTES,
        provenance: Provenance = "mark",
        contact_sheet: bool = False,
        dataset: Dataset | None = None,
        dry_run: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        # As `reads_arguments` converted them.
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
        self.provenance = provenance
        self.contact_sheet = contact_sheet
        self.dataset = dataset
        # Every operator has a method `dry_run`, which `airflow tasks test --dry-run` calls.
        self.only_plans = dry_run
        self._batch_task: BatchTask | None = None

    def execute(self, context: Context) -> dict[str, Any]:
        """Draw the batch.

        Returns:
            The dict described above.
        """
        if self.only_plans:
            from airflow_provider_qwenimage.batch.plan import plan_task

            return plan_task(self, context)
        # Airflow parses DAG files all day: what only a running task needs is not loaded for them.
        from airflow_provider_qwenimage.batch.task import opened_batch
        from airflow_provider_qwenimage.tasks.asset_events import add_batch_events

        ti = context["ti"]
        with opened_batch(self, context) as batch_task:
            self._batch_task = batch_task
            PendingLinks(self).store_gallery(ti)
            result = batch_task.run()
            add_batch_events(self, context, result | batch_task.event_facts)
            return result

    def on_kill(self) -> None:
        """End the batch within seconds. The API cannot cancel an image task; the next try resumes it."""
        if self._batch_task is not None:
            self._batch_task.stop("the task was ended from outside")

    def lineage_facts(self) -> Mapping[str, Any]:
        """Return the facts about the images for OpenLineage."""
        return self._batch_task.facts if self._batch_task is not None else {}

    @classmethod
    def check_content(cls, name: str, value: Any) -> None:
        """Refuse bad requests when the DAG is parsed, rather than at night when it runs."""
        if name == "requests":
            check_requests(value)
