"""Random faults are as frequent as their shares, keep to their routes, and repeat with the same seed."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING

import pytest
import requests

from airflow_provider_qwenimage.sandbox.faults import FaultPlan
from airflow_provider_qwenimage.sandbox.settings import REQUEST_SHARES, SandboxSettings

if TYPE_CHECKING:
    from tests.sandbox.conftest import Api


def drawn(settings: SandboxSettings, route: str = "image", count: int = 4000) -> list[str]:
    plan = FaultPlan(settings)
    return [plan.next_behaviour(route, settings) for _ in range(count)]


@pytest.mark.parametrize(("share", "behaviour"), REQUEST_SHARES.items())
def test_a_fault_is_as_frequent_as_its_share(share: str, behaviour: str) -> None:
    counts = Counter(drawn(SandboxSettings(fault_seed=1).changed({share: 0.3})))
    assert set(counts) == {"ok", behaviour}
    assert counts[behaviour] / 4000 == pytest.approx(0.3, abs=0.03)


def test_each_of_several_faults_keeps_its_own_share() -> None:
    counts = Counter(drawn(SandboxSettings(fault_seed=1, drop_share=0.2, hang_share=0.3, server_error_share=0.4)))
    for behaviour, share in {"drop": 0.2, "hang": 0.3, "server_error": 0.4, "ok": 0.1}.items():
        assert counts[behaviour] / 4000 == pytest.approx(share, abs=0.03)


def test_a_share_of_one_affects_every_request() -> None:
    assert set(drawn(SandboxSettings(drop_share=1))) == {"drop"}


def test_the_same_fault_seed_gives_the_same_faults() -> None:
    settings = SandboxSettings(fault_seed=5, drop_share=0.5)
    assert drawn(settings, count=100) == drawn(settings, count=100)
    assert drawn(settings, count=100) != drawn(settings.changed({"fault_seed": 6}), count=100)


def test_only_images_are_truncated() -> None:
    settings = SandboxSettings(truncate_share=0.5, truncate_with_length_share=0.5)
    assert set(drawn(settings, "status")) == {"ok"}
    assert set(drawn(settings, "image")) == {"truncate", "truncate_with_length"}


def test_faults_apply_to_their_fault_paths_only() -> None:
    settings = SandboxSettings(server_error_share=1, fault_paths=("status",))
    assert {route: drawn(settings, route, 1)[0] for route in ("generate", "status", "image")} == {
        "generate": "ok",
        "status": "server_error",
        "image": "ok",
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"failure_share": 1}, "could not be drawn"), ({"policy_share": 1}, "Content policy violation detected")],
)
def test_tasks_fail_as_often_as_their_shares(api: Api, settings: dict[str, float], message: str) -> None:
    api.sandbox.configure(**settings)
    data = api.finish(api.submit())
    assert data["status"] == "FAILED"
    assert message in data["error_message"]


def test_requests_over_http_have_the_random_faults(api: Api) -> None:
    api.sandbox.configure(rate_limit_share=1, retry_after=7)
    answer = api.generate()
    assert (answer.status_code, answer.headers["Retry-After"]) == (429, "7")
    api.sandbox.configure(rate_limit_share=0, drop_share=1)
    with pytest.raises(requests.ConnectionError):
        api.generate()
    api.sandbox.configure(drop_share=0)
    assert api.generate().status_code == 200


def test_latency_delays_every_answer(api: Api) -> None:
    api.sandbox.configure(latency_seconds=0.15)
    started = time.monotonic()
    api.generate()
    assert time.monotonic() - started >= 0.15
