"""The life of one image in storage and on record, once for all tasks: found or submitted, followed, stored, ended.

The steps do no HTTP: whoever draws an image sends what `Drawing.steps` asks for, in a thread or in an event loop.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard

from airflow.providers.common.compat.sdk import AirflowException, AirflowTaskTimeout

from airflow_provider_qwenimage.contract import GenerateRequest
from airflow_provider_qwenimage.exceptions import QwenImageError, QwenImageImageError, QwenImageSubmissionUnknownError
from airflow_provider_qwenimage.rules.book_rows import Change, done
from airflow_provider_qwenimage.rules.callbacks import digest_of, new_secret
from airflow_provider_qwenimage.rules.image_identity import ImageIdentity
from airflow_provider_qwenimage.rules.made_by import writer_of
from airflow_provider_qwenimage.rules.retries import SubmissionTries, is_plain_server_error
from airflow_provider_qwenimage.rules.submission_facts import Submission
from airflow_provider_qwenimage.rules.submissions import Asking, LookAgain, Resume, Step, Stop, Submit
from airflow_provider_qwenimage.rules.tries import Try
from airflow_provider_qwenimage.storage.images import Obstacle, StoredImages, find_images
from airflow_provider_qwenimage.tasks.failures import logging_errors
from airflow_provider_qwenimage.tasks.metrics import count_submission

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import ObjectStoragePath

    from airflow_provider_qwenimage.client.connection import ConnectionSettings
    from airflow_provider_qwenimage.tasks.ledger import Ledger

log = logging.getLogger(__name__)

# How often the answer to another process's submission is looked for.
LOOK_SECONDS = 2.0
# The field of a task's description that is the same for all tries of a batch until it succeeds.
EFFORT = "batch"
# More than the time limit of a call: clocks differ, and the answer has to be recorded.
_ANSWER_MARGIN_SECONDS = 10.0


@dataclass(frozen=True)
class Post:
    """Submit this request, in one POST.

    The next step takes the API's id of the image task, or the error; None if the task was ended from outside before it
    sent anything.
    """

    request: GenerateRequest


@dataclass(frozen=True)
class Pause:
    """Wait so many seconds. Nothing is sent in this time, so a task that is ended from outside ends here."""

    seconds: float


@dataclass(frozen=True)
class Submitted:
    """An image task that was submitted, now or earlier, by this task or another one.

    Attributes:
        image_task_id: The API's id.
        identity: The image that was asked for.
        made_by: The Airflow task that submitted it, and so pays for it; see `made_by.description_of`.
        is_own: Whether this is the task that runs.
        is_new: Whether this process has submitted it.
        unrecorded: Why its id could not be recorded; None if it is.
        callback: If the API calls this task back, the digest of the secret; see `Intent`.
    """

    image_task_id: str
    identity: ImageIdentity
    made_by: Mapping[str, Any]
    is_own: bool = True
    is_new: bool = False
    unrecorded: str | None = None
    callback: str | None = None


@dataclass(frozen=True)
class Found:
    """The end of the steps: what is stored already, or what was submitted."""

    result: StoredImages | Submitted


Action: TypeAlias = Post | Pause | Found
Answer: TypeAlias = str | QwenImageError | None
Steps: TypeAlias = Generator[Post | Pause, Answer, StoredImages | Submitted]


@dataclass(frozen=True, kw_only=True)
class DrawingOptions:
    """How an Airflow task draws its images.

    Attributes:
        instance: The task; see `made_by.description_of`.
        made_in: Its try.
        folder: The folder for the images, or None.
        overwrite: Whether to draw a new image if one is stored already.
        answer_seconds: How long the answer to a submission may take.
        callback_url: Returns the URL with a secret that the API calls at the end; None for that of the request.
    """

    instance: Mapping[str, Any]
    made_in: Try
    folder: ObjectStoragePath | None = None
    overwrite: bool = False
    answer_seconds: float = 60.0
    callback_url: Callable[[str], str] | None = None


class Drawing:
    """One image of an Airflow task, in one of its processes.

    Args:
        identity: The image.
        ledger: The records of its submissions.
        options: How it is drawn.
        check: Called before each submission with what earlier ones have cost; raises if there must be none.
        pause_before_resend: See `QwenImageHook.pause_before_resend`.

    Attributes:
        at_risk: Credits that submissions of it may have cost that the API answered with code 500.
    """

    def __init__(
        self,
        identity: ImageIdentity,
        ledger: Ledger,
        options: DrawingOptions,
        *,
        check: Callable[[Submit], None],
        pause_before_resend: Callable[[QwenImageError, int, int], float | None],
    ) -> None:
        self.identity = identity
        self.ledger = ledger
        self._options = options
        self._check = check
        self._pause_before_resend = pause_before_resend
        self._last_notice = ""
        self.at_risk = 0.0

    def is_own(self, stored: StoredImages) -> bool:
        """Whether this task has paid for a stored image, since its first run or last Clear, or by its last record."""
        current = self.ledger.current
        if current is not None and current.image_task_id == stored.image_task_id and self.ledger.is_own(current):
            return True
        return is_of_this_task(stored.made_by, self._options.instance)

    def look(self, *, was_looked_for: bool = False) -> StoredImages | Step:
        """Return what is stored or submitted already, or that the image is to be submitted. Blocks.

        Args:
            was_looked_for: Whether the image was looked for shortly before, and is not stored.
        """
        own = self.ledger.look_at_own(self._asking())
        if isinstance(own, Resume):
            return self._stored_by(own) or own
        if not isinstance(own, Submit):
            return own
        found = None if was_looked_for else self._find(self.identity)
        return found if self._is_usable(found) else self._look_at_shared(own, found)

    def _look_at_shared(self, own: Submit, found: StoredImages | Obstacle | None) -> Step:
        shared = self.ledger.look_at_shared(self._asking(), own)
        if isinstance(shared, Resume) and isinstance(found, StoredImages):
            if found.image_task_id == shared.image_task_id:
                # A process was killed after it had stored the image, and before it removed its records.
                self.ledger.finish(paid_for_stored(found))
                return own
        elif isinstance(shared, Submit) and isinstance(found, Obstacle):
            return self._passing(found) or shared
        return shared

    def remove_records_of(self, stored: StoredImages, names: Iterable[str]) -> None:
        """Remove the records that a killed process has left of an image that it had stored.

        Args:
            stored: The image.
            names: The names of the facts about it that the folder has.
        """
        step = self.ledger.look_at_shared(self._asking(), Submit())
        if isinstance(step, Resume) and step.image_task_id == stored.image_task_id:
            self.ledger.finish(paid_for_stored(stored))
        elif isinstance(step, Submit):
            self.ledger.remove_leftovers(names)

    def _is_usable(self, found: StoredImages | Obstacle | None) -> TypeGuard[StoredImages]:
        if not isinstance(found, StoredImages):
            return False
        is_new = self.is_own(found) or _is_of_this_effort(found.made_by, self._options.instance)
        return is_new or not self._options.overwrite

    def _passing(self, obstacle: Obstacle) -> Stop | None:
        return None if self._options.overwrite else Stop(QwenImageImageError(obstacle.message, permanent=True))

    def steps(self, *, was_looked_for: bool = False) -> Steps:
        """Find the image or submit it. Each step blocks on storage and on Airflow, not on the API.

        Args:
            was_looked_for: As for `look`, in the first step.

        Yields:
            What to do before the next step, which takes the answer to a `Post`.

        Raises:
            QwenImageError: If nothing may be submitted, or the submission failed.
            ValueError: If a file or another request is in the way of the image.
        """
        while True:
            step, was_looked_for = self.look(was_looked_for=was_looked_for), False
            if isinstance(step, Stop):
                raise step.error
            if isinstance(step, StoredImages):
                return step
            if isinstance(step, Resume):
                log.info("%s", step.notice)
                return self._resumed(step)
            if isinstance(step, LookAgain):
                self._log_once(step.notice)
                yield Pause(min(step.seconds, LOOK_SECONDS))
                continue
            submitted = yield from self._submit(step)
            if submitted is not None:
                return submitted

    def _submit(self, step: Submit) -> Generator[Post | Pause, Answer, Submitted | None]:
        """Submit the image; return None if another task was faster."""
        tries = SubmissionTries(self._pause_before_resend, step.server_errors)
        while True:
            self.at_risk = step.at_risk
            self._check(step)
            if step.notice:
                log.warning("%s", step.notice)
            # A response that refuses a submission may quote its secret, so each submission has one of its own.
            request, callback = self._called_back()
            if not self._intend(callback):
                return None
            answer = yield Post(request)
            if answer is None:
                self.ledger.withdraw()
                raise ended_from_outside()
            if isinstance(answer, str):
                count_submission()
                log.info("Submitted image task %s (%s, %s).", answer, request.size, request.output_format)
                return Submitted(
                    answer,
                    self.identity,
                    self._options.instance,
                    is_new=True,
                    unrecorded=self._accept(answer),
                    callback=callback,
                )
            with logging_errors("the end of the submission"):
                self._record_refusal(answer)
            pause, failure = tries.after(answer)
            if pause is None:
                raise failure
            step = replace(step, server_errors=tries.server_errors, notice=None)
            yield Pause(pause)

    def _called_back(self) -> tuple[GenerateRequest, str | None]:
        """Return the request to send, and the digest of the secret in its callback URL if that wakes the task."""
        request = self.identity.request
        if self._options.callback_url is None or request.callback_url is not None:
            return request, None
        secret = new_secret()
        return replace(request, callback_url=self._options.callback_url(secret)), digest_of(secret)

    def _intend(self, callback: str | None) -> bool:
        """Record the intent and reserve its credits; return False if the submission is not needed any more."""
        while True:
            # Before the intent, which says to others, and to the next try, that the request may be under way.
            self.ledger.await_books()
            if not self.ledger.intend(self._asking(), callback):
                return False
            try:
                is_needed = not self._is_settled_meanwhile()
                if is_needed and self.ledger.reserve():
                    return True
            except BaseException:
                # An execution_timeout as well: nothing was sent, and the next try should know.
                with suppress(Exception):
                    self.ledger.withdraw()
                raise
            self.ledger.withdraw()
            if not is_needed:
                return False

    def _is_settled_meanwhile(self) -> bool:
        """Whether the image was stored, or a file got its name, since the records were read."""
        found = self._find(self.identity)
        return self._is_usable(found) or (isinstance(found, Obstacle) and self._passing(found) is not None)

    def _accept(self, image_task_id: str) -> str | None:
        """Record an id; return why that is not possible, if it is not: the image is paid and can still be stored."""
        try:
            self.ledger.accept(image_task_id)
        # After an execution_timeout the id must be reported as well.
        except (Exception, AirflowTaskTimeout) as error:  # noqa: BLE001  any storage's
            return f"{type(error).__name__}: {error}"
        return None

    def _record_refusal(self, error: QwenImageError) -> None:
        if isinstance(error, QwenImageSubmissionUnknownError):
            self.ledger.report()
        elif is_plain_server_error(error):
            self.ledger.answer_server_error()
        else:
            self.ledger.withdraw()

    def _resumed(self, step: Resume) -> Submitted:
        return resumed(step.submission, self.identity, self._options.instance, is_own=step.is_own)

    def stored(self, submitted: Submitted) -> StoredImages | None:
        """Return the stored image of an image task; None if it is not stored, or not whole."""
        found = self._find(submitted.identity)
        is_its = isinstance(found, StoredImages) and found.image_task_id == submitted.image_task_id
        return found if isinstance(found, StoredImages) and is_its else None

    def _stored_by(self, step: Resume) -> StoredImages | None:
        """Return the stored image of an image task, whose records are then not needed any more."""
        found = self.stored(self._resumed(step))
        if found is not None:
            self.ledger.finish(paid_for_stored(found))
        return found

    def _find(self, identity: ImageIdentity) -> StoredImages | Obstacle | None:
        return None if self._options.folder is None else find_images(identity, self._options.folder)

    def _asking(self) -> Asking:
        return Asking(
            identity=self.identity,
            made_in=self._options.made_in,
            instance=self._options.instance,
            overwrite=self._options.overwrite,
            answer_seconds=self._options.answer_seconds,
            now=time.time(),
        )

    def _log_once(self, notice: str) -> None:
        if notice != self._last_notice:
            log.info("%s", notice)
        self._last_notice = notice


def paid_for_stored(stored: StoredImages) -> Change:
    """Return what the books say about images that are stored."""
    return done(stored.image_task_id, stored.consumed_credits, stored.paths[0], stored.sha256)


def resumed(submission: Submission, identity: ImageIdentity, instance: Mapping[str, Any], *, is_own: bool) -> Submitted:
    """Return a submission that is recorded with its id.

    Args:
        submission: What is recorded.
        identity: The image that the task asks for now.
        instance: The task.
        is_own: Whether the task has made the submission.
    """
    intent = submission.intent
    # A record of an earlier version does not tell the map index.
    asked_for = intent.identity if submission.number else replace(identity, request=intent.identity.request)
    return Submitted(
        str(submission.image_task_id),
        asked_for,
        instance if is_own else intent.by,
        is_own=is_own,
        # The callback of another task's submission wakes that task.
        callback=intent.callback if is_own else None,
    )


def ended_from_outside() -> AirflowException:
    """Return the error of a task that is ended from outside before it submits anything."""
    return AirflowException("The task was ended from outside before it submitted its image: nothing is paid for it.")


def advance(steps: Steps, answer: Answer) -> Action:
    """Take the next step, and return what to do: at the end, what was found. An event loop calls it in a thread."""
    try:
        return steps.send(answer)
    except StopIteration as end:
        return Found(end.value)


def answer_seconds(settings: ConnectionSettings, in_flight: int = 1) -> float:
    """Return how long the answer to a submission may take, until it is recorded.

    Args:
        settings: The settings of the connection.
        in_flight: How many submissions may wait for their turn at once.
    """
    rate = settings.max_requests_per_second
    return settings.seconds_for_a_call + _ANSWER_MARGIN_SECONDS + (in_flight / rate if rate else 0.0)


def is_of_this_task(made_by: Mapping[str, Any], instance: Mapping[str, Any]) -> bool:
    """Whether an Airflow task, since it was first run or last cleared, is the one that a sidecar describes."""
    return writer_of(made_by) == writer_of(instance) and made_by.get("max_tries") == instance.get("max_tries")


def _is_of_this_effort(made_by: Mapping[str, Any], instance: Mapping[str, Any]) -> bool:
    """Whether a batch that draws new images has drawn one since it last succeeded, however often it was cleared."""
    effort = instance.get(EFFORT)
    return writer_of(made_by) == writer_of(instance) and effort is not None and made_by.get(EFFORT) == effort
