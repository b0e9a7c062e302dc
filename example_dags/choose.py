"""Four seeds, one chosen: a person picks the best of four images, and the DAG goes on with that one.

The task `choose` waits without a worker until somebody answers, on the page *Required Actions* of the Airflow UI or in
the tab *Images* of the task. Nobody can be asked on Airflow below 3.1: there this DAG goes on with all four.
"""

from __future__ import annotations

import logging
import os
from datetime import timedelta
from typing import Any

import pendulum
from airflow import __version__ as airflow_version

# With Airflow 3 alone, write: from airflow.sdk import DAG, task
from airflow.providers.common.compat.sdk import DAG, task

from airflow_provider_qwenimage import QwenImageChooseOperator, QwenImageGenerateOperator

# A folder that every worker can write to. In production, for example s3://aws_default@my-bucket/images.
OUTPUT_PATH = os.environ.get("QWENIMAGE_OUTPUT_PATH", "file:///tmp/qwenimage")
CAN_ASK = tuple(int(part) for part in airflow_version.split(".")[:2]) >= (3, 1)

with DAG(
    dag_id="qwenimage_choose",
    schedule=None,
    start_date=pendulum.datetime(2024, 1, 1),
    # Retries are safe: a retry resumes an image that is already paid for.
    default_args={"retries": 2, "retry_delay": timedelta(seconds=10)},
    tags=["qwenimage"],
    doc_md="""
    ### Four seeds, one chosen

    `draw` draws one prompt with four seeds (**5 credits for each of the 4 images**), `choose` asks a person for the
    best one (0 credits), and `publish` gets it. To answer, open *Required Actions*, or the tab *Images* of the task
    `choose`. If nobody answers within twelve hours, the first image is chosen.

    To ask again, clear `choose`. A second run finds the images of the first run and pays nothing.

    Needs the connection `qwenimage_default`.
    """,
):
    draw = QwenImageGenerateOperator.partial(
        task_id="draw",
        prompt="A lighthouse on a cliff at dawn, watercolour",
        size="1024*768",
        output_path=f"{OUTPUT_PATH}/choose",
    ).expand(seed=[1, 2, 3, 4])

    @task
    def publish(chosen: Any) -> list[str]:
        """Use the chosen images; each is a dict as `draw` returns it."""
        paths = [path for each in chosen for path in each["paths"]]
        for path in paths:
            logging.getLogger("airflow.task").info("Chosen: %s", path)
        return paths

    if CAN_ASK:
        choose = QwenImageChooseOperator(
            task_id="choose",
            images=draw.output,
            subject="Which lighthouse goes on the cover?",
            defaults=1,
            response_timeout=timedelta(hours=12),
        )
        publish(choose.output)
    else:
        publish(draw.output)
