"""A whole catalogue in one task: hundreds of images from a file of prompts, with one process and one client.

Each mapped task instance costs a process start of its own, which is what a DAG with many images mostly pays for in
CPU. A batch starts once. Use it from some dozen images on; map over prompts where each image has tasks of its own.
"""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import pendulum

# With Airflow 3 alone, write: from airflow.sdk import DAG, ObjectStoragePath, Param, task
from airflow.providers.common.compat.sdk import DAG, ObjectStoragePath, Param, task

from airflow_provider_qwenimage import QwenImageBatchOperator

# A folder that every worker reaches. In production, say, s3://aws_default@my-bucket/images.
OUTPUT_PATH = os.environ.get("QWENIMAGE_OUTPUT_PATH", "file:///tmp/qwenimage")
# Who triggers a run chooses among the files of requests in this folder, and names no path: a path may lead to any file
# that the worker can read. That holds for links too, so one that leads out of the folder is no choice.
REQUESTS = Path(__file__).resolve().parent
CHOICES = sorted(
    file.name for file in REQUESTS.glob("*requests.jsonl") if file.is_file() and file.resolve().is_relative_to(REQUESTS)
)

with DAG(
    dag_id="qwenimage_batch",
    schedule=None,
    start_date=pendulum.datetime(2024, 1, 1),
    tags=["qwenimage"],
    params={
        "requests": Param("batch_requests.jsonl", type="string", enum=CHOICES, description="The file of requests."),
        "folder": f"{OUTPUT_PATH}/catalogue",
    },
    doc_md="""
    ### Many images in one task

    `draw` reads a JSON Lines file (**5 credits for each image**; the one beside this DAG has 12), checks every row
    before the first credit is spent, draws at most 16 at once and stores them. `report` reads the manifest. Put files
    of your own beside it, with names that end in `requests.jsonl`, and choose one when you trigger the DAG.

    A run that was interrupted goes on where it stopped, and a second run finds the images of the first one: nothing is
    paid twice. The task's log and its XCom `progress` say how far it is.

    Needs the connection `qwenimage_default`.
    """,
):
    draw = QwenImageBatchOperator(
        task_id="draw",
        requests=f"{REQUESTS}/{{{{ params.requests }}}}",
        output_path="{{ params.folder }}",
        max_in_flight=16,
        # No more than this, whatever the file says.
        max_credits=100,
        # One picture that cannot be drawn is no reason to stop; the manifest tells which.
        max_failures=1,
        retries=2,
    )

    @task
    def report(result: Any) -> list[str]:
        """Stand in for what you do with the images; `result` is the dict that the batch returns."""
        lines = ObjectStoragePath(result["manifest"]).read_text(encoding="utf-8").strip().split("\n")
        rows = [json.loads(line) for line in lines]
        for row in rows:
            logging.getLogger("airflow.task").info("%s: %s %s", row["status"], row["prompt"], row.get("paths"))
        return [path for row in rows for path in row.get("paths", [])]

    report(draw.output)
