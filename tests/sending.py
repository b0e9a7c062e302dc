"""Record when clients send requests, because the times at which they arrive vary on a busy machine."""

from __future__ import annotations

import pytest

from airflow_provider_qwenimage.rules.rate_limit import RateLimit


def note_sending(monkeypatch: pytest.MonkeyPatch) -> list[tuple[RateLimit, float]]:
    """Return a list that grows: the rate limit of each request, and the monotonic time at which it was sent."""
    sent, noted = RateLimit.sent, list[tuple[RateLimit, float]]()

    def note(limit: RateLimit, now: float) -> None:
        noted.append((limit, now))
        sent(limit, now)

    monkeypatch.setattr(RateLimit, "sent", note)
    return noted
