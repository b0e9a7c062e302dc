"""Draw with one mapped operator that waits in the worker, then in the triggerer, and stores the image itself."""

from __future__ import annotations

from airflow.providers.common.compat.sdk import DAG

from airflow_provider_qwenimage import QwenImageGenerateOperator
from benchmarks.settings import RETRIES, Settings

SETTINGS = Settings.of_environment()

with DAG("later", schedule=None, default_args=RETRIES):
    QwenImageGenerateOperator.partial(
        task_id="draw",
        output_path=str(SETTINGS.output("later")),
        deferrable=True,
        defer_after=SETTINGS.defer_after,
        poll_interval=SETTINGS.poll_interval,
    ).expand_kwargs(SETTINGS.image_requests("later"))
