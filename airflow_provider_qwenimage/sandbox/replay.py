"""Answers as a recording of the API does: the same envelopes, statuses, times and images, under new ids."""

from __future__ import annotations

import json
import math
import secrets
import stat
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from airflow_provider_qwenimage.contract import GenerateRequest, TaskStatus
from airflow_provider_qwenimage.recordings.cleaning import BYTES, JSON, TEXT
from airflow_provider_qwenimage.recordings.format import (
    IMAGE,
    MAX_LINE_BYTES,
    MAX_RECORDING_BYTES,
    STATUS,
    SUBMISSION,
    RecordedAnswer,
    read_recording,
)
from airflow_provider_qwenimage.text.signed_urls import query_of
from airflow_provider_qwenimage.text.urls import is_http_url

# The server sets these itself.
_NOT_REPLAYED = ("content-length", "date", "location")
_MAX_SPEED = 1e6
_NEW_ID_TRIES = 100
_REDIRECTS = (301, 302, 303, 307, 308)


@dataclass(frozen=True)
class ReplayedAnswer:
    """One answer to send.

    Attributes:
        status: The HTTP status.
        headers: The headers.
        body: The body.
        code: The code in its envelope, or None.
        is_redirect: Whether the recorded answer was a redirect; its target is not in the recording.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    code: int | None = None
    is_redirect: bool = False


@dataclass(frozen=True)
class RecordedImage:
    """The answers about one image, in their order.

    Attributes:
        submission: The answer to the submission.
        statuses: The answers with a status of the task, oldest first.
        failed_reads: All other answers to status requests, oldest first.
        download: The last answer of the image host, if there was one.
    """

    submission: RecordedAnswer
    statuses: Sequence[RecordedAnswer]
    failed_reads: Sequence[RecordedAnswer]
    download: RecordedAnswer | None

    @property
    def seconds(self) -> float:
        """When the task had ended, in seconds since its submission."""
        return self.statuses[-1].at if self.statuses else 0.0

    @property
    def outcome(self) -> str:
        """The outcome as the books name it."""
        if not self.statuses or self.statuses[-1].data.get("status") != TaskStatus.FAILED:
            return "ok"
        return "policy" if "policy" in str(self.statuses[-1].data.get("error_message")).lower() else "failure"

    @property
    def failed_credits(self) -> float:
        """What it costs if it has failed."""
        cost = self.statuses[-1].data.get("consumed_credits") if self.statuses else None
        return float(cost) if isinstance(cost, int | float) and 0 <= cost < 1e9 else 0.0  # noqa: PLR2004  no price is higher


@dataclass
class ReplayedTask:
    """A submission that is answered as a recorded one.

    Attributes:
        image: The recorded answers.
        task_id: The id of this task.
        request: Its request.
        image_url: The URL of its image, without a query.
        accepted_at: In epoch seconds.
    """

    image: RecordedImage
    task_id: str
    request: GenerateRequest
    image_url: str
    accepted_at: float
    failed_reads: int = field(default=0)


class Replay:
    """A recording to answer with. Use it from one thread.

    Args:
        answers: The answers of the recording.
        speed: How many times as fast the tasks proceed.
    """

    def __init__(self, answers: Sequence[RecordedAnswer], speed: float = 1.0) -> None:
        self._images = list(_images_of(answers))
        self._speed = speed
        self.clear()

    def clear(self) -> None:
        """Forget every task, and begin with the first recorded image again."""
        self._begun = 0
        self._tasks: dict[str, ReplayedTask] = {}

    @classmethod
    def load(cls, path: str, speed: float = 1.0) -> Replay:
        """Read a recording from a file.

        Raises:
            ValueError: If it is not a whole recording, or the speed is not a positive number.
        """
        if isinstance(speed, bool) or not isinstance(speed, int | float) or not 0 < speed <= _MAX_SPEED:
            raise ValueError(f"replay_speed is {speed!r}; it must be a number above 0, at most {_MAX_SPEED:g}.")
        try:
            _check_file(Path(path))
            with Path(path).open("rb") as file:
                # Other files have lines of any length.
                answers = read_recording(iter(lambda: file.readline(MAX_LINE_BYTES + 1), b""))
        except OSError as error:
            problem = f"cannot be read ({error.strerror})"
        except ValueError as error:
            problem = str(error)
        else:
            return cls(answers, speed)
        raise ValueError(f"replay is {path!r}, which {problem}. Name a whole file that `doctor --record` has written.")

    def next_image(self) -> RecordedImage:
        """Return the recorded image of the next submission; after the last one, the first follows."""
        image = self._images[self._begun % len(self._images)]
        self._begun += 1
        return image

    def new_id(self, image: RecordedImage) -> str | None:
        """Return a new id of the form of the recorded one; None if the submission was not accepted."""
        recorded = image.submission.data.get("task_id")
        if isinstance(recorded, bool) or not isinstance(recorded, str | int) or not str(recorded).strip():
            return None
        for _ in range(_NEW_ID_TRIES):
            task_id = "".join(map(_another, str(recorded)))
            if task_id not in self._tasks and not task_id.startswith("0"):
                return task_id
        return f"{recorded}{secrets.randbelow(10**12)}"

    def seconds(self, image: RecordedImage) -> float:
        """Return how long a task takes."""
        return image.seconds / self._speed

    def begin(self, task: ReplayedTask) -> None:
        """Note an accepted submission."""
        self._tasks[task.task_id] = task

    def find(self, task_id: str) -> ReplayedTask | None:
        """Return the task with this id, or None."""
        return self._tasks.get(task_id)

    def submission(self, image: RecordedImage, task: ReplayedTask | None) -> ReplayedAnswer:
        """Return the answer to a submission; `task` is None if it was not accepted."""
        return _replayed(image.submission, task, task.accepted_at if task else 0.0)

    def status(self, task: ReplayedTask, now: float) -> ReplayedAnswer | None:
        """Return the answer to a status request: the last recorded one of that moment; a failed read once.

        Args:
            task: The task.
            now: In epoch seconds.

        Returns:
            None if the recording has no answer to a status request.
        """
        elapsed = (now - task.accepted_at) * self._speed
        statuses, failed_reads = task.image.statuses, task.image.failed_reads
        # A client may poll before the first status was recorded: what was recorded before it comes first.
        due = max(elapsed, statuses[0].at) if statuses else math.inf
        if task.failed_reads < len(failed_reads) and failed_reads[task.failed_reads].at <= due:
            task.failed_reads += 1
            return _replayed(failed_reads[task.failed_reads - 1], task, now)
        last = next((answer for answer in reversed(statuses) if answer.at <= due), None) or next(
            reversed(failed_reads), None
        )
        return _replayed(last, task, now) if last else None

    def download(self, task: ReplayedTask) -> ReplayedAnswer | None:
        """Return the answer of the image host; None if the sandbox has to draw the image.

        It has to if the recording does not have the image, or if another format or size was requested than recorded.
        """
        answer = task.image.download
        recorded = task.image.submission.request
        is_other = any(recorded.get(name) != task.request.payload()[name] for name in ("size", "output_format"))
        if answer is None or (200 <= answer.status < 300 and (is_other or answer.body.form != BYTES)):  # noqa: PLR2004  HTTP
            return None
        return _replayed(answer, task, task.accepted_at)


def _check_file(path: Path) -> None:
    facts = path.stat()
    if not stat.S_ISREG(facts.st_mode):
        raise ValueError("is not a file")
    if facts.st_size > MAX_RECORDING_BYTES:
        raise ValueError(f"has more than the {MAX_RECORDING_BYTES} bytes that are read of a recording")


def _images_of(answers: Sequence[RecordedAnswer]) -> Iterator[RecordedImage]:
    for number in dict.fromkeys(answer.image for answer in answers):
        own = [answer for answer in answers if answer.image == number]
        statuses = [answer for answer in own if answer.kind == STATUS]
        yield RecordedImage(
            submission=next(answer for answer in own if answer.kind == SUBMISSION),
            statuses=[answer for answer in statuses if answer.data],
            failed_reads=[answer for answer in statuses if not answer.data],
            download=next((answer for answer in reversed(own) if answer.kind == IMAGE), None),
        )


def _replayed(answer: RecordedAnswer, task: ReplayedTask | None, now: float) -> ReplayedAnswer:
    headers = {name: value for name, value in answer.headers.items() if name not in _NOT_REPLAYED}
    content = answer.body.content
    code = answer.envelope.get("code")
    if answer.body.form == JSON:
        body = json.dumps(content if task is None else _with_new_names(content, task, now)).encode("ascii")
    elif answer.body.form == TEXT:
        body = content.encode("utf-8", "replace")
    else:
        body = content if answer.body.form == BYTES else b""
    return ReplayedAnswer(
        status=answer.status,
        headers=headers,
        body=body,
        code=code if isinstance(code, int) else None,
        is_redirect=answer.status in _REDIRECTS,
    )


def _with_new_names(content: Any, task: ReplayedTask, now: float) -> Any:
    """Return the JSON value of an answer with the id, the request and the image URL of a task."""
    recorded_id = task.image.submission.data.get("task_id")
    recorded = task.image.submission.request
    download = task.image.download
    query = query_of(download.url_parameters, download.url_seconds, now) if download else ""
    url = f"{task.image_url}?{query}" if query else task.image_url

    def renamed(value: Any, name: str = "") -> Any:
        if isinstance(value, dict):
            return {name: renamed(entry, name) for name, entry in value.items()}
        if isinstance(value, list):
            return list(map(renamed, value))
        # A number may be the price, or a code, as well.
        if value == recorded_id and (isinstance(value, str) or name == "task_id"):
            return int(task.task_id) if isinstance(value, int) else task.task_id
        return url if is_http_url(value) else value

    answer = renamed(content)
    data = answer.get("data") if isinstance(answer, dict) else None
    echo = data.get("request") if isinstance(data, dict) else None
    if isinstance(echo, dict):
        # What the API echoed unchanged is echoed for this request as well.
        own = task.request.payload()
        unchanged = content["data"]["request"]
        for name in recorded.keys() & unchanged.keys() & own.keys():
            if unchanged[name] == recorded[name]:
                echo[name] = own[name]
    return answer


def _another(character: str) -> str:
    for alphabet in (string.digits, string.ascii_lowercase, string.ascii_uppercase):
        if character in alphabet:
            return secrets.choice(alphabet)
    return character
