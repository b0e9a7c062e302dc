"""No event resumes a task while Airflow may still take its deferral for a crash."""

import asyncio
import os
import threading

import pytest

from airflow_provider_qwenimage import settling
from airflow_provider_qwenimage.rules import polling


@pytest.mark.parametrize(("load", "seconds"), [(0.0, 8.0), (1.0, 8.0), (2.5, 12.5), (10.0, 35.0), (1e6, 35.0)])
def test_settling_takes_longer_if_more_processes_share_a_core(load: float, seconds: float) -> None:
    assert polling.settling_seconds(5.0, load) == seconds


def test_settling_takes_longer_on_a_loaded_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL", "0")
    monkeypatch.setattr(polling, "_SCHEDULER_SECONDS", 0.1)
    monkeypatch.setattr(settling, "_STEP_SECONDS", 0.05)
    cores = os.cpu_count() or 1
    # The highest load counts, even after it has dropped.
    loads = iter([4.0, 1.0])
    monkeypatch.setattr(os, "getloadavg", lambda: (next(loads, 1.0) * cores, 0.0, 0.0))
    slept: list[float] = []
    sleep = asyncio.sleep
    thread = threading.get_ident()

    async def note(seconds: float) -> None:
        # A server of other tests may run in a thread of this process.
        if threading.get_ident() == thread:
            slept.append(seconds)
        await sleep(seconds)

    monkeypatch.setattr(asyncio, "sleep", note)
    asyncio.run(settling.settle(0.15))
    assert sum(slept) == pytest.approx(0.25)
    # A wait that already took longer is not extended.
    slept.clear()
    asyncio.run(settling.settle(0.4))
    assert slept == []


def test_a_machine_that_does_not_report_its_load_counts_as_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise OSError("Load averages are unobtainable")

    monkeypatch.setenv("AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL", "0")
    monkeypatch.setattr(polling, "_SCHEDULER_SECONDS", 0.01)
    monkeypatch.setattr(os, "getloadavg", refuse)
    asyncio.run(settling.settle(0.0))
