"""The Test button of Airflow's connection page, in a real API server: a slow service holds nobody up."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import requests

from airflow_provider_qwenimage import hooks
from airflow_provider_qwenimage.client import exchanges
from tests.events import wait_until
from tests.gallery.airflow_server import Server, token
from tests.raw_server import RawServer


def test_many_connection_tests_of_a_service_that_drips_end_and_others_are_answered_meanwhile(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    ahead = [0.0]
    # The calls' time: it stands still, as far as they see, until all others were answered.
    monkeypatch.setattr(exchanges, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + ahead[0]))
    monkeypatch.setattr(hooks, "TEST_SECONDS", 200.0)
    monkeypatch.setenv("AIRFLOW__CORE__TEST_CONNECTION", "Enabled")
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)

    with RawServer(b"") as slow, ThreadPoolExecutor(45) as pool:
        slow.answer = slow.drip(b"HTTP/1.1 200 OK\r\n", itertools.repeat(b"X: y\r\n"), 0.1)
        tests = [pool.submit(ask_for_a_test, server, slow.url) for _ in range(45)]
        wait_until(lambda: len(slow.requests) == 8, "as many tests as may run at once")
        wait_until(lambda: sum(test.done() for test in tests) == 37, "the answers to the others")
        assert server.get("/api/v2/monitor/health").status_code == 200
        assert server.get("/api/v2/dags").status_code == 200
        ahead[0] = 200.0
        outcomes = [test.result() for test in tests]
    assert [outcome["status"] for outcome in outcomes] == [False] * 45
    stories = Counter(outcome["message"].partition(": ")[2].partition(";")[0] for outcome in outcomes)
    assert stories == {"no complete response within 200 s": 8, "test again in 10 s.": 37}


def ask_for_a_test(server: Server, host: str) -> dict[str, Any]:
    connection = {
        "connection_id": "slow",
        "conn_type": "qwenimage",
        "host": host,
        "password": "sk-test-0123456789",
        "extra": '{"timeout_seconds": 3600}',
    }
    headers = {"Authorization": f"Bearer {token('admin', role='admin')}"}
    response = requests.post(f"{server.url}/api/v2/connections/test", json=connection, headers=headers, timeout=250)
    assert response.status_code == 200, response.text
    outcome: dict[str, Any] = response.json()
    return outcome
