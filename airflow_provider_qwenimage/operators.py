"""The operators: for one image, for batches, and for a person's choice among images."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.providers.common.compat.sdk import BaseOperator, BaseOperatorLink, conf

from airflow_provider_qwenimage import contract
from airflow_provider_qwenimage.batch.operator import QwenImageBatchOperator
from airflow_provider_qwenimage.client.connection import DEFAULT_CONN_ID
from airflow_provider_qwenimage.links import GENERATED_IMAGES, IMAGE
from airflow_provider_qwenimage.rules import wait_defaults
from airflow_provider_qwenimage.rules.arguments import REQUEST_FIELDS, check_named_image
from airflow_provider_qwenimage.rules.task_arguments import TaskArguments, reads_arguments
from airflow_provider_qwenimage.tasks.lineage import ReportsLineage

if TYPE_CHECKING:
    from typing import SupportsIndex

    import jinja2
    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_qwenimage.choosing.operator import QwenImageChooseOperator
    from airflow_provider_qwenimage.rules.arguments import Number, Seconds
    from airflow_provider_qwenimage.rules.task_arguments import Folder, Provenance, Text
    from airflow_provider_qwenimage.tasks.generating import Generating

__all__ = ["QwenImageBatchOperator", "QwenImageChooseOperator", "QwenImageGenerateOperator"]


def __getattr__(name: str) -> Any:
    # Only the DAG files that use it load Airflow's human in the loop.
    if name == "QwenImageChooseOperator":
        from airflow_provider_qwenimage.choosing import operator

        return operator.QwenImageChooseOperator
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class QwenImageGenerateOperator(ReportsLineage, TaskArguments, BaseOperator):
    """Submits one image to the Qwen-Image API. Costs credits (5 for each image, as documented).

    It pushes the XCom `request` before the submission, and `task_id`, the API's id of the image task, directly after
    it. If the task fails, the XCom `error` gives the reason.

    - By default it only submits, and returns that id. Pass it to a `QwenImageStatusSensor`.
    - With `wait_for_completion` it waits (in the triggerer, if `deferrable` is set) and returns a dict:
      ``task_id``, ``status``, ``image_urls``, ``paths``, ``consumed_credits``, ``seed``, ``size``,
      ``output_format``, ``reused``. It also pushes the XCom `consumed_credits`.
    - With `output_path`, which implies waiting, each image is also downloaded, verified and stored. A request
      whose image is already stored is not submitted: ``reused`` is true, and the credits are 0.

    It submits once, whatever crashes: it records each submission before and after it is sent, in Airflow's task state
    (3.3 and later) and in hidden files in `output_path`, and a retry resumes what was submitted. If a try ended in the
    middle of a submission, the retry fails with `QwenImageSubmissionUnknownError` instead; clear the task to submit
    again. On Airflow below 3.3 without an `output_path` nothing can be recorded: any error after a submission fails the
    task without a retry, but if its worker is killed, Airflow's retry submits, and pays, again.

    Tasks and runs that ask for the same image in the same `output_path` share one submission, also at the same time:
    for all but the one that submitted it, ``reused`` is true, and the credits are 0. A subclass may call
    ``super().execute`` several times, in the same order in each try: each call draws an image of its own.

    Args:
        prompt: What to draw, 1 to 2000 characters. Templated.
        size: Width times height in pixels, one of `contract.SIZES`. Templated.
        seed: An integer from 0 upwards, or -1 for a random one. A text or a whole float of it is accepted. Templated.
            Like `size`, `output_format` and `callback_url`, it may be None or empty for its default.
        output_format: ``jpeg``, ``png`` or ``webp``. Templated.
        callback_url: An http(s) URL that the API calls when the task completes. Templated.
        qwenimage_conn_id: The Airflow connection that holds the API key and the base URL. Templated.
        wait_for_completion: Whether to wait until the image task ends.
        deferrable: Whether to wait in the triggerer, without a worker slot. Default: Airflow's
            ``[operators] default_deferrable``.
        poll_interval: Seconds between the first polls; it grows up to 10 s (the API's documented range).
        timeout: Seconds to wait at most, as a number or a timedelta; up to ten years.
        max_consecutive_failures: How many failed reads in a row end the wait.
        defer_after: With `deferrable`, seconds to wait in the worker before the task is deferred, as a number or a
            timedelta: an image that is ready by then needs no second process, but the task has a worker slot for so
            long.
        output_path: The folder to store images in: a path or any URL of Airflow's object storage, such as
            ``s3://aws_default@bucket/images``, as a text, Path or ObjectStoragePath. Templated. File names come from
            the request; with a random seed also from the map index.
        image_name: The name of the file in `output_path`, without its suffix and without path separators, instead of
            one from the request; None or empty for that one. It identifies the image, whatever the map index: a request
            that is stored under this name is not paid again, and another request under it is refused before anything
            is paid, unless `overwrite` is set. Templated.
        label: What people see of the image in the gallery and, if the task is mapped without a `map_index_template`,
            instead of the map index in Airflow's UI: at most 200 characters. It is no part of the image, and the API is
            not told. In the task it is the attribute `image_label`. Templated.
        max_image_bytes: The limit for a download in bytes. Default 50 MiB.
        overwrite: Whether to draw a new image if the image of the request is already stored, and to replace any file
            that has its name. Without it, a file that is not the image which its sidecar describes fails the task
            before anything is paid.
        durable: Whether to record submissions. With False, each retry submits, and pays, again.
        max_credits: The most credits that this task may spend until it is cleared, or None for no limit. It
            fails before a submission that would exceed it. The price assumed for an image is what was last charged for
            one, and at least 5 credits (the documented price).
        prompt_in_asset_events: Whether the events of assets among the `outlets` contain the prompt, which everybody who
            may see assets then sees.
        provenance: What is written into the file of the image, as XMP metadata; its pixels stay as they are. ``mark``
            says that it is the work of a generative model, and has the time and the API's id of the image task.
            ``full`` adds the prompt, the seed, the DAG and the run. False stores the bytes as they came. An image that
            is stored already stays as it is.
        **kwargs: What every operator takes.

    Raises:
        ValueError: If an argument is not allowed. Templates are checked when the task runs, before anything is paid;
            the task then fails without a retry.
    """

    template_fields: Sequence[str] = (*REQUEST_FIELDS, "qwenimage_conn_id", "output_path", "image_name", "image_label")
    # Any task of Airflow has a label already, which names it in the graph.
    field_arguments: ClassVar[Mapping[str, str]] = {"image_label": "label"}
    operator_extra_links: Collection[BaseOperatorLink] = (GENERATED_IMAGES, IMAGE)
    ui_color = "#dcd3fb"

    @reads_arguments
    def __init__(
        self,
        *,
        prompt: Text,
        size: Text | None = contract.DEFAULT_SIZE,
        seed: Text | Number | None = contract.RANDOM_SEED,
        output_format: Text | None = contract.DEFAULT_OUTPUT_FORMAT,
        callback_url: Text | None = None,
        qwenimage_conn_id: Text = DEFAULT_CONN_ID,
        wait_for_completion: bool = False,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        poll_interval: Seconds = wait_defaults.DEFAULT_POLL_INTERVAL,
        timeout: Seconds = wait_defaults.DEFAULT_TIMEOUT,
        max_consecutive_failures: SupportsIndex = wait_defaults.DEFAULT_MAX_CONSECUTIVE_FAILURES,
        defer_after: Seconds = wait_defaults.DEFAULT_DEFER_AFTER,
        output_path: Folder | None = None,
        image_name: Text | Number | None = None,
        label: Text | Number | None = None,
        max_image_bytes: SupportsIndex = contract.DEFAULT_MAX_IMAGE_BYTES,
        overwrite: bool = False,
        durable: bool = True,
        max_credits: Number | None = None,
        prompt_in_asset_events: bool = False,
        provenance: Provenance = "mark",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        # As `reads_arguments` converted them.
        self.prompt = prompt
        self.size = size
        self.seed = seed
        self.output_format = output_format
        self.callback_url = callback_url
        self.qwenimage_conn_id: Any = qwenimage_conn_id
        self.wait_for_completion = wait_for_completion
        self.deferrable = deferrable
        self.poll_interval: Any = poll_interval
        self.timeout: Any = timeout
        self.max_consecutive_failures: Any = max_consecutive_failures
        self.defer_after: Any = defer_after
        self.output_path: Any = output_path
        self.image_name: Any = image_name
        self.image_label: Any = label
        self.max_image_bytes: Any = max_image_bytes
        self.overwrite = overwrite
        self.durable = durable
        self.max_credits: Any = max_credits
        self.prompt_in_asset_events = prompt_in_asset_events
        self.provenance = provenance
        # The work of this process.
        self._generating: Generating | None = None
        # For the link "Image": what this task returns.
        self.outcome: dict[str, Any] | None = None
        if "output_path" not in self.refusals:
            try:
                check_named_image(image_name, output_path)
            except ValueError as refusal:
                self.refuse("image_name", refusal)
            if self.multiple_outputs and not wait_for_completion and output_path is None:
                # Airflow would notice after the image is paid.
                self.refuse(
                    "multiple_outputs",
                    ValueError(
                        "multiple_outputs is True; it must be False without wait_for_completion or an output_path, "
                        "because such a task returns a task id, not a dict."
                    ),
                )

    def execute(self, context: Context) -> Any:
        """Submit, unless the image is stored or submitted already; wait and store if asked.

        Returns:
            The API's task id, or the dict described above.
        """
        self.show_label(context)
        return self._start(context).run()

    def render_template(
        self, content: Any, context: Any, jinja_env: jinja2.Environment | None = None, seen_oids: set[int] | None = None
    ) -> Any:
        """Render as `TaskArguments` does, and show the label of a mapped task before it begins."""
        if content is not None and content is self.image_label:
            self.show_label(context)
        return super().render_template(content, context, jinja_env, seen_oids)

    def show_label(self, context: Any) -> None:
        """Have Airflow show the label of a mapped task instead of its map index.

        Args:
            context: The task's context, from which Airflow takes the template of what it shows.
        """
        if self._was_mapped and self.image_label is not None and context.get("map_index_template") is None:
            context["map_index_template"] = "{{ task.image_label or ti.map_index }}"

    def execute_complete(self, context: Context, event: Any = None) -> Any:
        """Store and return the image when the trigger fired.

        Args:
            context: The task's context.
            event: What the trigger fired.
        """
        return self._start(context).resume(event)

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Resume as Airflow says; if the trigger itself failed, keep the paid image from being paid again."""
        if next_method == "execute_complete":
            return super().resume_execution(next_method, next_kwargs, context)
        with self._start(context).resume_after_failed_trigger():
            return super().resume_execution(next_method, next_kwargs, context)

    def on_kill(self) -> None:
        """Submit nothing more, and log what stays paid: the API has no way to cancel an image task."""
        if self._generating is not None:
            self._generating.stop()

    def lineage_facts(self) -> Mapping[str, Any]:
        """Return the facts about the image for OpenLineage."""
        return self._generating.facts() if self._generating is not None else {}

    def _start(self, context: Context) -> Generating:
        # Airflow parses DAG files all day: what only a task needs is not loaded for them.
        from airflow_provider_qwenimage.tasks.generating import Generating

        self._generating = Generating(self, context)
        return self._generating
