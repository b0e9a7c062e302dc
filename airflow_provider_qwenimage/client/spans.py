"""Records where the time of an image goes, as OpenTelemetry spans, in a process that has tracing.

The names are ``qwenimage.submit``, ``qwenimage.wait``, ``qwenimage.download``, ``qwenimage.verify`` and
``qwenimage.store``. A span has no text that may quote a prompt, a key or a URL: of an error, only its class and code.
"""

from __future__ import annotations

import math
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from airflow_provider_qwenimage._version import __version__
from airflow_provider_qwenimage.exceptions import QwenImageRequestError
from airflow_provider_qwenimage.rules import polling
from airflow_provider_qwenimage.text.storable import storable_text

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

_PREFIX = "qwenimage."
_MAX_CHARACTERS = 250
_MAX_INTEGER = 2**63 - 1
# With these a task or a coroutine stops for now, and nothing has failed.
_NO_FAILURES = frozenset(
    {"AirflowRescheduleException", "AirflowSkipException", "CancelledError", "GeneratorExit", "TaskDeferred"}
)


class Span:
    """A span under way, to be entered once; nothing, if there is no tracing. It raises nothing of its own.

    Args:
        span: OpenTelemetry's, or None.
        trace: OpenTelemetry's module `trace`, or None.
    """

    __slots__ = ("_active", "_has_failed", "_span", "_trace")

    def __init__(self, span: Any = None, trace: Any = None) -> None:
        self._span = span
        self._trace = trace
        self._active: Any = None
        self._has_failed = False

    def note(self, **values: Any) -> None:
        """Add attributes. What is None, or what cannot be stored, is left out.

        Args:
            **values: Texts, numbers and booleans by the name of the attribute, without its prefix.
        """
        if self._span is None:
            return
        for name, value in values.items():
            with suppress(Exception):
                if (plain := _plain(value)) is not None:
                    self._span.set_attribute(f"{_PREFIX}{name}", plain)

    def fail(self, error: BaseException) -> None:
        """Mark it as failed, by the first error that is reported."""
        name = type(error).__name__
        if self._span is None or self._has_failed or name in _NO_FAILURES:
            return
        self._has_failed = True
        with suppress(Exception):
            code = error.code if isinstance(error, QwenImageRequestError) else 0
            description = f"{name}: code {code}" if code else name
            self._span.set_attribute("error.type", name)
            self._span.set_status(self._trace.Status(self._trace.StatusCode.ERROR, description))

    def note_end(self, end: polling.Done | polling.GiveUp) -> None:
        """Note how a wait ended, and what the image task cost."""
        if isinstance(end, polling.GiveUp):
            self.fail(end.error)
        snapshot = end.snapshot if isinstance(end, polling.Done) else getattr(end.error, "snapshot", None)
        if snapshot is not None:
            self.note(credits=snapshot.consumed_credits)

    def __enter__(self) -> Self:
        if self._span is not None:
            with suppress(Exception):
                # OpenTelemetry would record the texts of an error and of all its causes.
                active = self._trace.use_span(self._span, record_exception=False, set_status_on_error=False)
                active.__enter__()
                self._active = active
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._span is None:
            return
        if error is not None:
            self.fail(error)
        with suppress(Exception):
            if self._active is not None:
                self._active.__exit__(None, None, None)
        with suppress(Exception):
            self._span.end()


# Without tracing, all share this one.
_NOTHING = Span()


def span(name: str, **values: Any) -> Span:
    """Return a span that begins now, below the one that is current.

    Args:
        name: Its name, without the prefix.
        **values: As for `Span.note`.
    """
    # If nothing has imported it, nothing has set up tracing: then it takes no time to load, and need not be installed.
    trace: Any = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return _NOTHING
    try:
        started = trace.get_tracer(__package__, __version__).start_span(f"{_PREFIX}{name}")
        if not started.is_recording():
            return _NOTHING
    except Exception:  # noqa: BLE001  an error of the tracing must not lose a paid image
        return _NOTHING
    recorded = Span(started, trace)
    recorded.note(**values)
    return recorded


def _plain(value: Any) -> str | float | None:
    if isinstance(value, bool):
        return value
    if isinstance(value, str):
        return storable_text(value, _MAX_CHARACTERS)
    if isinstance(value, int):
        return value if abs(value) <= _MAX_INTEGER else float(value)
    return value if isinstance(value, float) and math.isfinite(value) else None
