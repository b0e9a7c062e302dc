"""Receive the spans of a process: in memory, or of other processes over OTLP."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

import pytest
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

OURS = "qwenimage."


class Traces:
    """The spans of this process.

    Args:
        monkeypatch: Restores what traced before.
        processors: What else sees the spans.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *processors: SpanProcessor) -> None:
        self._memory = InMemorySpanExporter()
        provider = TracerProvider()
        for processor in (*processors, SimpleSpanProcessor(self._memory)):
            provider.add_span_processor(processor)
        # OpenTelemetry itself takes only the first provider of a process.
        monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
        self._tracer = provider.get_tracer("tests")

    @contextmanager
    def parent(self) -> Iterator[int]:
        """Be in a span, as a task is on Airflow 3.2 and later, and return its id."""
        with self._tracer.start_as_current_span("worker") as span:
            yield span.get_span_context().span_id

    @property
    def ended(self) -> list[ReadableSpan]:
        """The spans of the package that have ended, in the order of their beginnings."""
        ours = [span for span in self._memory.get_finished_spans() if span.name.startswith(OURS)]
        return sorted(ours, key=lambda span: span.start_time or 0)

    @property
    def names(self) -> list[str]:
        return [span.name.removeprefix(OURS) for span in self.ended]

    def attributes(self, name: str) -> dict[str, Any]:
        """Return the attributes of the only span of a name, without their prefix."""
        (span,) = [span for span in self.ended if span.name == OURS + name]
        return {key.removeprefix(OURS): value for key, value in (span.attributes or {}).items()}


@dataclass
class Received:
    """A span that another process has sent."""

    name: str
    trace: bytes
    span: bytes
    parent: bytes
    attributes: dict[str, Any]


@dataclass
class TraceServer:
    """Receives spans over OTLP and HTTP, as a collector does."""

    spans: list[Received] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                receiver.receive(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def settings(self) -> dict[str, str]:
        """Environment variables that make Airflow send its spans here."""
        return {
            "AIRFLOW__TRACES__OTEL_ON": "True",
            "OTEL_TRACES_EXPORTER": "otlp_proto_http",
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"http://127.0.0.1:{self._server.server_port}/v1/traces",
            "OTEL_EXPORTER_OTLP_TRACES_COMPRESSION": "none",
            "OTEL_BSP_SCHEDULE_DELAY": "500",
        }

    def receive(self, body: bytes) -> None:
        self.bodies.append(body)
        request = ExportTraceServiceRequest.FromString(body)
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                for span in scope.spans:
                    values = {
                        each.key: getattr(each.value, str(each.value.WhichOneof("value"))) for each in span.attributes
                    }
                    self.spans.append(Received(span.name, span.trace_id, span.span_id, span.parent_span_id, values))

    def below(self, name: str) -> list[Received]:
        """Return the spans directly below the spans of a name."""
        parents = {span.span for span in self.spans if span.name == name}
        return [span for span in self.spans if span.parent in parents]
