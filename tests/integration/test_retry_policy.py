"""A task with the retry policy, as Airflow runs it."""

from __future__ import annotations

import time
from collections import defaultdict
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import task

from airflow_provider_qwenimage import QwenImageHook, QwenImageRetryPolicy
from airflow_provider_qwenimage.exceptions import QwenImageSubmissionUnknownError
from airflow_provider_qwenimage.sandbox import Sandbox
from tests.airflows import AIRFLOW
from tests.integration.dag_runs import TestDag


@pytest.mark.skipif(AIRFLOW < (3, 3), reason="this Airflow has no retry policies")
def test_a_function_that_calls_the_api_waits_as_asked_and_does_not_pay_twice(connected_api: Sandbox) -> None:
    connected_api.configure(retry_after=2)
    connected_api.script("generate", "rate_limit", "ok", "drop_after")
    began: dict[str, list[float]] = defaultdict(list)

    def submit(name: str) -> str:
        began[name].append(time.monotonic())
        with QwenImageHook(retry_limit=0) as hook:
            return hook.generate(f"A red kite, {name}")

    arguments: dict[str, Any] = {"retry_policy": QwenImageRetryPolicy()}
    dag = TestDag()
    with dag:

        @task(**arguments)
        def limited() -> str:
            return submit("limited")

        @task(**arguments)
        def lost() -> str:
            return submit("lost")

        @task(**arguments)
        def slip() -> None:
            began["slip"].append(time.monotonic())
            raise ValueError("a slip of the function's own")

        limited() >> lost()
        slip()

    run = dag.run()
    assert run["limited"].state == "success"
    first, second = began["limited"]
    assert second - first >= 2
    # A repetition of the same try, if this Airflow has them.
    assert run["limited"].tries == (1 if AIRFLOW >= (3, 4) else 2)
    assert run["lost"].state == "failed"
    assert len(began["lost"]) == 1
    assert isinstance(run["lost"].error, QwenImageSubmissionUnknownError)
    assert connected_api.credits_charged == 10
    assert len(began["slip"]) == 3
