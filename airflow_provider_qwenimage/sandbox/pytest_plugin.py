"""A pytest fixture that gives each test its own sandbox and points Airflow's default connection at it.

It is registered when the package is installed, so a test only has to name the fixture. A complete example:

    from airflow_provider_qwenimage.hooks import QwenImageHook


    def test_server_errors_do_not_cost_a_second_image(qwenimage_sandbox):
        qwenimage_sandbox.script("status", ("server_error", 2), "rate_limit")
        hook = QwenImageHook(retry_delay=0.01)

        task_id = hook.generate("A lighthouse in a storm", seed=7)
        snapshot = hook.wait_for_completion(task_id, poll_interval=0.05, timeout=30)

        assert snapshot.status == "SUCCESS"
        assert [submission.task_id for submission in qwenimage_sandbox.submissions] == [task_id]
        assert qwenimage_sandbox.credits_charged == 5

A whole DAG is tested the same way, with ``dag.test()``: its operators, sensors and triggers reach the sandbox through
the connection ``qwenimage_default``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from airflow_provider_qwenimage.sandbox import Sandbox


@pytest.fixture
def qwenimage_sandbox(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    """A running sandbox that takes 0.1 seconds per image; ``AIRFLOW_CONN_QWENIMAGE_DEFAULT`` points at it."""
    # Imported here, because pytest imports this module in every run, even if no test uses a sandbox.
    from airflow_provider_qwenimage.sandbox import Sandbox

    with Sandbox(seconds_per_image=0.1) as sandbox:
        monkeypatch.setenv("AIRFLOW_CONN_QWENIMAGE_DEFAULT", sandbox.connection_json)
        yield sandbox
