"""Draw with one task that has many images in flight."""

from __future__ import annotations

from airflow.providers.common.compat.sdk import DAG

from airflow_provider_qwenimage import QwenImageBatchOperator
from benchmarks.settings import RETRIES, Settings

SETTINGS = Settings.of_environment()

with DAG("batch", schedule=None, default_args=RETRIES):
    QwenImageBatchOperator(
        task_id="draw",
        requests=SETTINGS.image_requests("batch"),
        output_path=str(SETTINGS.output("batch")),
        max_in_flight=SETTINGS.in_flight,
        poll_interval=SETTINGS.poll_interval,
    )
