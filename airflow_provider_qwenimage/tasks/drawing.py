"""The life of one image: submitted once, waited for, stored, and returned by its Airflow task.

`QwenImageGenerateOperator` hands its task over to `Drawing`, in each process that the task runs in.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any, Protocol

from airflow.providers.common.compat.sdk import AirflowFailException, AirflowTaskTimeout

from airflow_provider_qwenimage.contract import CREDITS_PER_IMAGE, GenerateRequest, TaskStatus
from airflow_provider_qwenimage.exceptions import QwenImageError, QwenImageTaskFailedError
from airflow_provider_qwenimage.hooks import QwenImageHook
from airflow_provider_qwenimage.links import GENERATED_IMAGES, IMAGE, PendingLinks
from airflow_provider_qwenimage.rules import polling
from airflow_provider_qwenimage.rules.arguments import REQUEST_FIELDS, read_request
from airflow_provider_qwenimage.rules.image_identity import ImageIdentity
from airflow_provider_qwenimage.rules.made_by import description_of, variant_of, writer_of
from airflow_provider_qwenimage.rules.submissions import Resume, Stop, Submit, what_stays_paid
from airflow_provider_qwenimage.storage.files import remove_leftovers
from airflow_provider_qwenimage.storage.images import Obstacle, StoredImages, find_images, save_images
from airflow_provider_qwenimage.storage.paths import check_storing, open_output_path
from airflow_provider_qwenimage.tasks import deferral
from airflow_provider_qwenimage.tasks.failures import (
    logging_errors,
    raising_unknown_submission,
    recording_end,
    reporting_failures,
    without_retry,
)
from airflow_provider_qwenimage.tasks.ledger import open_ledger
from airflow_provider_qwenimage.tasks.metrics import count_end, count_failure, count_submission
from airflow_provider_qwenimage.text.storable import storable
from airflow_provider_qwenimage.triggers import snapshot_of

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context, ObjectStoragePath

    from airflow_provider_qwenimage.contract import TaskSnapshot
    from airflow_provider_qwenimage.tasks.ledger import Ledger


class DrawingOperator(deferral.DeferrableTask, Protocol):
    """The part of `QwenImageGenerateOperator` that a drawing needs: its arguments, converted and rendered."""

    qwenimage_conn_id: Any
    wait_for_completion: bool
    deferrable: bool
    poll_interval: Any
    timeout: Any
    max_consecutive_failures: Any
    output_path: Any
    image_name: Any
    max_image_bytes: Any
    overwrite: bool
    durable: bool
    max_credits: Any
    outcome: dict[str, Any] | None

    def check_rendered(self, *names: str) -> None:
        """Check the rendered arguments."""


class Drawing:
    """One image of a task instance, in one of its processes.

    Call one of `run`, `resume` and `resume_after_failed_trigger`.

    Args:
        operator: The operator, with its templates rendered.
        context: The task's context.
    """

    def __init__(self, operator: DrawingOperator, context: Context) -> None:
        self._operator = operator
        self._context = context
        self._ti: Any = context["ti"]
        self._log = operator.log
        self._made_by = description_of(self._ti)
        self._links = PendingLinks(operator)
        # What is submitted, and the client that waits for it: for `log_what_stays_paid`.
        self._image_task_id: str | None = None
        self._hook: QwenImageHook | None = None
        # Set by `_open`.
        self._folder: ObjectStoragePath | None = None
        self._ledger: Ledger

    def run(self) -> Any:
        """Submit the image, unless it is stored or an earlier try submitted it; wait for it and store it if asked.

        Returns:
            The API's task id, or the outcome that the operator documents.

        Raises:
            TaskDeferred: To wait in the triggerer.
        """
        operator = self._operator
        self._links.add(GENERATED_IMAGES)
        with reporting_failures(self._ti), ExitStack() as stack:
            operator.check_rendered()
            hook = stack.enter_context(QwenImageHook(operator.qwenimage_conn_id))
            request = self._request()
            # Before a submission: storage that cannot be reached must not cost an image.
            self._open()
            step = self._ledger.next_step(request)
            if isinstance(step, Stop):
                raise step.error
            if isinstance(step, Resume):
                try:
                    return self._resume_submitted(hook, step)
                except QwenImageTaskFailedError as error:
                    if error.permanent:
                        raise
                    count_failure(error)
                    self._log.warning("%s This try submits it again.", error)
                    step = Submit(self._ledger.spent)
            stored = self._find_stored(request)
            if isinstance(stored, Obstacle):
                if not operator.overwrite:
                    raise AirflowFailException(stored.message)
                stored = None
            if stored is not None:
                # What an earlier try of this task stored is its own: neither reused, nor to be overwritten.
                is_own = stored.made_by == self._made_by
                if is_own or not operator.overwrite:
                    return self._return_stored(request, stored, reused=not is_own)
            # Before the submission, so that the gallery shows a failure with its prompt.
            self._push("request", request.description())
            return self._follow(hook, self._submit(hook, request, step), request)

    def resume(self, event: Any) -> Any:
        """Store and return the image when the trigger fired.

        Args:
            event: What the trigger fired, or None if something else resumed the task.

        Returns:
            The outcome that the operator documents.
        """
        if deferral.is_of_an_earlier_try(event, self._ti.try_number):
            return self.run()
        with reporting_failures(self._ti):
            self._operator.check_rendered("output_path", "image_name")
            self._open()
            image_task_id, request = self._submitted()
            request = request or self._request()
            if event is None:
                # The API knows how far the image task is.
                with QwenImageHook(self._operator.qwenimage_conn_id) as hook:
                    return self._follow(hook, image_task_id, request)
            with self._keeping_what_is_paid(image_task_id):
                snapshot = snapshot_of(event)
                return self._finish(QwenImageHook(self._operator.qwenimage_conn_id), request, snapshot)

    @contextmanager
    def resume_after_failed_trigger(self) -> Iterator[None]:
        """Have what is raised in the block end the task without losing, or paying again, what it submitted."""
        self._open()
        with reporting_failures(self._ti), self._keeping_what_is_paid(self._submitted()[0]):
            yield

    def log_what_stays_paid(self) -> None:
        """Log what stays paid when the task is ended from outside. The API cannot cancel an image task."""
        if self._image_task_id is not None and self._hook is not None:
            self._log.warning("%s", what_stays_paid(self._image_task_id, self._hook.last_credits))

    def _request(self) -> GenerateRequest:
        return read_request({name: getattr(self._operator, name) for name in REQUEST_FIELDS})

    def _open(self) -> None:
        output_path = self._operator.output_path
        self._folder = None if output_path is None else open_output_path(output_path)
        self._ledger = open_ledger(self._context, self._folder, durable=self._operator.durable)

    def _push(self, key: str, value: Any) -> None:
        self._ti.xcom_push(key=key, value=storable(value))

    def _submitted(self) -> tuple[str, GenerateRequest | None]:
        """Return the id of the image task that was submitted before the deferral, and the request if it is known.

        The ledger is read already; each XCom takes a request to Airflow's API.
        """
        if self._ledger.submitted is not None:
            return self._ledger.submitted
        request = self._pushed("request")
        return str(self._pushed("task_id")), GenerateRequest(**request) if request else None

    def _pushed(self, key: str) -> Any:
        return self._ti.xcom_pull(task_ids=self._ti.task_id, key=key, map_indexes=self._ti.map_index)

    def _submit(self, hook: QwenImageHook, request: GenerateRequest, step: Submit) -> str:
        """Submit the request: record the intent before, and the API's task id after it."""
        self._check_credits(step.spent)
        if step.notice:
            self._log.warning("%s", step.notice)
        if self._operator.durable and not self._ledger.remembers:
            self._log.warning(
                "This submission is not recorded: Airflow below 3.3 has no store for it, and the task has no "
                "output_path. If the worker is killed after it, a retry submits, and pays, again. Set an output_path, "
                "or upgrade to Airflow 3.3."
            )
        # An unusable connection must not leave an intent behind.
        hook.get_conn()
        if self._folder is not None:
            check_storing(self._folder, writer_of(self._made_by))
        self._ledger.intend(request, step.spent)
        try:
            with raising_unknown_submission():
                image_task_id = hook.submit(request)
        except QwenImageError as error:
            with logging_errors("the end of the submission"):
                self._ledger.close(error)
            raise
        self._log.info("Submitted image task %s (%s, %s).", image_task_id, request.size, request.output_format)
        count_submission()
        self._accept(image_task_id)
        return image_task_id

    def _check_credits(self, spent: float) -> None:
        max_credits = self._operator.max_credits
        if max_credits is not None and spent + CREDITS_PER_IMAGE > max_credits:
            raise ValueError(
                f"max_credits is {max_credits:g}; an image costs {CREDITS_PER_IMAGE} credits (as documented), and this "
                f"task spent {spent:g} before. Nothing was submitted. Raise max_credits to allow it."
            )

    def _accept(self, image_task_id: str) -> None:
        try:
            self._ledger.accept(image_task_id)
        except (Exception, AirflowTaskTimeout) as error:
            with logging_errors("the XCom task_id"):
                self._push("task_id", image_task_id)
            raise AirflowFailException(
                f"Image task {image_task_id} is submitted and may be paid, but its id could not be recorded "
                f"({type(error).__name__}: {error}). Get the image with a QwenImageStatusSensor for that id."
            ) from error

    def _resume_submitted(self, hook: QwenImageHook, step: Resume) -> Any:
        """Follow what an earlier try submitted, unless its image is stored already."""
        self._log.info("%s", step.notice)
        stored = self._find_stored(step.request)
        if isinstance(stored, StoredImages) and stored.image_task_id == step.image_task_id:
            if self._ledger.finish():
                count_end(len(stored.paths), stored.consumed_credits)
            return self._return_stored(step.request, stored, reused=False)
        self._push("request", step.request.description())
        return self._follow(hook, step.image_task_id, step.request)

    def _follow(self, hook: QwenImageHook, image_task_id: str, request: GenerateRequest) -> Any:
        """Return the id of a submitted image task; or wait for it, and return its outcome."""
        self._image_task_id, self._hook = image_task_id, hook
        with self._keeping_what_is_paid(image_task_id):
            self._push("task_id", image_task_id)
            if not self._operator.wait_for_completion and self._folder is None:
                self._ledger.finish()
                return image_task_id
            if not self._operator.deferrable:
                self._links.store_gallery(self._ti)
            return self._finish(hook, request, self._wait(hook, image_task_id))

    def _wait(self, hook: QwenImageHook, image_task_id: str) -> TaskSnapshot:
        operator = self._operator
        if not operator.deferrable:
            return hook.wait_for_completion(
                image_task_id,
                poll_interval=operator.poll_interval,
                timeout=operator.timeout,
                max_consecutive_failures=operator.max_consecutive_failures,
            )
        policy = polling.PollPolicy(
            poll_interval=operator.poll_interval,
            end_time=deferral.end_time_of(operator, operator.timeout),
            max_consecutive_failures=operator.max_consecutive_failures,
        )
        return deferral.wait_deferred(operator, hook, image_task_id, policy, try_number=self._ti.try_number)

    def _finish(self, hook: QwenImageHook, request: GenerateRequest, snapshot: TaskSnapshot) -> dict[str, Any]:
        self._push("consumed_credits", snapshot.consumed_credits)
        try:
            paths = self._store(hook, request, snapshot)
        except BaseException:
            # The credits are spent even if the image cannot be stored.
            if self._ledger.count():
                count_end(len(snapshot.image_urls), snapshot.consumed_credits)
            raise
        if self._ledger.finish():
            count_end(len(snapshot.image_urls), snapshot.consumed_credits)
        self._log.info(
            "Image task %s is done: %d image(s), %s credits.",
            snapshot.task_id,
            len(snapshot.image_urls),
            snapshot.consumed_credits,
        )
        return self._return(
            request,
            task_id=snapshot.task_id,
            image_urls=snapshot.image_urls,
            paths=paths,
            consumed_credits=snapshot.consumed_credits,
            reused=False,
        )

    def _store(self, hook: QwenImageHook, request: GenerateRequest, snapshot: TaskSnapshot) -> list[str]:
        if self._folder is None:
            return []
        paths = save_images(
            snapshot,
            self._identity(request),
            self._folder,
            max_image_bytes=self._operator.max_image_bytes,
            made_by=self._made_by,
            verify=hook.settings.verify,
            replace=bool(self._operator.overwrite),
        )
        for path in paths:
            self._log.info("Stored %s.", path)
        if self._ti.try_number > 1:
            # Leftovers are hidden files, so one that cannot be removed is in nobody's way.
            with suppress(OSError):
                remove_leftovers(self._folder, writer_of(self._made_by))
        return paths

    def _find_stored(self, request: GenerateRequest) -> StoredImages | Obstacle | None:
        return None if self._folder is None else find_images(self._identity(request), self._folder)

    def _identity(self, request: GenerateRequest) -> ImageIdentity:
        return ImageIdentity(request, variant_of(self._ti), self._operator.image_name)

    def _return_stored(self, request: GenerateRequest, stored: StoredImages, *, reused: bool) -> dict[str, Any]:
        consumed_credits = 0 if reused else stored.consumed_credits
        if reused:
            self._log.info(
                "Nothing is submitted, 0 credits: the image of this request is already stored at %s (image task %s). "
                "Set overwrite=True to draw a new one.",
                stored.paths[0],
                stored.image_task_id,
            )
        self._push("task_id", stored.image_task_id)
        self._push("request", request.description())
        self._push("consumed_credits", consumed_credits)
        return self._return(
            request,
            task_id=stored.image_task_id,
            image_urls=stored.image_urls,
            paths=stored.paths,
            consumed_credits=consumed_credits,
            reused=reused,
        )

    def _return(
        self,
        request: GenerateRequest,
        *,
        task_id: str,
        image_urls: Sequence[str],
        paths: Sequence[str],
        consumed_credits: float | None,
        reused: bool,
    ) -> dict[str, Any]:
        # Anybody can edit a sidecar in shared storage.
        outcome: dict[str, Any] = storable(
            {
                "task_id": task_id,
                "status": str(TaskStatus.SUCCESS),
                "image_urls": list(image_urls),
                "paths": list(paths),
                "consumed_credits": consumed_credits,
                "seed": request.seed,
                "size": request.size,
                "output_format": request.output_format,
                "reused": reused,
            }
        )
        self._operator.outcome = outcome
        self._links.add(IMAGE)
        return outcome

    @contextmanager
    def _keeping_what_is_paid(self, image_task_id: str) -> Iterator[None]:
        """Have an error after the submission lose nothing and cost nothing more."""
        try:
            with self._deciding_on_retry(image_task_id):
                yield
        except QwenImageTaskFailedError as error:
            if error.snapshot is not None:
                self._push("consumed_credits", error.snapshot.consumed_credits)
                count_end(0, error.snapshot.consumed_credits)
            raise

    def _deciding_on_retry(self, image_task_id: str) -> AbstractContextManager[None]:
        if self._ledger.remembers:
            return recording_end(image_task_id, self._ledger)
        return without_retry(image_task_id) if self._operator.durable else nullcontext()
