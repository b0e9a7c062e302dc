"""What an image leaves in the traces of a process, and that tracing costs and breaks nothing."""

from __future__ import annotations

import asyncio
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowSkipException, TaskDeferred
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.trace import StatusCode

from airflow_provider_qwenimage.client import downloads
from airflow_provider_qwenimage.client.spans import Span, span
from airflow_provider_qwenimage.contract import GenerateRequest
from airflow_provider_qwenimage.exceptions import (
    QwenImageError,
    QwenImageImageError,
    QwenImageRateLimitError,
    QwenImageTaskFailedError,
)
from airflow_provider_qwenimage.hooks import QwenImageAsyncHook, QwenImageHook
from airflow_provider_qwenimage.rules.image_identity import ImageIdentity
from airflow_provider_qwenimage.rules.retries import RequestRetries
from airflow_provider_qwenimage.sandbox import Sandbox
from airflow_provider_qwenimage.storage.images import save_images
from airflow_provider_qwenimage.storage.paths import open_output_path
from tests.traces import Traces

API_KEY = "sk-spans-0c1d2e"
PROMPT = "A lighthouse that nobody may read about"
REQUEST = GenerateRequest(prompt=PROMPT, size="1024*768", seed=7, output_format="png")


@pytest.fixture(scope="module")
def running() -> Iterator[Sandbox]:
    with Sandbox(seconds_per_image=0, api_keys=(API_KEY,)) as sandbox:
        yield sandbox


@pytest.fixture
def sandbox(running: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Sandbox:
    running.reset()
    monkeypatch.setenv("AIRFLOW_CONN_QWENIMAGE_DEFAULT", running.connection_json)
    monkeypatch.setattr(downloads, "_RETRIES", RequestRetries(limit=1, delay_seconds=0.0))
    return running


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch) -> Traces:
    return Traces(monkeypatch)


def text_of(spans: list[ReadableSpan]) -> str:
    return "".join(each.to_json() for each in spans)


def draw(folder: Path) -> str:
    """Draw an image as a task does, and return its id."""
    with QwenImageHook(retry_limit=0) as hook:
        task_id = hook.submit(REQUEST)
        snapshot = hook.wait_for_completion(task_id, poll_interval=0.05)
        save_images(snapshot, ImageIdentity(REQUEST), open_output_path(str(folder)))
    return task_id


def draw_in_a_loop(folder: Path) -> str:
    async def main() -> str:
        async with QwenImageAsyncHook(retry_limit=0) as hook:
            task_id = await hook.submit(REQUEST)
            snapshot = await hook.wait_for_completion(task_id, poll_interval=0.05)
        await asyncio.to_thread(save_images, snapshot, ImageIdentity(REQUEST), open_output_path(str(folder)))
        return task_id

    return asyncio.run(main())


@pytest.mark.parametrize("way", [draw, draw_in_a_loop])
def test_an_image_leaves_five_spans_below_that_of_its_task(
    sandbox: Sandbox, traces: Traces, tmp_path: Path, way: Any
) -> None:
    with traces.parent() as parent:
        task_id = way(tmp_path)
    assert traces.names == ["submit", "wait", "download", "verify", "store"]
    assert {each.parent and each.parent.span_id for each in traces.ended} == {parent}
    size = next(tmp_path.glob("*.png")).stat().st_size
    assert traces.attributes("submit") == {"size": "1024*768", "output_format": "png", "task_id": task_id}
    assert traces.attributes("wait") == {"task_id": task_id, "credits": 5}
    for name in ("download", "verify", "store"):
        assert traces.attributes(name) == {"task_id": task_id, "bytes": size}
    assert all(each.status.status_code is StatusCode.UNSET for each in traces.ended)
    written = text_of(traces.ended)
    # The name of the file has words of the prompt.
    assert not any(secret in written for secret in (API_KEY, PROMPT, "lighthouse", sandbox.url, "signature"))


def test_an_error_leaves_its_class_and_code_and_none_of_its_text(sandbox: Sandbox, traces: Traces) -> None:
    sandbox.script("generate", "rate_limit", "ok")
    with QwenImageHook(retry_delay=0) as hook:
        hook.submit(REQUEST)
    first, second = traces.ended
    assert (first.status.status_code, second.status.status_code) == (StatusCode.ERROR, StatusCode.UNSET)
    assert first.status.description == "QwenImageRateLimitError: code 429"
    assert (first.attributes or {})["error.type"] == "QwenImageRateLimitError"
    assert not first.events


def test_a_failed_image_leaves_what_it_cost(sandbox: Sandbox, traces: Traces) -> None:
    sandbox.script("generate", "failure", "failure")

    async def follow(task_id: str) -> None:
        async with QwenImageAsyncHook() as hook:
            await hook.wait_for_completion(task_id)

    with QwenImageHook() as hook:
        with pytest.raises(QwenImageTaskFailedError) as caught:
            hook.wait_for_completion(hook.submit(REQUEST))
        with pytest.raises(QwenImageTaskFailedError):
            asyncio.run(follow(hook.submit(REQUEST)))
    waits = [each for each in traces.ended if each.name == "qwenimage.wait"]
    assert [each.status.description for each in waits] == ["QwenImageTaskFailedError"] * 2
    assert [(each.attributes or {})["qwenimage.credits"] for each in waits] == [caught.value.cost] * 2


@pytest.mark.parametrize(
    ("behaviour", "failed"),
    [("server_error", ["download", "download"]), ("garbage", ["verify", "verify"]), ("wrong_size", ["verify"])],
)
def test_the_step_in_which_an_image_fails_is_the_one_that_failed(
    sandbox: Sandbox, traces: Traces, tmp_path: Path, behaviour: str, failed: list[str]
) -> None:
    sandbox.script("image", behaviour, behaviour)
    with pytest.raises(QwenImageImageError):
        draw(tmp_path)
    errors = [each for each in traces.ended if each.status.status_code is StatusCode.ERROR]
    assert [each.name.removeprefix("qwenimage.") for each in errors] == failed
    assert {each.status.description for each in errors} == {"QwenImageImageError"}
    assert not any(each.events for each in errors)


@pytest.mark.parametrize(
    "stop",
    [TaskDeferred(trigger=None, method_name="execute_complete"), asyncio.CancelledError(), AirflowSkipException("x")],
    ids=lambda stop: type(stop).__name__,
)
def test_what_only_stops_a_task_is_no_error(traces: Traces, stop: BaseException) -> None:
    with pytest.raises(type(stop)), span("wait"):
        raise stop
    (recorded,) = traces.ended
    assert recorded.status.status_code is StatusCode.UNSET


def test_the_first_error_of_a_span_counts(traces: Traces) -> None:
    with span("wait") as wait:
        wait.fail(QwenImageRateLimitError("slow down", code=429))
        wait.fail(RuntimeError("on the way out"))
    assert traces.ended[0].status.description == "QwenImageRateLimitError: code 429"


def test_strange_values_are_cut_replaced_or_left_out(traces: Traces) -> None:
    with span("wait", task_id="\ud83d\x00" + "n" * 10_000) as wait:
        wait.note(a=math.nan, b=math.inf, c=10**400, d=None, e=[1], f=b"x", g=10**30, h=True, i=0.5)
    found = traces.attributes("wait")
    task_id = found.pop("task_id")
    assert task_id.encode()
    assert "\x00" not in task_id
    assert len(task_id) < 300
    assert found == {"g": 1e30, "h": True, "i": 0.5}


class Broken(SpanProcessor):
    """Fails at a step of each span."""

    def __init__(self, step: str) -> None:
        self._step = step

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        self._fail("start")

    def on_end(self, span: Any) -> None:
        self._fail("end")

    def _fail(self, step: str) -> None:
        if step == self._step:
            raise RuntimeError(step)


@pytest.mark.parametrize("step", ["start", "end"])
def test_tracing_that_fails_loses_nothing(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, step: str
) -> None:
    Traces(monkeypatch, Broken(step))
    draw(tmp_path)
    assert list(tmp_path.glob("*.png"))
    with pytest.raises(QwenImageError, match="slow down"), span("wait"):
        raise QwenImageError("slow down")


def test_what_is_not_sampled_is_not_recorded(traces: Traces) -> None:
    context = trace.SpanContext(1, 2, is_remote=False, trace_flags=trace.TraceFlags(0))
    with trace.use_span(trace.NonRecordingSpan(context)), span("wait") as wait:
        wait.note(credits=5)
    assert traces.names == []


def test_without_tracing_nothing_is_loaded_or_made() -> None:
    code = """
import sys
from airflow_provider_qwenimage.client.spans import span
first, second = span("wait", task_id="n43"), span("submit")
with first:
    first.note(credits=5)
assert first is second
print([name for name in sys.modules if name.startswith("opentelemetry")])
import opentelemetry.trace
assert span("wait") is first
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_a_span_of_nothing_takes_everything() -> None:
    with Span() as nothing:
        nothing.note(credits=5)
        nothing.fail(QwenImageError("x"))
