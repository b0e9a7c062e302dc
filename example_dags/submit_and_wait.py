"""The classic pair: one task submits, a sensor waits, and a third task uses the image's URL.

Each step has its own log, state and retries. The sensor waits in the triggerer and takes no worker slot. If one task is
enough, see prompt_to_file.py: it starts fewer processes and stores the image.
"""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Any

# With Airflow 3 alone, write: from airflow.sdk import DAG, task
from airflow.providers.common.compat.sdk import DAG, task

from airflow_provider_qwenimage import QwenImageGenerateOperator, QwenImageStatusSensor

with DAG(
    dag_id="qwenimage_submit_and_wait",
    schedule=None,
    # Retries are safe: a retry of `submit` returns the image task that is already paid for (below Airflow 3.3, set its
    # retries to 0), and the sensor only reads.
    default_args={"retries": 2, "retry_delay": timedelta(seconds=10)},
    tags=["qwenimage"],
    doc_md="""
    ### Submit, wait, use

    `submit` sends the prompt (**5 credits**) and returns the id of the image task. `wait` is a
    `QwenImageStatusSensor`: it returns the list of image URLs, or fails with the API's reason. `use` is your code.

    Image URLs may expire soon: use them in the same run, or store the image as `prompt_to_file.py` does.

    Needs the connection `qwenimage_default`.
    """,
):
    submit = QwenImageGenerateOperator(
        task_id="submit",
        prompt="A lighthouse on a cliff at dusk, oil painting",
        size="1536*1024",
    )

    wait = QwenImageStatusSensor(
        task_id="wait",
        image_task_id=submit.output,
        timeout=30 * 60,
    )

    @task
    def use(image_urls: Any) -> int:
        """Use the list of URLs: for a post, a page or a review queue."""
        for url in image_urls:
            logging.getLogger("airflow.task").info("Image: %s", url)
        return len(image_urls)

    use(wait.output)
