"""The retry policy for tasks that call the API (Airflow 3.3 and later)."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow import __version__ as airflow_version

from airflow_provider_qwenimage.airflow_versions import HAS_RESCHEDULING_POLICIES, HAS_RETRY_POLICIES
from airflow_provider_qwenimage.rules.arguments import read_argument
from airflow_provider_qwenimage.rules.task_retries import (
    DEFAULT_MAX_DELAY,
    DEFAULT_MAX_RESCHEDULES,
    NoRetry,
    advise_retry,
)

if TYPE_CHECKING or HAS_RETRY_POLICIES:
    # Not from the compatibility provider: the oldest one that this package allows does not have them.
    from airflow.sdk import RetryDecision, RetryPolicy
else:
    RetryPolicy = object

if TYPE_CHECKING:
    from typing import Self, SupportsIndex

    from airflow.sdk import Context

    from airflow_provider_qwenimage.rules.arguments import Seconds


class QwenImageRetryPolicy(RetryPolicy):
    """Waits before a retry as long as the API asked, and does not retry what would only fail, or be paid, again.

    For ``retry_policy=`` of any task, most of all of functions that use `QwenImageHook` themselves: whatever their
    policy, the operators and the sensor of this package end a task without a retry if a retry cannot help.

    - If a 429, or another error response, names a wait (``Retry-After``), the retry begins after it. If a budget of the
      connection is spent, the retry begins when the budget resets. On Airflow 3.4 and later neither a 429 nor a
      spent budget uses one of the task's retries, as long as the task has one left.
    - An error of this package that is ``permanent``, such as a refused key or a submission whose response was lost, is
      not retried.
    - Any other error is retried as the task's own ``retries`` and ``retry_delay`` say.

    An error that is raised ``from`` an error of this package counts as that one.

    Args:
        max_delay: The most seconds to wait, as a number or a timedelta. Default: one day; for a budget of a month,
            ``timedelta(days=31)`` waits for the next one.
        max_reschedules: How often a try may be repeated after a 429 or a spent budget before that uses a retry (Airflow
            3.4 and later). In a sensor with ``mode="reschedule"`` each poke counts as well.

    Raises:
        ValueError: If an argument is not allowed.
        RuntimeError: On Airflow below 3.3.
    """

    def __init__(
        self, *, max_delay: Seconds = DEFAULT_MAX_DELAY, max_reschedules: SupportsIndex = DEFAULT_MAX_RESCHEDULES
    ) -> None:
        if not HAS_RETRY_POLICIES:
            raise RuntimeError(
                f"QwenImageRetryPolicy needs Airflow 3.3 or later, and this is {airflow_version}. Remove retry_policy "
                "from the task; its retries and retry_delay work without it."
            )
        self.max_delay: float = read_argument("max_delay", max_delay)
        self.max_reschedules: int = read_argument("max_reschedules", max_reschedules)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(max_delay={self.max_delay}, max_reschedules={self.max_reschedules})"

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and vars(other) == vars(self)

    def __hash__(self) -> int:
        return hash((type(self), self.max_delay, self.max_reschedules))

    def evaluate(
        self, exception: BaseException, try_number: int, max_tries: int, context: Context | None = None
    ) -> RetryDecision:
        """Return what Airflow does after a failed try.

        Args:
            exception: What the try ended with.
            try_number: The number of the try, counted from 1.
            max_tries: The number of the last try that Airflow retries.
            context: The task's context.
        """
        advice = advise_retry(exception, self.max_delay)
        if advice is None:
            return RetryDecision.default()
        if isinstance(advice, NoRetry):
            return RetryDecision.fail(advice.reason)
        delay = timedelta(seconds=advice.seconds)
        rescheduled = (context or {}).get("task_reschedule_count") or 0
        # A task without retries does not expect to be run twice.
        has_retries = try_number <= max_tries
        if HAS_RESCHEDULING_POLICIES and advice.is_only_early and has_retries and rescheduled < self.max_reschedules:
            decisions: Any = RetryDecision
            decision: RetryDecision = decisions.reschedule(
                delay, max_reschedules=self.max_reschedules, reason=advice.reason
            )
            return decision
        return RetryDecision.retry(delay, advice.reason)

    def serialize(self) -> dict[str, Any]:
        """Return the policy as plain JSON."""
        return {"__type": type(self).__name__, "max_delay": self.max_delay, "max_reschedules": self.max_reschedules}

    @classmethod
    def deserialize(cls, data: dict[str, Any]) -> Self:
        """Return the policy that `serialize` described.

        Args:
            data: What it returned.
        """
        return cls(max_delay=data["max_delay"], max_reschedules=data["max_reschedules"])
