"""The operators: the one that submits an image and, if asked, waits for it and stores it; and the one of batches."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import BaseOperator, conf

from airflow_provider_qwenimage import contract
from airflow_provider_qwenimage.batch.operator import QwenImageBatchOperator
from airflow_provider_qwenimage.client.connection import DEFAULT_CONN_ID
from airflow_provider_qwenimage.exceptions import QwenImageTaskFailedError
from airflow_provider_qwenimage.links import GENERATED_IMAGES, IMAGE, links_to_store, show_gallery
from airflow_provider_qwenimage.rules import polling
from airflow_provider_qwenimage.rules.arguments import REQUEST_FIELDS, read_request
from airflow_provider_qwenimage.rules.task_arguments import TaskArguments, reads_arguments
from airflow_provider_qwenimage.text.storable import storable

if TYPE_CHECKING:
    from typing import SupportsIndex

    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_qwenimage.contract import GenerateRequest, TaskSnapshot
    from airflow_provider_qwenimage.hooks import QwenImageHook
    from airflow_provider_qwenimage.rules.arguments import Number, Seconds
    from airflow_provider_qwenimage.rules.submissions import GoBack
    from airflow_provider_qwenimage.rules.task_arguments import Folder, Text
    from airflow_provider_qwenimage.storage.images import StoredImages
    from airflow_provider_qwenimage.tasks.running_task import RunningTask

__all__ = ["QwenImageBatchOperator", "QwenImageGenerateOperator"]


class QwenImageGenerateOperator(TaskArguments, BaseOperator):
    """Submits one image to the Qwen-Image API. Costs credits (5 for each image, as documented).

    It pushes the XCom `request` (what is submitted) before the submission, and `task_id`, the API's id of the image
    task, before anything else can fail after it. Where it fails, the XCom `error` says why.

    - By default it only submits, and returns that id: hand it to a `QwenImageStatusSensor`.
    - With `wait_for_completion` it waits, in the triggerer where `deferrable` is set, and returns a dict:
      ``task_id``, ``status``, ``image_urls``, ``paths``, ``consumed_credits``, ``seed``, ``size``,
      ``output_format``, ``reused``. It also pushes the XCom `consumed_credits`.
    - With `output_path`, which implies waiting, each image is downloaded, verified and stored first. A request
      whose image stands there already is not submitted: ``reused`` is true then, and the credits are 0.

    It submits once, whatever crashes: it writes down each submission before and after it is sent, in Airflow's
    store for task states (3.3 and later) or else in a hidden file in `output_path`, and a retry goes back to
    what was submitted. Where a try ended in the middle of a submission, it fails with
    `QwenImageSubmissionUnknownError` instead; clearing the task then submits again. On Airflow below 3.3 without
    an `output_path` nothing can be written down: the task fails without a retry on any error after a submission,
    but when its worker is killed, Airflow's retry submits, and pays, again.

    Args:
        prompt: What to draw, 1 to 2000 characters. Templated.
        size: Width times height in pixels, one of `contract.SIZES`. Templated.
        seed: An integer from 0 upwards, or -1 for a random one; its text, or a float without a fraction, is fine too.
            Templated. Like `size`, `output_format` and `callback_url`, it may be None or empty for its default.
        output_format: ``jpeg``, ``png`` or ``webp``. Templated.
        callback_url: An http(s) URL that the API calls when the task completes. Templated.
        qwenimage_conn_id: The Airflow connection that holds the API key and the base URL. Templated.
        wait_for_completion: Whether to wait until the image task ends.
        deferrable: Whether to wait in the triggerer, without a worker slot. Default: Airflow's
            ``[operators] default_deferrable``.
        poll_interval: Seconds between the first polls; it grows up to 10 s (the API's documented range).
        timeout: Seconds to wait at most, as a number or a timedelta; up to ten years.
        max_consecutive_failures: How many failed reads in a row end the wait.
        output_path: The folder to store images in: a path or any URL of Airflow's object storage, such as
            ``s3://aws_default@bucket/images``, as a text, Path or ObjectStoragePath. Templated. File names come from
            the request; with a random seed also from the map index.
        max_image_bytes: A longer download is refused. Default 50 MiB.
        overwrite: Whether to draw a new image where the request's image stands already.
        durable: Whether to write submissions down. With False each retry submits, and pays, again.
        max_credits: The most credits that this task may spend until it is cleared, or None for no limit. It
            fails before a submission that would pass it, at 5 credits for an image (the documented price).
        **kwargs: What every operator takes.

    Raises:
        ValueError: If an argument that is not a template is not what is allowed. What is known only when the task runs
            is checked then, before anything is paid; the task fails without a retry.
    """

    template_fields: Sequence[str] = (*REQUEST_FIELDS, "qwenimage_conn_id", "output_path")
    operator_extra_links = (GENERATED_IMAGES, IMAGE)
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
        poll_interval: Seconds = polling.DEFAULT_POLL_INTERVAL,
        timeout: Seconds = polling.DEFAULT_TIMEOUT,
        max_consecutive_failures: SupportsIndex = polling.DEFAULT_MAX_CONSECUTIVE_FAILURES,
        output_path: Folder | None = None,
        max_image_bytes: SupportsIndex = contract.DEFAULT_MAX_IMAGE_BYTES,
        overwrite: bool = False,
        durable: bool = True,
        max_credits: Number | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        # As `reads_arguments` has converted them.
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
        self.output_path: Any = output_path
        self.max_image_bytes: Any = max_image_bytes
        self.overwrite = overwrite
        self.durable = durable
        self.max_credits: Any = max_credits
        # For `on_kill`: what is submitted, and the client that waits for it.
        self._submitted: str | None = None
        self._hook: QwenImageHook | None = None
        # For the link "Image": what this task returns.
        self.outcome: dict[str, Any] | None = None

    def execute(self, context: Context) -> Any:
        """Submit, unless it is done or under way already; wait and store where asked.

        Returns:
            The API's task id, or the dict described above.
        """
        # Airflow parses DAG files all day: what only a task needs is not loaded for them.
        from airflow_provider_qwenimage.hooks import QwenImageHook
        from airflow_provider_qwenimage.rules.submissions import GoBack, Stop, Submit
        from airflow_provider_qwenimage.tasks.failures import failing_for_good
        from airflow_provider_qwenimage.tasks.metrics import count_failure
        from airflow_provider_qwenimage.tasks.running_task import RunningTask

        links_to_store(self, GENERATED_IMAGES)
        with failing_for_good(context["ti"]), ExitStack() as stack:
            self.check_rendered()
            hook = stack.enter_context(QwenImageHook(self.qwenimage_conn_id))
            request = self._request()
            # Before a submission: storage that cannot be reached must not cost an image.
            task = RunningTask.open(context, output_path=self.output_path, durable=self.durable)
            step = task.ledger.next_step(request)
            if isinstance(step, Stop):
                raise step.error
            if isinstance(step, GoBack):
                try:
                    return self._go_back(task, hook, step)
                except QwenImageTaskFailedError as error:
                    if error.permanent:
                        raise
                    count_failure(error)
                    self.log.warning("%s This try submits it again.", error)
                    step = Submit(task.ledger.spent)
            stored = task.find_images(request)
            # What an earlier try of this task has stored is its own: no reuse, and nothing to overwrite.
            if stored is not None and (stored.made_by == task.description or not self.overwrite):
                return self._use_stored(task, request, stored, reused=stored.made_by != task.description)
            # Before the submission: what fails is shown with its prompt as well.
            task.push("request", request.description())
            image_task_id = task.submit(hook, request, step, max_credits=self.max_credits)
            return self._follow(task, hook, image_task_id, request)

    def execute_complete(self, context: Context, event: Any = None) -> Any:
        """Go on when the trigger has fired.

        Args:
            context: The task's context.
            event: What the trigger fired.
        """
        from airflow_provider_qwenimage.hooks import QwenImageHook
        from airflow_provider_qwenimage.tasks.deferral import is_of_an_earlier_try
        from airflow_provider_qwenimage.tasks.failures import failing_for_good
        from airflow_provider_qwenimage.tasks.running_task import RunningTask
        from airflow_provider_qwenimage.triggers import snapshot_of

        if is_of_an_earlier_try(event, context["ti"].try_number):
            return self.execute(context)
        links_to_store(self)
        with failing_for_good(context["ti"]):
            self.check_rendered("output_path")
            task = RunningTask.open(context, output_path=self.output_path, durable=self.durable)
            image_task_id, request = task.submitted()
            request = request or self._request()
            if event is None:
                # Resumed by something else than the trigger: the API knows how far the image task is.
                with QwenImageHook(self.qwenimage_conn_id) as hook:
                    return self._follow(task, hook, image_task_id, request)
            with task.keeping(image_task_id):
                return self._finish(task, request, snapshot_of(event), QwenImageHook(self.qwenimage_conn_id))

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Resume as Airflow says; where the trigger itself failed, keep the paid image from being paid again."""
        if next_method == "execute_complete":
            return super().resume_execution(next_method, next_kwargs, context)
        from airflow_provider_qwenimage.tasks.failures import failing_for_good
        from airflow_provider_qwenimage.tasks.running_task import RunningTask

        links_to_store(self)
        task = RunningTask.open(context, output_path=self.output_path, durable=self.durable)
        with failing_for_good(context["ti"]), task.keeping(task.submitted()[0]):
            return super().resume_execution(next_method, next_kwargs, context)

    def on_kill(self) -> None:
        """Say what stays paid when the task is ended from outside. The API has no way to cancel an image task."""
        from airflow_provider_qwenimage.rules.submissions import what_stays_paid

        if self._submitted is not None and self._hook is not None:
            self.log.warning("%s", what_stays_paid(self._submitted, self._hook.last_credits))

    def _go_back(self, task: RunningTask, hook: QwenImageHook, step: GoBack) -> Any:
        from airflow_provider_qwenimage.tasks.metrics import count_end

        self.log.info("%s", step.notice)
        stored = task.find_images(step.request)
        if stored is not None and stored.image_task_id == step.image_task_id:
            if task.ledger.finish():
                count_end(len(stored.paths), stored.consumed_credits)
            return self._use_stored(task, step.request, stored, reused=False)
        task.push("request", step.request.description())
        return self._follow(task, hook, step.image_task_id, step.request)

    def _follow(self, task: RunningTask, hook: QwenImageHook, image_task_id: str, request: GenerateRequest) -> Any:
        self._submitted, self._hook = image_task_id, hook
        with task.keeping(image_task_id):
            task.push("task_id", image_task_id)
            if not self.wait_for_completion and task.folder is None:
                task.ledger.finish()
                return image_task_id
            if not self.deferrable:
                show_gallery(self, task.ti)
            return self._finish(task, request, self._wait(hook, image_task_id, task.ti.try_number), hook)

    def _wait(self, hook: QwenImageHook, image_task_id: str, try_number: int) -> TaskSnapshot:
        if not self.deferrable:
            return hook.wait_for_completion(
                image_task_id,
                poll_interval=self.poll_interval,
                timeout=self.timeout,
                max_consecutive_failures=self.max_consecutive_failures,
            )
        from airflow_provider_qwenimage.tasks.deferral import end_time_of, wait_deferred

        policy = self._policy(end_time_of(self, self.timeout))
        return wait_deferred(self, hook, image_task_id, policy, try_number=try_number)

    def _finish(
        self, task: RunningTask, request: GenerateRequest, snapshot: TaskSnapshot, hook: QwenImageHook
    ) -> dict[str, Any]:
        from airflow_provider_qwenimage.tasks.metrics import count_end

        task.push("consumed_credits", snapshot.consumed_credits)
        try:
            paths = task.save_images(snapshot, request, hook, max_image_bytes=self.max_image_bytes)
        except BaseException:
            # The credits are spent whether or not the image can be had.
            if task.ledger.count():
                count_end(len(snapshot.image_urls), snapshot.consumed_credits)
            raise
        if task.ledger.finish():
            count_end(len(snapshot.image_urls), snapshot.consumed_credits)
        self.log.info(
            "Image task %s is done: %d image(s), %s credits.",
            snapshot.task_id,
            len(snapshot.image_urls),
            snapshot.consumed_credits,
        )
        return self._conclude(
            request,
            task_id=snapshot.task_id,
            image_urls=snapshot.image_urls,
            paths=paths,
            consumed_credits=snapshot.consumed_credits,
            reused=False,
        )

    def _use_stored(
        self, task: RunningTask, request: GenerateRequest, stored: StoredImages, *, reused: bool
    ) -> dict[str, Any]:
        consumed_credits = 0 if reused else stored.consumed_credits
        if reused:
            self.log.info(
                "Nothing is submitted, 0 credits: the image of this request is stored already, at %s (image task %s). "
                "overwrite=True draws a new one.",
                stored.paths[0],
                stored.image_task_id,
            )
        task.push("task_id", stored.image_task_id)
        task.push("request", request.description())
        task.push("consumed_credits", consumed_credits)
        return self._conclude(
            request,
            task_id=stored.image_task_id,
            image_urls=stored.image_urls,
            paths=stored.paths,
            consumed_credits=consumed_credits,
            reused=reused,
        )

    def _conclude(
        self,
        request: GenerateRequest,
        *,
        task_id: str,
        image_urls: Sequence[str],
        paths: Sequence[str],
        consumed_credits: float | None,
        reused: bool,
    ) -> dict[str, Any]:
        # A sidecar in shared storage may say anything.
        outcome: dict[str, Any] = storable(
            {
                "task_id": task_id,
                "status": str(contract.TaskStatus.SUCCESS),
                "image_urls": list(image_urls),
                "paths": list(paths),
                "consumed_credits": consumed_credits,
                "seed": request.seed,
                "size": request.size,
                "output_format": request.output_format,
                "reused": reused,
            }
        )
        self.outcome = outcome
        links_to_store(self, *self.operator_extra_links, IMAGE)
        return outcome

    def _request(self) -> GenerateRequest:
        return read_request({name: getattr(self, name) for name in REQUEST_FIELDS})

    def _policy(self, end_time: float | None = None) -> polling.PollPolicy:
        return polling.PollPolicy(
            poll_interval=self.poll_interval,
            end_time=end_time,
            max_consecutive_failures=self.max_consecutive_failures,
        )
