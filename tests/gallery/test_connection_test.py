"""The Test button of Airflow's connection page, in a real API server: a slow service holds nobody up."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests

from tests.events import wait_until
from tests.gallery.airflow_server import Server, token
from tests.raw_server import RawServer


def test_many_connection_tests_of_a_service_that_drips_end_and_others_are_answered_meanwhile(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__CORE__TEST_CONNECTION", "Enabled")
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)

    with RawServer(b"") as slow, ThreadPoolExecutor(45) as pool:
        slow.answer = slow.drip(b"HTTP/1.1 200 OK\r\n", itertools.repeat(b"X: y\r\n"), 0.1)
        # A call may take twice as long.
        tests = [pool.submit(ask_for_a_test, server, slow.url, 1.0) for _ in range(45)]
        wait_until(lambda: slow.requests, "the first test")
        assert server.get("/api/v2/monitor/health").status_code == 200
        assert server.get("/api/v2/dags").status_code == 200
        outcomes = [test.result() for test in tests]
    assert [outcome["status"] for outcome in outcomes] == [False] * 45
    stories = {outcome["message"].partition(": ")[2].partition(";")[0] for outcome in outcomes}
    assert stories <= {"no whole answer came within 2 s", "test again in 10 s."}
    assert "no whole answer came within 2 s" in stories


def ask_for_a_test(server: Server, host: str, timeout_seconds: float) -> dict[str, Any]:
    connection = {
        "connection_id": "slow",
        "conn_type": "qwenimage",
        "host": host,
        "password": "sk-test-0123456789",
        "extra": f'{{"timeout_seconds": {timeout_seconds}}}',
    }
    headers = {"Authorization": f"Bearer {token('admin', role='admin')}"}
    response = requests.post(f"{server.url}/api/v2/connections/test", json=connection, headers=headers, timeout=100)
    assert response.status_code == 200, response.text
    outcome: dict[str, Any] = response.json()
    return outcome
