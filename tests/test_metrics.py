"""The counters that this package adds to Airflow's metrics, sent by the loggers that Airflow itself uses."""

from __future__ import annotations

import socket
import sys
from collections import Counter
from importlib import import_module
from importlib.util import find_spec
from inspect import signature
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException, AirflowTaskTimeout, Stats
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from airflow_provider_qwenimage import exceptions
from airflow_provider_qwenimage.contract import TaskSnapshot, TaskStatus
from airflow_provider_qwenimage.exceptions import (
    QwenImageContentPolicyError,
    QwenImageError,
    QwenImageServerError,
    QwenImageTimeoutError,
)
from airflow_provider_qwenimage.tasks.failures import reporting_failures
from airflow_provider_qwenimage.tasks.metrics import count_end, count_failure, count_submission, kind_of
from tests.recorder import Recorder, failure, metrics_module, report_to

KINDS = {
    "QwenImageError": "other",
    "QwenImageRequestError": "request",
    "QwenImageBadRequestError": "bad_request",
    "QwenImageAuthError": "auth",
    "QwenImageCreditsError": "credits",
    "QwenImageNotFoundError": "not_found",
    "QwenImageRateLimitError": "rate_limit",
    "QwenImageServerError": "server",
    "QwenImageConnectionError": "connection",
    "QwenImageSubmissionUnknownError": "submission_unknown",
    "QwenImageContractError": "contract",
    "QwenImageTaskFailedError": "task_failed",
    "QwenImageContentPolicyError": "content_policy",
    "QwenImageTimeoutError": "timeout",
    "QwenImageBatchError": "batch",
    "QwenImageBudgetError": "budget",
    "QwenImageImageError": "image",
}


def snapshot(consumed_credits: float | None = 5, images: int = 1) -> TaskSnapshot:
    return TaskSnapshot(
        task_id="n43",
        status=TaskStatus.SUCCESS if images else TaskStatus.FAILED,
        consumed_credits=consumed_credits,
        image_urls=("https://cdn.example.com/1.png",) * images,
    )


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    return Recorder(monkeypatch).sums


@pytest.mark.parametrize("name", [name for name in vars(exceptions) if name.startswith("QwenImage")])
def test_every_error_has_a_kind(name: str) -> None:
    assert kind_of(getattr(exceptions, name)("what happened")) == KINDS[name]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ValueError("no"), "argument"),
        (UnicodeDecodeError("utf-8", b"", 0, 1, "no"), "argument"),
        (OSError("no"), "other"),
        (AirflowTaskTimeout("no"), "other"),
        (type("QwenImageHTTPStatusError", (QwenImageError,), {})("no"), "httpstatus"),
    ],
)
def test_other_errors_have_a_kind_too(error: BaseException, kind: str) -> None:
    assert kind_of(error) == kind


def test_a_submission_counts_once(counted: Counter[str]) -> None:
    count_submission()
    assert counted == {"qwenimage.submissions": 1}


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        (snapshot(), {"qwenimage.images": 1, "qwenimage.credits_consumed": 5}),
        (snapshot(2.5, images=3), {"qwenimage.images": 3, "qwenimage.credits_consumed": 2.5}),
        (snapshot(None), {"qwenimage.images": 1}),
        (snapshot(0), {"qwenimage.images": 1}),
        (snapshot(0, images=0), {}),
        (snapshot(5, images=0), {"qwenimage.credits_consumed": 5}),
    ],
)
def test_an_end_counts_its_images_and_credits(
    counted: Counter[str], end: TaskSnapshot, expected: dict[str, float]
) -> None:
    count_end(len(end.image_urls), end.consumed_credits)
    assert counted == expected


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (QwenImageContentPolicyError("no"), "content_policy"),
        (QwenImageServerError("no"), "server"),
        (ValueError("no"), "argument"),
        (AirflowTaskTimeout("no"), "other"),
        (AirflowException("no"), "other"),
    ],
)
def test_a_failure_counts_once_under_its_kind(counted: Counter[str], error: BaseException, kind: str) -> None:
    with pytest.raises((type(error), AirflowFailException)), reporting_failures():
        raise error
    assert counted == failure(kind)


def test_an_airflow_exception_counts_under_the_kind_of_its_cause(counted: Counter[str]) -> None:
    with pytest.raises(AirflowFailException), reporting_failures():
        raise AirflowFailException("late") from QwenImageTimeoutError("late")
    assert counted == failure("timeout")


def test_interrupts_exits_and_successes_count_no_failure(counted: Counter[str]) -> None:
    for signal in (KeyboardInterrupt, SystemExit, GeneratorExit):
        with pytest.raises(signal), reporting_failures():
            raise signal
    with reporting_failures():
        pass
    assert counted == {}


def count_everything() -> None:
    count_submission()
    count_end(2, 2.5)
    count_failure(QwenImageContentPolicyError("no"))


@pytest.mark.parametrize("error", [OSError("no route"), TypeError("floats?"), ImportError("no statsd"), KeyError("x")])
def test_an_error_of_the_metrics_logger_does_not_fail_the_task(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    called = []

    class Broken:
        def incr(self, stat: str, *args: Any, **kwargs: Any) -> None:
            called.append(stat)
            raise error

    report_to(Broken(), monkeypatch)
    count_everything()
    assert len(called) == 5


def test_counting_without_a_metrics_logger_raises_no_error() -> None:
    count_everything()


class Client:
    """A fake of the client of `statsd`, which is an optional dependency of Airflow; it sends the same packets."""

    def __init__(self, host: str, port: int, prefix: str, ipv6: bool = False) -> None:
        self.address, self.prefix = (host, port), prefix

    def incr(self, stat: str, count: float = 1, rate: float = 1) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sending:
            sending.sendto(f"{self.prefix}.{stat}:{count}|c".encode(), self.address)


def statsd_logger() -> Any:
    """Return the logger that Airflow's configuration selects."""
    if find_spec("airflow.metrics") and find_spec("airflow.metrics.statsd_logger"):
        return import_module("airflow.metrics.statsd_logger").get_statsd_logger(Stats)
    get_stats_factory: Any = import_module("airflow.sdk.observability.metrics.stats_utils").get_stats_factory
    # Airflow 3.2 needs the class as an argument, for Datadog.
    return get_stats_factory(*[Stats] * len(signature(get_stats_factory).parameters))()


@pytest.mark.parametrize("with_tags", [False, True])
def test_statsd_gets_every_name_and_number(monkeypatch: pytest.MonkeyPatch, with_tags: bool) -> None:
    if find_spec("statsd") is None:
        monkeypatch.setitem(sys.modules, "statsd", SimpleNamespace(StatsClient=Client, UnixSocketStatsClient=Client))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(60)
        monkeypatch.setenv("AIRFLOW__METRICS__STATSD_ON", "True")
        monkeypatch.setenv("AIRFLOW__METRICS__STATSD_HOST", "127.0.0.1")
        monkeypatch.setenv("AIRFLOW__METRICS__STATSD_PORT", str(server.getsockname()[1]))
        monkeypatch.setenv("AIRFLOW__METRICS__STATSD_INFLUXDB_ENABLED", str(with_tags))
        report_to(statsd_logger(), monkeypatch)
        count_everything()
        received = sorted(server.recv(1000).decode() for _ in range(5))
    assert received == sorted(
        [
            "airflow.qwenimage.submissions:1|c",
            "airflow.qwenimage.images:2|c",
            "airflow.qwenimage.credits_consumed:2.5|c",
            f"airflow.qwenimage.failures{',kind=content_policy' if with_tags else ''}:1|c",
            "airflow.qwenimage.failures.content_policy:1|c",
        ]
    )


def test_opentelemetry_gets_every_name_and_number(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    report_to(metrics_module("otel_logger").SafeOtelLogger(provider), monkeypatch)
    count_everything()
    count_end(1, 2.5)
    for name in KINDS:
        count_failure(getattr(exceptions, name)("no"))
    points: dict[str, float] = {
        metric.name: sum(getattr(point, "value", 0) for point in metric.data.data_points)
        for resource in reader.get_metrics_data().resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }
    provider.shutdown()
    assert points == {
        "airflow.qwenimage.submissions": 1,
        "airflow.qwenimage.images": 3,
        "airflow.qwenimage.credits_consumed": 5.0,
        "airflow.qwenimage.failures": 1 + len(KINDS),
        **{f"airflow.qwenimage.failures.{kind}": 1 + (kind == "content_policy") for kind in KINDS.values()},
    }
