"""Tracks one request of either client: its deadline, whether it was sent, and its answer."""

from __future__ import annotations

import time
from contextvars import ContextVar, Token
from types import TracebackType

from airflow_provider_qwenimage.rules.http_answers import AnswerHead, AnswerReader, UnreadableAnswerError

_CURRENT: ContextVar[Exchange | None] = ContextVar("qwenimage_exchange", default=None)


class Exchange:
    """The state of one request while it is under way.

    Args:
        seconds: The time limit for all of it: host name, connection, TLS, proxy, request and answer.
        opens_connection: Whether it must not use a connection of an earlier request, which the server may be closing.

    Attributes:
        seconds: The time limit.
        opens_connection: As given.
        was_sent: Whether any of the request may have reached the server; a proxy's CONNECT does not count.
        is_connected: Whether a connection to the server exists, through the proxy's tunnel if it needs one.
        reader: Reads the answer.
        fault: Why the received bytes are not an answer, if they are not.
    """

    def __init__(self, seconds: float, *, opens_connection: bool = False) -> None:
        self.seconds = seconds
        self.opens_connection = opens_connection
        self.was_sent = False
        self.is_connected = False
        self.reader = AnswerReader()
        self.fault: UnreadableAnswerError | None = None
        self._deadline = time.monotonic() + seconds

    @classmethod
    def current(cls) -> Exchange | None:
        """Return the exchange of this thread or task, if any."""
        return _CURRENT.get()

    def under_way(self) -> _UnderWay:
        """Make this the current exchange for the requests of a block."""
        return _UnderWay(self)

    def begin_answer(self) -> AnswerReader:
        """Forget an earlier answer, and return the reader of the next one."""
        self.reader, self.fault = AnswerReader(), None
        return self.reader

    @property
    def head(self) -> AnswerHead:
        """Status and headers of the answer.

        Raises:
            UnreadableAnswerError: If they were not received.
        """
        if self.reader.head is None:
            raise UnreadableAnswerError("no response was received")
        return self.reader.head

    def seconds_left(self) -> float:
        """Return how many seconds the rest may take.

        Raises:
            TimeoutError: If the deadline has passed.
        """
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise self.timed_out()
        return left

    def allow(self, seconds: float) -> None:
        """Set the limit for the rest, in seconds from now."""
        self._deadline = time.monotonic() + seconds

    @property
    def is_over(self) -> bool:
        """Whether the deadline has passed."""
        return time.monotonic() >= self._deadline

    def timed_out(self) -> TimeoutError:
        """Return the error for a deadline that has passed."""
        return TimeoutError(f"no complete response within {self.seconds:g} s")


class _UnderWay:
    """A block in which an exchange is the current one. It is not a generator, which is slower for each poll."""

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
