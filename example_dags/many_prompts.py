"""Many prompts at once: one mapped task instance each, limited by a pool.

The pool limits how many images of a long list are requested, and paid, at the same time. Create one and pass its name
to this DAG::

    airflow pools set --include-deferred qwenimage 4 "Images drawn at the same time"
    export QWENIMAGE_POOL=qwenimage

``--include-deferred`` is needed because these tasks wait in the triggerer: without it, a deferred task frees its slot.
Without ``QWENIMAGE_POOL`` the DAG runs in Airflow's ``default_pool``.
"""

from __future__ import annotations

import logging
import os
from datetime import timedelta
from typing import Any

# With Airflow 3 alone, write: from airflow.sdk import DAG, task
from airflow.providers.common.compat.sdk import DAG, task

from airflow_provider_qwenimage import QwenImageGenerateOperator

# A folder that every worker can write to. In production, for example s3://aws_default@my-bucket/images.
OUTPUT_PATH = os.environ.get("QWENIMAGE_OUTPUT_PATH", "file:///tmp/qwenimage")
POOL = os.environ.get("QWENIMAGE_POOL", "default_pool")

with DAG(
    dag_id="qwenimage_many_prompts",
    schedule=None,
    # Retries are safe: a retry resumes an image that is already paid for.
    default_args={"retries": 2, "retry_delay": timedelta(seconds=10)},
    tags=["qwenimage"],
    doc_md="""
    ### Many prompts, mapped

    `choose_prompts` returns a list, `draw` is mapped over it (**5 credits for each prompt**) and `list_images` gets
    all results. If one prompt fails, the others are still drawn; clear the failed task instance to try it again.
    A second run finds the images of the first run and pays nothing.

    The pool named in the environment variable `QWENIMAGE_POOL` (default: `default_pool`) limits how many images are
    drawn at the same time.

    Needs the connection `qwenimage_default`.
    """,
):

    @task
    def choose_prompts() -> list[str]:
        """Return the prompts; yours may come from a table, a file or another API."""
        return [f"A {animal} made of folded paper, studio light" for animal in ("crane", "fox", "whale", "beetle")]

    @task
    def list_images(results: Any) -> list[str]:
        """Use the images; each result is the dict that `draw` returns."""
        paths = [path for result in results for path in result["paths"]]
        for path in paths:
            logging.getLogger("airflow.task").info("Image: %s", path)
        return paths

    draw = QwenImageGenerateOperator.partial(
        task_id="draw",
        size="1024*768",
        output_path=OUTPUT_PATH,
        deferrable=True,
        pool=POOL,
    ).expand(prompt=choose_prompts())

    list_images(draw.output)
