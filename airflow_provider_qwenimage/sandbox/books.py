"""The sandbox's books: tasks, charges, requests and callbacks, in memory. No I/O."""

from __future__ import annotations

import heapq
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from airflow_provider_qwenimage.contract import CREDITS_PER_IMAGE, RANDOM_SEED, GenerateRequest, TaskStatus

POLICY_MESSAGE = "Content policy violation detected"
FAILURE_MESSAGE = "The image could not be drawn"

_ERROR_MESSAGES = {"policy": POLICY_MESSAGE, "failure": FAILURE_MESSAGE}
_SEEDS = 2**31


@dataclass(frozen=True, kw_only=True)
class Submission:
    """An accepted submission and its current status.

    Attributes:
        request: The request, with defaults filled in.
        accepted_at: In epoch seconds.
        charged: Credits: 5, or the setting ``failed_credits`` (0 by default) once the task has failed.
        seed: The seed of the image: the requested one, or a random one if -1 was requested.
    """

    task_id: str
    request: dict[str, Any]
    accepted_at: float
    charged: float
    status: TaskStatus
    seed: int


@dataclass(slots=True, kw_only=True)
class RequestRecord:
    """A request that reached the sandbox.

    Attributes:
        path: The path with its query.
        route: ``generate``, ``status``, ``image``, ``redirected`` (the target of a redirect) or ``other``.
        authorized_header: Whether the request had an Authorization header.
        time: When it arrived, in epoch seconds.
        client_port: The client's port; requests over one kept-alive connection share it.
        task_id: The requested task, or the new one for a submission; None if there is none.
        behaviour: The fault that was injected, or ``ok``.
        status: The HTTP status of the answer; None if no answer has been sent.
        code: The code in the answer's envelope, or None.
    """

    method: str
    path: str
    route: str
    authorized_header: bool
    time: float
    client_port: int | None = None
    task_id: str | None = None
    behaviour: str = "ok"
    status: int | None = None
    code: int | None = None


@dataclass(frozen=True, kw_only=True)
class CallbackRecord:
    """One try to call the ``callback_url`` of a completed task.

    Attributes:
        time: In epoch seconds.
        status: The HTTP status of the answer, or None if there was no answer.
    """

    task_id: str
    url: str
    time: float
    status: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """An image task. Its duration and outcome are fixed when it is accepted; its status depends on the time alone."""

    task_id: str
    request: GenerateRequest
    seed: int
    accepted_at: float
    seconds: float
    pending_seconds: float
    outcome: str
    failed_credits: float
    created_at: str = field(init=False)

    def __post_init__(self) -> None:
        moment = datetime.fromtimestamp(self.accepted_at, UTC)
        object.__setattr__(self, "created_at", moment.strftime("%Y-%m-%dT%H:%M:%SZ"))

    @property
    def ends_at(self) -> float:
        """When the task ends, in epoch seconds."""
        return self.accepted_at + self.seconds

    def status_at(self, now: float) -> TaskStatus:
        """Return the task's status at a time in epoch seconds."""
        if now >= self.ends_at:
            return TaskStatus.SUCCESS if self.outcome == "ok" else TaskStatus.FAILED
        if now < self.accepted_at + self.pending_seconds:
            return TaskStatus.PENDING
        return TaskStatus.IN_PROGRESS

    def charged_at(self, now: float) -> float:
        """Return the credits charged for the task at a time; once it has failed, the rest is refunded."""
        return self.failed_credits if self.status_at(now) is TaskStatus.FAILED else CREDITS_PER_IMAGE

    def data_at(self, now: float, image_url: str) -> dict[str, Any]:
        """Return the ``data`` object of a status answer at a time."""
        status = self.status_at(now)
        return {
            "task_id": self.task_id,
            "status": str(status),
            "consumed_credits": _without_fraction(self.charged_at(now)),
            "error_message": _ERROR_MESSAGES[self.outcome] if status is TaskStatus.FAILED else None,
            "created_at": self.created_at,
            "request": self.request.payload(),
            "response": [image_url] if status is TaskStatus.SUCCESS else None,
        }


def _without_fraction(number: float) -> float:
    """Return a whole number as the API documents it: 5, not 5.0."""
    return int(number) if number == int(number) else number


class Books:
    """Every task, charge, request and callback. Safe to use from several threads.

    Args:
        request_log_size: How many requests are kept; the oldest are dropped first.
        clock: Returns the time in epoch seconds.
    """

    def __init__(self, request_log_size: int, clock: Callable[[], float] = time.time) -> None:
        self.clock = clock
        self._lock = threading.Lock()
        self._tasks: dict[str, Task] = {}
        self._charged = 0.0
        self._refunds: list[tuple[float, str, float]] = []
        self._requests: deque[RequestRecord] = deque(maxlen=request_log_size)
        self._callbacks: deque[CallbackRecord] = deque(maxlen=request_log_size)

    def clear(self) -> None:
        """Delete everything."""
        with self._lock:
            self._tasks.clear()
            self._charged = 0.0
            self._refunds.clear()
            self._requests.clear()
            self._callbacks.clear()

    def resize(self, request_log_size: int) -> None:
        """Change how many requests and callbacks are kept."""
        with self._lock:
            self._requests = deque(self._requests, maxlen=request_log_size)
            self._callbacks = deque(self._callbacks, maxlen=request_log_size)

    def accept(
        self,
        request: GenerateRequest,
        *,
        seconds: float,
        pending_share: float,
        outcome: str,
        failed_credits: float,
        credit_limit: float | None,
        task_id: str | None = None,
    ) -> Task | None:
        """Create a task and charge for it; return None if the credits are not sufficient.

        Args:
            seconds: How long the task takes.
            pending_share: The share of that time, from the start, in which the task is PENDING.
            outcome: ``ok``, ``failure`` or ``policy``.
            failed_credits: The task's cost if it ends as FAILED.
            credit_limit: The account's credits, or None for no limit.
            task_id: The task's id; None for a new one.
        """
        now = self.clock()
        with self._lock:
            if credit_limit is not None and self._settle(now) + CREDITS_PER_IMAGE > credit_limit:
                return None
            task = Task(
                task_id=task_id or f"n43{secrets.token_hex(6)}qwenimg",
                request=request,
                seed=secrets.randbelow(_SEEDS) if request.seed == RANDOM_SEED else request.seed,
                accepted_at=now,
                seconds=seconds,
                pending_seconds=seconds * pending_share,
                outcome=outcome,
                failed_credits=failed_credits,
            )
            self._charge(task)
            return task

    def restore(self, tasks: Iterable[Task]) -> None:
        """Add the tasks, and their charges, that were accepted before a restart."""
        with self._lock:
            for task in tasks:
                self._charge(task)

    def find(self, task_id: str) -> Task | None:
        """Return the task with this id, or None."""
        return self._tasks.get(task_id)

    def note_request(self, record: RequestRecord) -> None:
        """Record a request; its answer is filled in later."""
        with self._lock:
            self._requests.append(record)

    def note_callback(self, record: CallbackRecord) -> None:
        """Record a try to call a ``callback_url``."""
        with self._lock:
            self._callbacks.append(record)

    def submissions(self) -> list[Submission]:
        """Return every accepted submission with its current status, oldest first."""
        now = self.clock()
        with self._lock:
            tasks = list(self._tasks.values())
        return [
            Submission(
                task_id=task.task_id,
                request=task.request.payload(),
                accepted_at=task.accepted_at,
                charged=task.charged_at(now),
                status=task.status_at(now),
                seed=task.seed,
            )
            for task in tasks
        ]

    def requests(self) -> list[RequestRecord]:
        """Return the recorded requests, oldest first."""
        with self._lock:
            return list(self._requests)

    def callbacks(self) -> list[CallbackRecord]:
        """Return the recorded tries to call a ``callback_url``, oldest first."""
        with self._lock:
            return list(self._callbacks)

    def credits_charged(self) -> float:
        """Return the credits charged so far, less the refunds of failed tasks."""
        with self._lock:
            return self._settle(self.clock())

    def _charge(self, task: Task) -> None:
        self._tasks[task.task_id] = task
        self._charged += CREDITS_PER_IMAGE
        if task.outcome != "ok":
            heapq.heappush(self._refunds, (task.ends_at, task.task_id, CREDITS_PER_IMAGE - task.failed_credits))

    def _settle(self, now: float) -> float:
        while self._refunds and self._refunds[0][0] <= now:
            *_, refund = heapq.heappop(self._refunds)
            self._charged -= refund
        return self._charged
