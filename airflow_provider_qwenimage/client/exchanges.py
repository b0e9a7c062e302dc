"""One request and its answer: its deadline, whether it was sent, and what was received. Shared by both clients."""

from __future__ import annotations

import time
from contextvars import ContextVar, Token
from types import TracebackType

from airflow_provider_qwenimage.rules.http_answers import AnswerHead, AnswerReader, UnreadableAnswerError

_CURRENT: ContextVar[Exchange | None] = ContextVar("qwenimage_exchange", default=None)


class Exchange:
    """What is known of one request while it is under way.

    Args:
        seconds: How long all of it may take: name, connection, TLS, proxy, request and answer.

    Attributes:
        seconds: As given.
        was_sent: Whether any of the request may have reached the server; a proxy's CONNECT does not count.
        is_connected: Whether there is a connection to the server, through the proxy's tunnel if there is one.
        reader: Reads the answer.
        fault: Why the bytes that came are no answer, if they are none.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.was_sent = False
        self.is_connected = False
        self.reader = AnswerReader()
        self.fault: UnreadableAnswerError | None = None
        self._deadline = time.monotonic() + seconds

    @classmethod
    def current(cls) -> Exchange | None:
        """Return the exchange that this thread or task is in, if any."""
        return _CURRENT.get()

    def under_way(self) -> _UnderWay:
        """Make this the current exchange, for whatever the block sends."""
        return _UnderWay(self)

    def begin_answer(self) -> AnswerReader:
        """Forget what came before, and return what reads the answer that comes now."""
        self.reader, self.fault = AnswerReader(), None
        return self.reader

    @property
    def head(self) -> AnswerHead:
        """Status and headers of the answer.

        Raises:
            UnreadableAnswerError: If they have not come.
        """
        if self.reader.head is None:
            raise UnreadableAnswerError("no answer came")
        return self.reader.head

    def seconds_left(self) -> float:
        """Return how long the rest may take.

        Raises:
            TimeoutError: If the deadline has passed.
        """
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise self.timed_out()
        return left

    def allow(self, seconds: float) -> None:
        """Let the rest take so many seconds from now, whatever was allowed before."""
        self._deadline = time.monotonic() + seconds

    @property
    def is_over(self) -> bool:
        """Whether the deadline has passed."""
        return time.monotonic() >= self._deadline

    def timed_out(self) -> TimeoutError:
        """Return the error for a deadline that has passed."""
        return TimeoutError(f"no whole answer within {self.seconds:g} s")


class _UnderWay:
    """A block in which an exchange is the current one; not a generator, since every poll makes one."""

    __slots__ = ("_exchange", "_token")
    _token: Token[Exchange | None]

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    def __enter__(self) -> None:
        self._token = _CURRENT.set(self._exchange)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        _CURRENT.reset(self._token)
