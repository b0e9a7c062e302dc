"""The Airflow task of one image: submits it or finds it, waits, stores and returns it, in each process that it runs in.

`QwenImageGenerateOperator` hands its task over to `Generating`; what is the same for the images of a batch is in
`tasks.drawing`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_provider_qwenimage.configuration import callback_base_url
from airflow_provider_qwenimage.contract import GenerateRequest
from airflow_provider_qwenimage.exceptions import QwenImageError, QwenImageTaskFailedError
from airflow_provider_qwenimage.hooks import QwenImageHook
from airflow_provider_qwenimage.links import GENERATED_IMAGES, IMAGE, PendingLinks
from airflow_provider_qwenimage.rules import polling
from airflow_provider_qwenimage.rules.arguments import REQUEST_FIELDS, read_request
from airflow_provider_qwenimage.rules.book_rows import done
from airflow_provider_qwenimage.rules.callbacks import callback_url
from airflow_provider_qwenimage.rules.image_identity import ImageIdentity
from airflow_provider_qwenimage.rules.image_names import check_image_name
from airflow_provider_qwenimage.rules.made_by import description_of, variant_of, writer_of
from airflow_provider_qwenimage.rules.prices import assumed_price, described_price, is_within
from airflow_provider_qwenimage.rules.submissions import Submit, what_stays_paid
from airflow_provider_qwenimage.rules.task_ids import printable_id
from airflow_provider_qwenimage.storage.files import remove_leftovers
from airflow_provider_qwenimage.storage.images import StoredFile, StoredImages, find_images, save_images
from airflow_provider_qwenimage.storage.paths import check_storing, open_output_path
from airflow_provider_qwenimage.tasks import deferral
from airflow_provider_qwenimage.tasks.asset_events import add_image_events
from airflow_provider_qwenimage.tasks.bookkeeping import TaskBooks, open_task_books, paid_for
from airflow_provider_qwenimage.tasks.drawing import (
    Drawing,
    DrawingOptions,
    Found,
    Pause,
    Submitted,
    advance,
    answer_seconds,
    ended_from_outside,
    resumed,
)
from airflow_provider_qwenimage.tasks.failures import (
    logging_errors,
    raising_unknown_submission,
    recording_end,
    reporting_failures,
    without_retry,
)
from airflow_provider_qwenimage.tasks.generated import Outcome
from airflow_provider_qwenimage.tasks.metrics import count_end, count_failure
from airflow_provider_qwenimage.tasks.opening import (
    mark_of,
    open_ledger,
    open_submitted_ledger,
    try_in_process,
    try_of,
    warn_about_other_hosts,
)
from airflow_provider_qwenimage.text.messages import shown_credits
from airflow_provider_qwenimage.text.storable import storable
from airflow_provider_qwenimage.triggers import event_has_books, image_task_id_of, snapshot_of

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context, ObjectStoragePath

    from airflow_provider_qwenimage.contract import TaskSnapshot
    from airflow_provider_qwenimage.tasks.drawing import Answer
    from airflow_provider_qwenimage.tasks.generated import GeneratingOperator
    from airflow_provider_qwenimage.tasks.ledger import Ledger

# A task that is ended from outside is seen to be after this time at most.
_SLICE_SECONDS = 0.2


class Generating:
    """The task of one image, in one of its processes.

    Call one of `run`, `resume` and `resume_after_failed_trigger`.

    Args:
        operator: The operator, with its templates rendered.
        context: The task's context.
    """

    def __init__(self, operator: GeneratingOperator, context: Context) -> None:
        self._operator = operator
        self._context = context
        self._ti: Any = context["ti"]
        self._log = operator.log
        self._instance = description_of(self._ti)
        self._links = PendingLinks(operator)
        # What is submitted, and the client that waits for it: for `stop`.
        self._image_task_id: str | None = None
        self._hook: QwenImageHook | None = None
        self._is_stopped = False
        self._pushed_values: dict[str, Any] = {}
        # Set by `_open`.
        self._folder: ObjectStoragePath | None = None
        self._ledger: Ledger
        self._books: TaskBooks | None = None
        # Seconds to wait in the worker before a deferral.
        self._defer_after: float = operator.defer_after
        # In epoch seconds, if an earlier process of this try has begun to wait.
        self._waits_since: float | None = None

    def run(self) -> Any:
        """Submit the image, unless it is stored or submitted already; wait for it and store it if asked.

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
            identity = self._identity()
            stack.callback(self._close_books)
            self._open_books(hook)
            # Before a submission: storage that cannot be reached must not cost an image.
            self._open()
            if operator.durable:
                self._warn_about_records()
            drawing = self._drawing(hook, identity)
            while True:
                result = self._draw(drawing, hook)
                if isinstance(result, StoredImages):
                    return self._return_stored(identity, result, reused=not drawing.is_own(result))
                try:
                    return self._follow(hook, result)
                except QwenImageTaskFailedError as error:
                    # What this process has submitted is drawn once; Airflow decides on another try.
                    if result.is_new or error.permanent:
                        raise
                    count_failure(error)
                    self._log.warning("%s This try submits it again.", error)

    def resume(self, event: Any) -> Any:
        """Store and return the image when the trigger fired.

        Args:
            event: What the trigger fired, or None if something else resumed the task.

        Returns:
            The outcome that the operator documents.
        """
        if deferral.is_of_an_earlier_try(event, self._ti.try_number):
            # A subclass may decide there what to draw.
            return self._operator.execute(self._context)
        with (
            reporting_failures(self._ti),
            QwenImageHook(self._operator.qwenimage_conn_id) as hook,
            ExitStack() as stack,
        ):
            self._operator.check_rendered("output_path", "image_name")
            stack.callback(self._close_books)
            if event is None or event_has_books(event):
                # Whatever is wrong with the books, what is paid must not be lost.
                with logging_errors("the image in the books"):
                    self._open_books(hook)
            submitted = self._submitted(event)
            self._pushed_values["task_id"] = submitted.image_task_id
            if event is None:
                self._log.info(
                    "The task was resumed without a result, as callbacks of the API do. Its image task is %s.",
                    printable_id(submitted.image_task_id),
                )
                self._defer_after = 0.0
                self._waits_since = self._waiting_since()
                return self._follow(hook, submitted)
            with self._keeping_what_is_paid(submitted.image_task_id):
                snapshot = snapshot_of(event)
                return self._finish(hook, submitted, snapshot)

    @contextmanager
    def resume_after_failed_trigger(self) -> Iterator[None]:
        """Have what is raised in the block end the task without losing, or paying again, what it submitted."""
        submitted = self._submitted(None)
        self._pushed_values["task_id"] = submitted.image_task_id
        with reporting_failures(self._ti), self._keeping_what_is_paid(submitted.image_task_id):
            yield

    def stop(self) -> None:
        """Submit nothing more, and log what stays paid: the API cannot cancel an image task."""
        self._is_stopped = True
        if self._books is not None:
            self._books.stop()
        if self._image_task_id is not None and self._hook is not None:
            self._log.warning("%s", what_stays_paid(self._image_task_id, self._hook.last_credits))

    def facts(self) -> dict[str, Any]:
        """Return the id of the image task, the credits and so on, as far as they are known; for lineage."""
        facts = self._pushed_values | (self._operator.outcome or {})
        if "task_id" not in facts:
            return {}
        facts["task_ids"] = [facts["task_id"]]
        if "image_urls" in facts:
            facts["images"] = len(facts["image_urls"])
            facts["reused"] = facts["images"] if facts["reused"] else 0
        return facts

    def _identity(self, request: GenerateRequest | None = None) -> ImageIdentity:
        if request is None:
            request = read_request({name: getattr(self._operator, name) for name in REQUEST_FIELDS})
        return ImageIdentity(request, variant_of(self._ti), self._operator.image_name)

    def _open(self) -> None:
        output_path = self._operator.output_path
        self._folder = None if output_path is None else open_output_path(output_path)
        self._ledger = open_ledger(
            self._context, self._folder, self._instance, durable=self._operator.durable, books=self._books
        )

    def _open_books(self, hook: QwenImageHook) -> None:
        conn_id = self._operator.qwenimage_conn_id
        self._books = open_task_books(hook.settings, conn_id, self._instance, self._ti.try_number)

    def _close_books(self) -> None:
        if self._books is not None:
            self._books.close()

    def _drawing(self, hook: QwenImageHook, identity: ImageIdentity) -> Drawing:
        options = DrawingOptions(
            instance=self._instance,
            made_in=try_of(self._context),
            folder=self._folder,
            overwrite=self._operator.overwrite,
            answer_seconds=answer_seconds(hook.settings),
            callback_url=self._callback_url(),
        )

        def check(step: Submit) -> None:
            self._check_credits(step)
            # An unusable connection must not leave an intent behind.
            hook.get_conn()
            if self._folder is not None:
                check_storing(self._folder, writer_of(self._instance))
            # Before the submission, so that the gallery shows a failure with its prompt.
            self._push_request(identity)

        return Drawing(identity, self._ledger, options, check=check, pause_before_resend=hook.pause_before_resend)

    def _callback_url(self) -> Callable[[str], str] | None:
        """Return what makes the URL by which the API wakes this task; None if nothing would wait for that."""
        operator = self._operator
        waits = operator.wait_for_completion or self._folder is not None
        base_url = callback_base_url() if operator.deferrable and waits else None
        return None if base_url is None else partial(callback_url, base_url, self._ti.id)

    def _draw(self, drawing: Drawing, hook: QwenImageHook) -> StoredImages | Submitted:
        """Take the steps of a drawing until it is found or submitted."""
        steps = drawing.steps()
        answer: Answer = None
        while not isinstance(action := advance(steps, answer), Found):
            answer = None
            if isinstance(action, Pause):
                self._pause(action.seconds)
                continue
            if self._is_stopped:
                continue
            try:
                with raising_unknown_submission():
                    answer = hook.submit_once(action.request)
            except QwenImageError as error:
                answer = error
        result = action.result
        if isinstance(result, Submitted) and result.unrecorded is not None:
            with logging_errors("the XCom task_id"):
                self._push("task_id", result.image_task_id)
            raise AirflowFailException(
                f"Image task {result.image_task_id} is submitted and may be paid, but its id could not be recorded "
                f"({result.unrecorded}). Get the image with a QwenImageStatusSensor for that id."
            )
        return result

    def _pause(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self._end_if_stopped()
            time.sleep(min(left, _SLICE_SECONDS))
        self._end_if_stopped()

    def _end_if_stopped(self) -> None:
        if self._is_stopped:
            raise ended_from_outside()

    def _warn_about_records(self) -> None:
        if self._folder is not None:
            warn_about_other_hosts(self._context, self._folder)
        elif not self._ledger.remembers:
            self._log.warning(
                "This submission is not recorded: Airflow below 3.3 has no store for it, and the task has no "
                "output_path. If the worker is killed after it, a retry submits, and pays, again. Set an output_path, "
                "or upgrade to Airflow 3.3."
            )

    def _push(self, key: str, value: Any) -> None:
        self._pushed_values[key] = storable(value)
        self._ti.xcom_push(key=key, value=self._pushed_values[key])

    def _submitted(self, event: Any) -> Submitted:
        """Return the image task that was submitted before the deferral.

        The ledger is read first; each XCom takes a request to Airflow's API.
        """
        if self._operator.output_path is not None:
            self._folder = open_output_path(self._operator.output_path)
        image_task_id = image_task_id_of(event)
        durable = self._operator.durable
        self._ledger = open_submitted_ledger(
            self._context, self._folder, self._instance, image_task_id, durable=durable, books=self._books
        )
        submission = self._ledger.current
        is_own = submission is not None or not self._ledger.remembers
        if submission is None:
            image_task_id = image_task_id or str(self._pushed("task_id"))
            identity = self._pushed_identity()
        else:
            identity = self._identity(submission.intent.identity.request)
        if not is_own:
            # It is another task's, which may have stored it and removed its record in the meantime; or the record of
            # this task is gone.
            submission = self._ledger.find_shared(identity.key, str(image_task_id))
            is_own = submission is not None and self._ledger.is_own(submission)
        if submission is not None:
            return resumed(submission, identity, self._instance, is_own=is_own)
        return Submitted(str(image_task_id), identity, self._instance, is_own=is_own)

    def _pushed_identity(self) -> ImageIdentity:
        """Return the image that was asked for before the deferral; a template or a function may now ask for another."""
        pushed = self._pushed("request")
        if pushed is None:
            return self._identity()
        request = GenerateRequest(**{name: value for name, value in pushed.items() if name not in ("name", "label")})
        # Others may have written the XCom, and this becomes the name of a file.
        name = check_image_name("image_name", pushed.get("name", self._operator.image_name))
        return replace(self._identity(request), name=name)

    def _push_request(self, identity: ImageIdentity) -> None:
        label = self._operator.image_label
        self._push("request", identity.description() | ({} if label is None else {"label": label}))

    def _pushed(self, key: str) -> Any:
        return self._ti.xcom_pull(task_ids=self._ti.task_id, key=key, map_indexes=self._ti.map_index)

    def _check_credits(self, step: Submit) -> None:
        limit = self._operator.max_credits
        counted = step.spent + step.at_risk + try_in_process.counted
        price = assumed_price(try_in_process.charged or step.charged)
        if not is_within(limit, counted, price):
            raise ValueError(
                f"max_credits is {shown_credits(limit)}; an image costs {described_price(price)}, and this task spent "
                f"{shown_credits(counted)} before. Nothing was submitted. Raise max_credits to allow it."
            )

    def _follow(self, hook: QwenImageHook, submitted: Submitted) -> Any:
        """Return the id of a submitted image task; or wait for it, and return its outcome."""
        self._image_task_id, self._hook = submitted.image_task_id, hook
        with self._keeping_what_is_paid(submitted.image_task_id):
            if not submitted.is_new:
                self._push_request(submitted.identity)
            self._push("task_id", submitted.image_task_id)
            if not self._operator.wait_for_completion and self._folder is None:
                self._ledger.finish()
                add_image_events(
                    self._operator, self._context, {"task_id": submitted.image_task_id}, submitted.identity.request
                )
                return submitted.image_task_id
            if not self._operator.deferrable or self._defer_after:
                self._links.store_gallery(self._ti)
            return self._finish(hook, submitted, self._wait(hook, submitted))

    def _waiting_since(self) -> float | None:
        """Return when this try has begun to wait, in epoch seconds, or shortly before; None if that is not known."""
        current = self._ledger.current
        if current is not None and current.intent.made_in == try_of(self._context):
            # Before its submission, the try may have waited for something else.
            with suppress(ValueError, OverflowError):
                return datetime.fromisoformat(current.intent.intended_at).timestamp()
        # A later try has only resumed the image task. Before Airflow 3.2 this is the start of this process.
        started = getattr(self._ti, "start_date", None)
        return started.timestamp() if isinstance(started, datetime) else None

    def _wait(self, hook: QwenImageHook, submitted: Submitted) -> TaskSnapshot:
        operator = self._operator
        if not operator.deferrable:
            return hook.wait_for_completion(
                submitted.image_task_id,
                poll_interval=operator.poll_interval,
                timeout=operator.timeout,
                max_consecutive_failures=operator.max_consecutive_failures,
            )
        policy = polling.PollPolicy(
            poll_interval=operator.poll_interval,
            end_time=deferral.end_time_of(operator, operator.timeout, self._waits_since),
            max_consecutive_failures=operator.max_consecutive_failures,
        )
        return deferral.wait_deferred(
            operator,
            hook,
            submitted.image_task_id,
            policy,
            try_number=self._ti.try_number,
            defer_after=self._defer_after,
            callback=submitted.callback,
        )

    def _finish(self, hook: QwenImageHook, submitted: Submitted, snapshot: TaskSnapshot) -> dict[str, Any]:
        consumed_credits = snapshot.consumed_credits if submitted.is_own else 0
        self._push("consumed_credits", consumed_credits)
        if submitted.is_own:
            try_in_process.charge(consumed_credits)
        # The credits are spent even if the image cannot be stored.
        if submitted.is_own and not self._ledger.was_lost_earlier():
            count_end(len(snapshot.image_urls), snapshot.consumed_credits)
        self._ledger.succeed(done(snapshot.task_id, snapshot.consumed_credits))
        paths, first = self._store(hook, submitted, snapshot)
        self._ledger.finish(paid_for(snapshot, first))
        self._log.info(
            "Image task %s is done: %d image(s), %s credits.",
            snapshot.task_id,
            len(snapshot.image_urls),
            snapshot.consumed_credits,
        )
        reused = not submitted.is_own
        return self._return(
            Outcome(
                submitted.identity.request,
                snapshot.task_id,
                snapshot.image_urls,
                paths,
                consumed_credits,
                reused=reused,
            )
        )

    def _store(
        self, hook: QwenImageHook, submitted: Submitted, snapshot: TaskSnapshot
    ) -> tuple[Sequence[str], StoredFile | None]:
        """Store the images, if that is asked for, and return their paths, and the first file."""
        if self._folder is None:
            return [], None
        if not submitted.is_own:
            stored = find_images(submitted.identity, self._folder)
            if isinstance(stored, StoredImages) and stored.image_task_id == submitted.image_task_id:
                return stored.paths, StoredFile(stored.paths[0], stored.sha256)
        files = save_images(
            snapshot,
            submitted.identity,
            self._folder,
            max_image_bytes=self._operator.max_image_bytes,
            made_by=submitted.made_by,
            replace=self._operator.overwrite,
            verify=hook.settings.verify,
            mark=mark_of(self._operator.provenance),
        )
        for file in files:
            self._log.info("Stored %s.", file.path)
        if self._ti.try_number > 1:
            # Leftovers are hidden files, so one that cannot be removed is in nobody's way.
            with suppress(OSError):
                remove_leftovers(self._folder, writer_of(self._instance))
        return [file.path for file in files], next(iter(files), None)

    def _return_stored(self, identity: ImageIdentity, stored: StoredImages, *, reused: bool) -> dict[str, Any]:
        consumed_credits = 0 if reused else stored.consumed_credits
        if not reused:
            try_in_process.charge(consumed_credits)
        if reused:
            self._log.info(
                "Nothing is submitted, 0 credits: the image of this request is already stored at %s (image task %s). "
                "Set overwrite=True to draw a new one.",
                stored.paths[0],
                stored.image_task_id,
            )
        self._push("task_id", stored.image_task_id)
        self._push_request(identity)
        self._push("consumed_credits", consumed_credits)
        return self._return(
            Outcome(
                identity.request, stored.image_task_id, stored.image_urls, stored.paths, consumed_credits, reused=reused
            )
        )

    def _return(self, outcome: Outcome) -> dict[str, Any]:
        # Anybody can edit a sidecar in shared storage.
        returned: dict[str, Any] = storable(outcome.to_json())
        self._operator.outcome = returned
        add_image_events(self._operator, self._context, returned, outcome.request)
        self._links.add(IMAGE)
        return returned

    @contextmanager
    def _keeping_what_is_paid(self, image_task_id: str) -> Iterator[None]:
        """Have an error after the submission lose nothing and cost nothing more."""
        try:
            with self._deciding_on_retry(image_task_id):
                yield
        except QwenImageTaskFailedError as error:
            if error.snapshot is not None:
                if not self._ledger.remembers:
                    # Otherwise it is recorded already.
                    self._ledger.fail(error)
                self._push("consumed_credits", error.snapshot.consumed_credits)
                count_end(0, error.snapshot.consumed_credits)
            raise

    def _deciding_on_retry(self, image_task_id: str) -> AbstractContextManager[None]:
        if self._ledger.remembers:
            return recording_end(image_task_id, self._ledger)
        return without_retry(image_task_id) if self._operator.durable else nullcontext()
