"""What `QwenImageRetryPolicy` makes of the errors that a task can end with."""

from __future__ import annotations

import copy
import json
import math
import pickle
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pendulum
import pytest
from airflow import __version__
from airflow.providers.common.compat.sdk import DAG, AirflowException, AirflowTaskTimeout, task
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_qwenimage import QwenImageBatchOperator, QwenImageGenerateOperator, QwenImageRetryPolicy
from airflow_provider_qwenimage.exceptions import (
    QwenImageAuthError,
    QwenImageBadRequestError,
    QwenImageBatchError,
    QwenImageBudgetError,
    QwenImageConnectionError,
    QwenImageContentPolicyError,
    QwenImageContractError,
    QwenImageCreditsError,
    QwenImageError,
    QwenImageImageError,
    QwenImageNotFoundError,
    QwenImageRateLimitError,
    QwenImageServerError,
    QwenImageSubmissionUnknownError,
    QwenImageTaskFailedError,
    QwenImageTimeoutError,
)
from airflow_provider_qwenimage.rules.task_retries import NoRetry, RetryLater, advise_retry
from tests.airflows import AIRFLOW
from tests.integration.dag_runs import dag_serialization

HAS_RETRY_POLICIES = AIRFLOW >= (3, 3)
HAS_RESCHEDULING = AIRFLOW >= (3, 4)
with_policies = pytest.mark.skipif(not HAS_RETRY_POLICIES, reason="this Airflow has no retry policies")

DAY = 86_400.0


def asking(seconds: Any) -> QwenImageRateLimitError:
    return QwenImageRateLimitError("Too many requests.", code=429, retry_after=seconds)


def raised(error: BaseException, cause: BaseException | None = None) -> BaseException:
    error.__cause__ = cause
    return error


def wait_of(error: BaseException, max_delay: float = DAY) -> float | None:
    """Return how long a retry waits because of an error, at its shortest; None if the error does not matter."""
    advice = advise_retry(error, max_delay, draw=lambda: 0.0)
    assert not isinstance(advice, NoRetry)
    return None if advice is None else advice.seconds


@pytest.mark.parametrize(
    "error",
    [
        QwenImageBadRequestError("no", code=400),
        QwenImageAuthError("no", code=401),
        QwenImageCreditsError("no", code=402),
        QwenImageNotFoundError("no", code=404),
        QwenImageSubmissionUnknownError("lost"),
        QwenImageContentPolicyError("refused"),
        QwenImageBatchError("rows", permanent=True),
        QwenImageImageError("wrong format", permanent=True, retry_after=5),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_would_fail_or_be_paid_again_is_not_retried(error: QwenImageError) -> None:
    assert advise_retry(error) == NoRetry(f"{type(error).__name__}: a retry would not help.")


@pytest.mark.parametrize(
    "error",
    [
        asking(None),
        QwenImageServerError("fault", code=500),
        QwenImageConnectionError("down"),
        QwenImageContractError("odd"),
        QwenImageTaskFailedError("failed"),
        QwenImageTimeoutError("late"),
        QwenImageBatchError("rows"),
        QwenImageImageError("truncated"),
        QwenImageError("?"),
        # The function of a task may raise these itself.
        ValueError("the table is empty"),
        KeyError("prompt"),
        AirflowException("upstream"),
        AirflowTaskTimeout("execution_timeout"),
        SystemExit(1),
    ],
    ids=lambda error: type(error).__name__,
)
def test_everything_else_is_left_to_the_settings_of_the_task(error: BaseException) -> None:
    assert advise_retry(error) is None


@pytest.mark.parametrize("error_class", [QwenImageRateLimitError, QwenImageServerError])
def test_a_retry_waits_as_long_as_the_server_asked(error_class: Callable[..., QwenImageError]) -> None:
    error = error_class("busy", code=503, retry_after=90.0)
    assert wait_of(error) == 90.0
    assert wait_of(QwenImageImageError("the image host is busy", retry_after=7)) == 7
    advice = advise_retry(error)
    assert isinstance(advice, RetryLater)
    assert advice.reason == f"{error_class.__name__}: the server asked to wait 90 s."
    assert advice.is_only_early == (error_class is QwenImageRateLimitError)


@pytest.mark.parametrize("error_class", [QwenImageBudgetError, QwenImageBatchError])
def test_a_retry_waits_until_a_spent_budget_begins_anew(error_class: Callable[..., QwenImageError]) -> None:
    error = error_class("spent", retry_after=20 * DAY)
    assert wait_of(error) == DAY
    advice = advise_retry(error, 31 * DAY, draw=lambda: 0.0)
    assert isinstance(advice, RetryLater)
    assert advice.seconds == 20 * DAY
    assert advice.reason == f"{error_class.__name__}: a budget resets in 1728000 s."
    # A batch may have met other errors as well.
    assert advice.is_only_early == (error_class is QwenImageBudgetError)


def test_a_long_wait_is_at_most_ten_minutes_longer_than_asked() -> None:
    advice = advise_retry(asking(20 * DAY), 31 * DAY, draw=lambda: 1.0)
    assert isinstance(advice, RetryLater)
    assert advice.seconds == 20 * DAY + 600


def test_tasks_that_were_refused_together_come_back_spread() -> None:
    waits = [advise_retry(asking(100), draw=iter([drawn]).__next__) for drawn in (0.0, 0.5, 1.0)]
    assert [round(wait.seconds, 6) for wait in waits if isinstance(wait, RetryLater)] == [100, 105, 110]


@pytest.mark.parametrize(
    ("asked", "waits"),
    [
        (math.nan, None),
        (-5, None),
        (0, None),
        (-math.inf, None),
        ("60", None),
        (None, None),
        ([60], None),
        (0.25, 0.25),
        (1e300, DAY),
        (10**400, DAY),
        (math.inf, DAY),
    ],
)
def test_a_strange_wait_is_ignored_or_bounded(asked: Any, waits: float | None) -> None:
    assert wait_of(asking(asked)) == waits


@given(st.one_of(st.floats(), st.integers(), st.none(), st.text()), st.floats(0.001, 1e6), st.floats(0, 1))
def test_no_wait_is_longer_than_allowed_or_shorter_than_asked(asked: Any, max_delay: float, drawn: float) -> None:
    advice = advise_retry(asking(asked), max_delay, draw=lambda: drawn)
    if advice is not None:
        assert isinstance(advice, RetryLater)
        assert min(asked, max_delay) <= advice.seconds <= max_delay
        assert timedelta(seconds=advice.seconds) <= timedelta(seconds=max_delay)


def test_an_error_counts_as_the_error_that_it_was_raised_from() -> None:
    assert wait_of(raised(RuntimeError("no image"), asking(30))) == 30
    assert wait_of(raised(AirflowException("x"), raised(RuntimeError("y"), asking(30)))) == 30
    lost = QwenImageSubmissionUnknownError("lost")
    assert isinstance(advise_retry(raised(RuntimeError("no image"), lost)), NoRetry)


def test_an_error_that_was_only_being_handled_does_not_count() -> None:
    def slip() -> None:
        try:
            raise asking(30)
        except QwenImageRateLimitError:
            raise KeyError("a slip in the handler")  # noqa: B904  without a cause, as a slip is

    with pytest.raises(KeyError) as caught:
        slip()
    assert isinstance(caught.value.__context__, QwenImageRateLimitError)
    assert advise_retry(caught.value) is None


def test_the_cause_of_this_packages_own_error_does_not_count() -> None:
    gave_up = QwenImageNotFoundError("Gave up after 10 failed reads.", code=404)
    gave_up.permanent = False
    assert advise_retry(raised(gave_up, QwenImageNotFoundError("no", code=404))) is None


def test_a_group_counts_as_all_its_errors() -> None:
    group = BaseExceptionGroup("images", [asking(30), ExceptionGroup("more", [asking(70), asking(None)])])
    advice = advise_retry(group, draw=lambda: 0.0)
    assert isinstance(advice, RetryLater)
    assert (advice.seconds, advice.is_only_early) == (70, True)
    mixed = advise_retry(ExceptionGroup("images", [KeyError("x"), asking(30)]), draw=lambda: 0.0)
    assert isinstance(mixed, RetryLater)
    assert (mixed.seconds, mixed.is_only_early) == (30, False)
    lost = ExceptionGroup("images", [asking(30), QwenImageSubmissionUnknownError("lost")])
    assert isinstance(advise_retry(lost), NoRetry)


def test_causes_in_a_circle_or_without_end_are_not_followed_for_ever() -> None:
    first, second = RuntimeError("first"), RuntimeError("second")
    first.__cause__, second.__cause__ = second, first
    assert advise_retry(first) is None
    error: BaseException = asking(30)
    for _ in range(5_000):
        error = raised(RuntimeError("again"), error)
    assert advise_retry(error) is None


@pytest.mark.skipif(HAS_RETRY_POLICIES, reason="this Airflow has retry policies")
def test_an_older_airflow_refuses_the_policy_with_a_clear_error() -> None:
    with pytest.raises(RuntimeError, match=rf"needs Airflow 3\.3 or later, and this is {__version__}\. Remove"):
        QwenImageRetryPolicy()


def decision(error: BaseException, try_number: int = 1, max_tries: int = 2, rescheduled: int = 0, **policy: Any) -> Any:
    context: Any = {"task_reschedule_count": rescheduled}
    return QwenImageRetryPolicy(**policy).evaluate(error, try_number, max_tries, context)


@with_policies
def test_the_decisions_are_those_of_airflow() -> None:
    assert decision(KeyError("x")).action.value == "default"
    failed = decision(QwenImageAuthError("sk-secret is wrong", code=401))
    assert (failed.action.value, failed.reason) == ("fail", "QwenImageAuthError: a retry would not help.")
    busy = decision(QwenImageServerError("sk-secret", code=503, retry_after=60), max_delay=timedelta(seconds=50))
    assert (busy.action.value, busy.retry_delay) == ("retry", timedelta(seconds=50))
    assert "sk-secret" not in busy.reason
    limited = decision(asking(60), max_delay=50)
    assert limited.action.value == ("reschedule" if HAS_RESCHEDULING else "retry")
    assert limited.retry_delay == timedelta(seconds=50)
    without_context = QwenImageRetryPolicy(max_delay=50).evaluate(asking(60), 1, 2)
    assert without_context == limited


@with_policies
@pytest.mark.parametrize(
    "why",
    [{"try_number": 3}, {"max_tries": 0}, {"rescheduled": 10}, {"max_reschedules": 0}],
    ids=["last try", "no retries", "repeated often enough", "not allowed"],
)
def test_a_try_is_not_repeated_without_end_or_consent(why: dict[str, int]) -> None:
    assert decision(asking(60), **why).action.value == "retry"


@with_policies
@pytest.mark.parametrize(
    ("name", "value"),
    [("max_delay", 0), ("max_delay", math.nan), ("max_delay", "1"), ("max_delay", None), ("max_reschedules", -1)],
)
def test_a_bad_argument_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{name} is .*; it must be "):
        QwenImageRetryPolicy(**{name: value})


@with_policies
def test_a_policy_is_a_value() -> None:
    policy = QwenImageRetryPolicy(max_delay=timedelta(minutes=5), max_reschedules=3)
    assert repr(policy) == "QwenImageRetryPolicy(max_delay=300.0, max_reschedules=3)"
    stored = json.loads(json.dumps(policy.serialize()))
    pickled = pickle.loads(pickle.dumps(policy))  # noqa: S301  our own
    same = [QwenImageRetryPolicy.deserialize(stored), copy.deepcopy(policy), pickled]
    assert all(each == policy and hash(each) == hash(policy) for each in same)
    assert policy != QwenImageRetryPolicy()
    assert policy != 300


@with_policies
def test_a_dag_with_the_policy_is_serialized_as_airflow_wants() -> None:
    policy: Any = {"retry_policy": QwenImageRetryPolicy()}
    with DAG("policies", schedule=None, start_date=pendulum.datetime(2024, 1, 1), default_args=policy) as dag:
        QwenImageGenerateOperator(task_id="draw", prompt="A red kite")
        QwenImageGenerateOperator.partial(task_id="mapped").expand(prompt=["A red kite"])
        QwenImageBatchOperator(task_id="batch", requests=["A red kite"], output_path="/data", **policy)

        @task(**policy)
        def call() -> None: ...

        call()
    serialization = dag_serialization()
    stored = json.loads(json.dumps(serialization.serialize_dag(dag)))
    tasks = serialization.deserialize_dag(stored).task_dict
    assert {name: tasks[name].has_retry_policy for name in tasks} == dict.fromkeys(tasks, True)
    assert all(dag.task_dict[name].retry_policy == QwenImageRetryPolicy() for name in tasks)
