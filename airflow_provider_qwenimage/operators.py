"""The operator that submits an image and, if asked, waits for it and stores it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import BaseOperator, conf

from airflow_provider_qwenimage import contract, polling
from airflow_provider_qwenimage.connection import DEFAULT_CONN_ID
from airflow_provider_qwenimage.deferral import end_time_of, wait_deferred
from airflow_provider_qwenimage.failures import failing_for_good, keeping_what_is_paid, submitting
from airflow_provider_qwenimage.hooks import QwenImageHook
from airflow_provider_qwenimage.images import (
    DEFAULT_MAX_IMAGE_BYTES,
    check_output_path,
    open_output_path,
    save_images,
)
from airflow_provider_qwenimage.triggers import snapshot_of

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_qwenimage.contract import GenerateRequest, TaskSnapshot

_REQUEST_FIELDS = ("prompt", "size", "seed", "output_format", "callback_url")


class QwenImageGenerateOperator(BaseOperator):
    """Submits one image to the Qwen-Image API. Costs credits (5 for each image, as documented).

    It pushes the XCom `task_id`, the API's id of the image task, before anything else can fail.

    - By default it only submits, and returns that id: hand it to a `QwenImageStatusSensor`.
    - With `wait_for_completion` it waits, in the triggerer where `deferrable` is set, and returns a dict:
      ``task_id``, ``status``, ``image_urls``, ``paths``, ``consumed_credits``, ``seed``, ``size``,
      ``output_format``. It also pushes the XComs `request` (what was submitted) and `consumed_credits`.
    - With `output_path`, which implies waiting, each image is downloaded, verified and stored first.

    After a submission the task fails without an automatic retry on anything but a FAILED image task, because a
    retry submits, and pays, again. The message tells how to get the paid image.

    Args:
        prompt: What to draw, 1 to 2000 characters. Templated.
        size: Width times height in pixels, one of `contract.SIZES`. Templated.
        seed: An integer from 0 upwards, or -1 for a random one; the text of one is fine too. Templated.
        output_format: ``jpeg``, ``png`` or ``webp``. Templated.
        callback_url: An http(s) URL that the API calls when the task completes. Templated.
        qwenimage_conn_id: The Airflow connection that holds the API key and the base URL. Templated.
        wait_for_completion: Whether to wait until the image task ends.
        deferrable: Whether to wait in the triggerer, without a worker slot. Default: Airflow's
            ``[operators] default_deferrable``.
        poll_interval: Seconds between the first polls; it grows up to 10 s (the API's documented range).
        timeout: Seconds to wait at most.
        max_consecutive_failures: How many failed reads in a row end the wait.
        output_path: The folder to store images in: a path or any URL of Airflow's object storage, such as
            ``s3://aws_default@bucket/images``. Templated. File names come from the request.
        max_image_bytes: A longer download is refused. Default 50 MiB.
        **kwargs: What every operator takes.

    Raises:
        ValueError: If an argument that is not a template is not what the API allows.
    """

    template_fields: Sequence[str] = (*_REQUEST_FIELDS, "qwenimage_conn_id", "output_path")
    ui_color = "#dcd3fb"

    def __init__(
        self,
        *,
        prompt: str,
        size: str = contract.DEFAULT_SIZE,
        seed: int | str = contract.RANDOM_SEED,
        output_format: str = contract.DEFAULT_OUTPUT_FORMAT,
        callback_url: str | None = None,
        qwenimage_conn_id: str = DEFAULT_CONN_ID,
        wait_for_completion: bool = False,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        poll_interval: float = polling.DEFAULT_POLL_INTERVAL,
        timeout: float = polling.DEFAULT_TIMEOUT,
        max_consecutive_failures: int = polling.DEFAULT_MAX_CONSECUTIVE_FAILURES,
        output_path: str | None = None,
        max_image_bytes: int = DEFAULT_MAX_IMAGE_BYTES,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.prompt = prompt
        self.size = size
        self.seed = seed
        self.output_format = output_format
        self.callback_url = callback_url
        self.qwenimage_conn_id = qwenimage_conn_id
        self.wait_for_completion = wait_for_completion
        self.deferrable = deferrable
        self.poll_interval = poll_interval
        self.timeout = timeout
        self.max_consecutive_failures = max_consecutive_failures
        self.output_path = output_path
        self.max_image_bytes = max_image_bytes
        self._check_arguments()

    def execute(self, context: Context) -> Any:
        """Submit, and wait and store where asked.

        Returns:
            The API's task id, or the dict described above.
        """
        waits = self.wait_for_completion or self.output_path is not None
        with failing_for_good(), QwenImageHook(self.qwenimage_conn_id) as hook:
            request = self._request()
            if self.output_path is not None:
                # Before the submission: storage that cannot be reached must not cost an image.
                open_output_path(self.output_path)
            with submitting():
                image_task_id = hook.submit(request)
            with keeping_what_is_paid(image_task_id):
                self.log.info("Submitted image task %s (%s, %s).", image_task_id, request.size, request.output_format)
                context["ti"].xcom_push(key="task_id", value=image_task_id)
                if not waits:
                    return image_task_id
                # Templates are rendered anew when a deferred task resumes; the request must stay what was paid.
                context["ti"].xcom_push(key="request", value=request.description())
                snapshot = self._wait(hook, image_task_id)
                return self._finish(context, request, snapshot)

    def execute_complete(self, context: Context, event: Any = None) -> dict[str, Any]:
        """Go on when the trigger has fired.

        Args:
            context: The task's context.
            event: What the trigger fired.
        """
        with failing_for_good(), keeping_what_is_paid(str(self._pushed(context, "task_id"))):
            snapshot = snapshot_of(event)
            submitted = self._pushed(context, "request")
            request = contract.GenerateRequest(**submitted) if submitted else self._request()
            return self._finish(context, request, snapshot)

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Resume as Airflow says; where the trigger itself failed, keep the paid image from being paid again."""
        if next_method == "execute_complete":
            return super().resume_execution(next_method, next_kwargs, context)
        with keeping_what_is_paid(str(self._pushed(context, "task_id"))):
            return super().resume_execution(next_method, next_kwargs, context)

    def _wait(self, hook: QwenImageHook, image_task_id: str) -> TaskSnapshot:
        if not self.deferrable:
            return hook.wait_for_completion(
                image_task_id,
                poll_interval=self.poll_interval,
                timeout=self.timeout,
                max_consecutive_failures=self.max_consecutive_failures,
            )
        return wait_deferred(self, hook, image_task_id, self._policy(end_time_of(self, self.timeout)))

    def _finish(self, context: Context, request: GenerateRequest, snapshot: TaskSnapshot) -> dict[str, Any]:
        context["ti"].xcom_push(key="consumed_credits", value=snapshot.consumed_credits)
        paths: list[str] = []
        if self.output_path is not None:
            paths = save_images(
                snapshot,
                request,
                open_output_path(self.output_path),
                place=max(0, context["ti"].map_index or 0),
                max_image_bytes=self.max_image_bytes,
            )
        self.log.info(
            "Image task %s is done: %d image(s), %s credits.",
            snapshot.task_id,
            len(snapshot.image_urls),
            snapshot.consumed_credits,
        )
        return {
            "task_id": snapshot.task_id,
            "status": str(snapshot.status),
            "image_urls": list(snapshot.image_urls),
            "paths": paths,
            "consumed_credits": snapshot.consumed_credits,
            "seed": request.seed,
            "size": request.size,
            "output_format": request.output_format,
        }

    def _pushed(self, context: Context, key: str) -> Any:
        ti = context["ti"]
        return ti.xcom_pull(task_ids=self.task_id, key=key, map_indexes=ti.map_index)

    def _request(self) -> GenerateRequest:
        fields = {name: getattr(self, name) for name in _REQUEST_FIELDS}
        return contract.GenerateRequest(**fields | {"seed": contract.seed_from_text(self.seed)})

    def _policy(self, end_time: float | None = None) -> polling.PollPolicy:
        return polling.PollPolicy(
            poll_interval=self.poll_interval,
            end_time=end_time,
            max_consecutive_failures=self.max_consecutive_failures,
        )

    def _check_arguments(self) -> None:
        """Refuse what can be refused while the DAG is parsed, rather than at night when it runs."""
        self._policy()
        contract.check_above_zero("timeout", self.timeout, "seconds")
        contract.check_above_zero("max_image_bytes", self.max_image_bytes, "bytes")
        literal: dict[str, Any] = {
            name: value
            for name in _REQUEST_FIELDS
            if isinstance(value := getattr(self, name), str | int) and not _is_template(value)
        }
        if "seed" in literal:
            literal["seed"] = contract.seed_from_text(literal["seed"])
        contract.GenerateRequest(**{"prompt": "unknown before it is rendered"} | literal)
        if isinstance(self.output_path, str) and not _is_template(self.output_path):
            check_output_path(self.output_path)


def _is_template(value: object) -> bool:
    return isinstance(value, str) and ("{{" in value or "{%" in value)
