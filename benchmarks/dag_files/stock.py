"""Draw with three tasks of Airflow's HTTP provider: an operator submits, a sensor reschedules itself, a task saves."""

from __future__ import annotations

import json
from typing import Any

from airflow.providers.common.compat.sdk import DAG, PokeReturnValue, task, task_group
from airflow.providers.http.operators.http import HttpOperator
from airflow.providers.http.sensors.http import HttpSensor

from benchmarks.settings import RETRIES, Settings, save_image

SETTINGS = Settings.of_environment()


def _read_task_id(response: Any) -> str:
    return str(response.json()["data"]["task_id"])


def _look_for_images(response: Any) -> PokeReturnValue:
    data = response.json()["data"]
    if data["status"] == "FAILED":
        raise RuntimeError(f"The image failed: {data['error_message']}")
    return PokeReturnValue(is_done=data["status"] == "SUCCESS", xcom_value=data["response"])


with DAG("stock", schedule=None, default_args=RETRIES):

    @task
    def save(image_urls: list[str]) -> list[str]:
        """Store the image."""
        return save_image(image_urls, SETTINGS.output("stock"))

    @task_group
    def draw(body: str) -> None:
        """Draw one image."""
        submit = HttpOperator(
            task_id="submit",
            http_conn_id="qwenimage_http",
            endpoint="api/generate",
            headers={"Content-Type": "application/json"},
            data=body,
            response_filter=_read_task_id,
        )
        # Any, because the tasks are called with outputs instead of values.
        wait: Any = HttpSensor(
            task_id="wait",
            http_conn_id="qwenimage_http",
            endpoint="api/status",
            request_params={"task_id": submit.output},
            response_check=_look_for_images,
            mode="reschedule",
            poke_interval=SETTINGS.poll_interval,
            timeout=1800,
        )
        save(wait.output)

    draw.expand(body=[json.dumps(request) for request in SETTINGS.image_requests("stock")])
