"""Many prompts at once, one mapped task instance each, held back by a pool.

A pool keeps a long list from flooding the API (and the account). Make one, and name it to this DAG::

    airflow pools set --include-deferred qwenimage 4 "Images drawn at the same time"
    export QWENIMAGE_POOL=qwenimage

``--include-deferred`` matters: these tasks wait in the triggerer, and without it a waiting task gives its slot to the
next one. Without ``QWENIMAGE_POOL`` the DAG runs in Airflow's own ``default_pool``.
"""

from __future__ import annotations

import logging
import os
from typing import Any

# With Airflow 3 alone, write: from airflow.sdk import DAG, task
from airflow.providers.common.compat.sdk import DAG, task

from airflow_provider_qwenimage import QwenImageGenerateOperator

# A folder that every worker reaches. In production, say, s3://aws_default@my-bucket/images.
OUTPUT_PATH = os.environ.get("QWENIMAGE_OUTPUT_PATH", "file:///tmp/qwenimage")
POOL = os.environ.get("QWENIMAGE_POOL", "default_pool")

with DAG(
    dag_id="qwenimage_many_prompts",
    schedule=None,
    tags=["qwenimage"],
    doc_md="""
    ### Many prompts, mapped

    `choose_prompts` returns a list, `draw` is mapped over it (**5 credits for each prompt**) and `list_images` gets
    all results. If one prompt fails, the others still have their images; clear the one that failed to try it again.
    A second run finds the images of the first one and pays nothing.

    How many are drawn at the same time is decided by the pool in the environment variable `QWENIMAGE_POOL`
    (default: `default_pool`).

    Needs the connection `qwenimage_default`.
    """,
):

    @task
    def choose_prompts() -> list[str]:
        """Stand in for where your prompts come from: a table, a file, another API."""
        return [f"A {animal} made of folded paper, studio light" for animal in ("crane", "fox", "whale", "beetle")]

    @task
    def list_images(results: Any) -> list[str]:
        """Stand in for what you do with the images; each result is the dict that `draw` returns."""
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
