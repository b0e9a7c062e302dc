"""Draw with three tasks: the provider's operator submits, its sensor waits in the triggerer, and a task saves."""

from __future__ import annotations

from typing import Any

from airflow.providers.common.compat.sdk import DAG, task, task_group

from airflow_provider_qwenimage import QwenImageGenerateOperator, QwenImageStatusSensor
from benchmarks.settings import RETRIES, Settings, save_image

SETTINGS = Settings.of_environment()

with DAG("pair", schedule=None, default_args=RETRIES):

    @task
    def save(image_urls: list[str]) -> list[str]:
        """Store the image."""
        return save_image(image_urls, SETTINGS.output("pair"))

    @task_group
    def draw(prompt: str, size: str, seed: int) -> None:
        """Draw one image."""
        # Any, because the tasks are called with outputs instead of values.
        submit: Any = QwenImageGenerateOperator(task_id="submit", prompt=prompt, size=size, seed=seed)
        wait: Any = QwenImageStatusSensor(
            task_id="wait", image_task_id=submit.output, poke_interval=SETTINGS.poll_interval, timeout=1800
        )
        save(wait.output)

    draw.expand_kwargs(SETTINGS.image_requests("pair"))
