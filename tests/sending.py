"""Notes when clients send: on a busy machine the requests arrive closer together, or further apart, than that."""

from __future__ import annotations

import pytest

from airflow_provider_qwenimage.rules.rate_limit import RateLimit


def note_sending(monkeypatch: pytest.MonkeyPatch) -> list[tuple[RateLimit, float]]:
    """Return a list that grows: whose pace a request was sent at, and when, on the clock that never goes back."""
    sent, noted = RateLimit.sent, list[tuple[RateLimit, float]]()

    def note(limit: RateLimit, now: float) -> None:
        noted.append((limit, now))
        sent(limit, now)

    monkeypatch.setattr(RateLimit, "sent", note)
    return noted
