"""A catalogue in one task: hundreds of images from a file of prompts, with one process and one client.

Mapped tasks start one or two processes per image, which is most of the CPU that a DAG with many images uses. A batch
starts one process in all. Use it for more than some dozen images; map over prompts if each image has further tasks.
"""

from __future__ import annotations

import json
import logging
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import pendulum

# With Airflow 3 alone, write: from airflow.sdk import DAG, AssetAlias, ObjectStoragePath, Param, task
from airflow.providers.common.compat.sdk import DAG, AssetAlias, ObjectStoragePath, Param, task

from airflow_provider_qwenimage import QwenImageBatchOperator

# A folder that every worker can write to. In production, for example s3://aws_default@my-bucket/images.
OUTPUT_PATH = os.environ.get("QWENIMAGE_OUTPUT_PATH", "file:///tmp/qwenimage")
# Whoever triggers a run chooses one of the files of requests in this folder and cannot enter a path, which could lead
# to any file that the worker can read. Links that lead out of the folder are left out for the same reason.
REQUESTS = Path(__file__).resolve().parent
CHOICES = sorted(
    file.name for file in REQUESTS.glob("*requests.jsonl") if file.is_file() and file.resolve().is_relative_to(REQUESTS)
)

with DAG(
    dag_id="qwenimage_batch",
    schedule=None,
    start_date=pendulum.datetime(2024, 1, 1),
    # Retries are safe: a retry resumes the images that are already paid for, then submits the rest.
    default_args={"retries": 2, "retry_delay": timedelta(seconds=10)},
    tags=["qwenimage"],
    params={
        "requests": Param("batch_requests.jsonl", type="string", enum=CHOICES, description="The file of requests."),
        "folder": f"{OUTPUT_PATH}/catalogue",
    },
    doc_md="""
    ### Many images in one task

    `draw` reads a JSON Lines file (**5 credits for each image**; the file beside this DAG has 12), checks every row
    before the first credit is spent, draws at most 16 images at once and stores them. `report` reads the manifest. To
    use your own requests, put a file beside this DAG, with a name that ends in `requests.jsonl`, and choose it when you
    trigger the DAG. The DAG `qwenimage_on_new_images` runs by itself when `draw` has succeeded.

    An interrupted run continues where it stopped, and a second run finds the images of the first run: no image is paid
    twice. The task's log and its XCom `progress` show the progress.

    Needs the connection `qwenimage_default`.
    """,
):
    draw = QwenImageBatchOperator(
        task_id="draw",
        requests=f"{REQUESTS}/{{{{ params.requests }}}}",
        output_path="{{ params.folder }}",
        max_in_flight=16,
        # The task spends at most this, however many requests the file has.
        max_credits=100,
        # The task succeeds even if one image fails; the manifest names it.
        max_failures=1,
        # The folder becomes an asset of this alias, on which on_new_images.py is scheduled.
        outlets=[AssetAlias("qwenimage_new_images")],
    )

    @task
    def report(result: Any) -> list[str]:
        """Use the images; `result` is the dict that the batch returns."""
        lines = ObjectStoragePath(result["manifest"]).read_text(encoding="utf-8").strip().split("\n")
        rows = [json.loads(line) for line in lines]
        for row in rows:
            logging.getLogger("airflow.task").info("%s: %s %s", row["status"], row["prompt"], row.get("paths"))
        return [path for row in rows for path in row.get("paths", [])]

    report(draw.output)
