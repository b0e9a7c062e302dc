"""Decides when a client may send its next request: never above a rate, and slower after a 429. No I/O."""

from __future__ import annotations

from airflow_provider_qwenimage.exceptions import QwenImageError, QwenImageRateLimitError

# How long a 429 without a `Retry-After` holds all requests of a client, and how long any 429 may hold them.
_DEFAULT_HOLD_SECONDS = 1.0
_LONGEST_HOLD_SECONDS = 60.0
# A 429 halves the pace, but not below a request every two seconds; each later answer raises it again by 2 %.
_SLOWDOWN = 2.0
_SLOWEST_SPACING = 2.0
_RECOVERY = 0.98
_FASTEST_LEARNED_SPACING = 0.001
# The weight of the newest gap between two requests in their moving average.
_NEWEST_SHARE = 0.1


class RateLimit:
    """Spaces the requests of one client evenly, however many of its users want to send.

    A sender calls `wait` first, sleeps as long, and calls `sent` when it sends.

    Args:
        per_second: The limit of requests per second, or None for no limit.
    """

    def __init__(self, per_second: float | None = None) -> None:
        self._spacing = 0.0
        self._learned = 0.0
        self._usual_gap: float | None = None
        self._sent_at = float("-inf")
        self._held_until = float("-inf")
        self.allow(per_second)

    def allow(self, per_second: float | None) -> None:
        """Change the limit of requests per second; None for no limit."""
        self._spacing = 1.0 / per_second if per_second else 0.0

    @property
    def is_idle(self) -> bool:
        """Whether every request may be sent at once: there is no limit, and no 429 has effect."""
        return not self._spacing and not self._learned and self._held_until == float("-inf")

    @property
    def spacing(self) -> float:
        """The current minimum of seconds between two requests."""
        return max(self._spacing, self._learned)

    def wait(self, now: float) -> float:
        """Return how many seconds the next request has to wait; 0 if it may be sent.

        Args:
            now: Seconds on a monotonic clock.
        """
        return max(0.0, self._held_until - now, self._sent_at + self.spacing - now)

    def sent(self, now: float) -> None:
        """Note that a request is sent now."""
        gap = now - self._sent_at
        if gap < float("inf"):
            usual = gap if self._usual_gap is None else self._usual_gap
            self._usual_gap = usual + _NEWEST_SHARE * (gap - usual)
        self._sent_at = now

    def learn(self, error: QwenImageError | None, sent_at: float, now: float) -> None:
        """Adapt the pace to an answer.

        Args:
            error: The error of the answer, or None for a success.
            sent_at: When the request was sent, on the clock of `wait`.
            now: The time on that clock.
        """
        if isinstance(error, QwenImageRateLimitError):
            self.refused(sent_at, now, error.retry_after)
        else:
            self.answered(now)

    def refused(self, sent_at: float, now: float, retry_after: float | None) -> None:
        """Slow down, because the API answered 429: hold every request for a while, and halve the pace.

        Args:
            sent_at: When the refused request was sent, on the clock of `wait`. One that was under way before the
                pace was last halved does not halve it again.
            now: The time on that clock.
            retry_after: The seconds that the API asks for, if it does. At most 60 have effect.
        """
        pause = min(_DEFAULT_HOLD_SECONDS if retry_after is None else retry_after, _LONGEST_HOLD_SECONDS)
        was_under_way = sent_at < self._held_until
        self._held_until = max(self._held_until, now + pause)
        if not was_under_way:
            pace = max(self.spacing, self._usual_gap or 0.0, _FASTEST_LEARNED_SPACING)
            self._learned = min(_SLOWDOWN * pace, _SLOWEST_SPACING)

    def answered(self, now: float) -> None:
        """Raise the pace a little, because the API answered with something else than a 429."""
        if self._learned and now >= self._held_until:
            self._learned *= _RECOVERY
            if self._learned <= max(self._spacing, _FASTEST_LEARNED_SPACING):
                self._learned, self._held_until = 0.0, float("-inf")
