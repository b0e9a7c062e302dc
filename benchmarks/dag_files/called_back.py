"""Wait in the triggerer for images that take different times: the API calls back in one DAG, the other one polls."""

from __future__ import annotations

import json
import os
from typing import Any

from airflow.providers.common.compat.sdk import DAG

from airflow_provider_qwenimage import QwenImageGenerateOperator
from benchmarks.settings import RETRIES

# A JSON object: the requests of each way, and the poll interval.
PLAN: dict[str, Any] = json.loads(os.environ["QWENIMAGE_BENCHMARK_CALLBACKS"])

for way, requests in PLAN["requests"].items():
    with DAG(way, schedule=None, default_args=RETRIES):
        QwenImageGenerateOperator.partial(
            task_id="draw", wait_for_completion=True, deferrable=True, poll_interval=PLAN["poll_interval"]
        ).expand_kwargs(requests)
