"""From a catalogue to a published set of images: requests from a sweep, a contact sheet, a dataset, and a second DAG.

A sweep has a request for each combination of prompts and seeds, so that somebody can choose the best image of each
product. The batch writes into each file that a generative model made it. When it has succeeded, the second DAG runs by
itself: it checks that the manifest is the one that the batch stored, and reads the captions of the images.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from datetime import timedelta
from typing import Any

import pendulum

# With Airflow 3 alone, write: from airflow.sdk import DAG, Asset, ObjectStoragePath, task
from airflow.providers.common.compat.sdk import DAG, Asset, ObjectStoragePath, task

from airflow_provider_qwenimage import QwenImageBatchOperator, sweep

# A folder that every worker can write to. In production, for example s3://aws_default@my-bucket/images.
OUTPUT_PATH = os.environ.get("QWENIMAGE_OUTPUT_PATH", "file:///tmp/qwenimage")
CATALOGUE = Asset("qwenimage_published_catalogue")
# Braces hold alternatives: this is three prompts.
PROMPTS = "A {stoneware mug|wooden bowl|paper lamp} on a linen cloth, soft daylight"
DEFAULTS = {"retries": 2, "retry_delay": timedelta(seconds=10)}

with DAG(
    dag_id="qwenimage_publish",
    schedule=None,
    # Retries are safe: a retry resumes the images that are already paid for, then submits the rest.
    default_args=DEFAULTS,
    tags=["qwenimage"],
    doc_md="""
    ### Draw a catalogue and publish it

    `list_requests` returns a request for each product and seed, `draw` draws them in one task (**5 credits for each of
    the 6 images**). Besides the images it stores `contact-sheet.jpg`, which shows all of them in one picture, and
    `metadata.jsonl`, with which the library `datasets` loads them. The DAG `qwenimage_published` runs by itself when
    `draw` has succeeded.

    A second run finds the images of the first run and pays nothing.

    Needs the connection `qwenimage_default`.
    """,
):

    @task
    def list_requests() -> list[dict[str, Any]]:
        """Return the requests: each product with the same two seeds, and its caption in the dataset."""
        # For prompts from a table or another API, pass a list of them.
        rows = sweep(PROMPTS, size="1024*768", seed=range(2))
        return [row | {"text": row["prompt"].partition(",")[0]} for row in rows]

    draw = QwenImageBatchOperator(
        task_id="draw",
        requests=list_requests(),
        output_path=f"{OUTPUT_PATH}/published",
        max_credits=50,
        # The default. "full" also writes the prompt, the seed, the DAG and the run into the files that you publish.
        provenance="mark",
        contact_sheet=True,
        dataset="imagefolder",
        outlets=[CATALOGUE],
    )

with DAG(
    dag_id="qwenimage_published",
    schedule=[CATALOGUE],
    start_date=pendulum.datetime(2024, 1, 1),
    default_args=DEFAULTS,
    tags=["qwenimage"],
    doc_md="""
    ### Use what was published

    Airflow starts this DAG after each successful run of `qwenimage_publish`. `release` reads the event of the asset,
    checks the manifest and returns the names and captions of the images.

    It draws nothing itself (**0 credits**); the connection `qwenimage_default` is needed by the other DAG only.
    """,
):

    @task(inlets=[CATALOGUE])
    def release(inlet_events: Any = None) -> dict[str, str]:
        """Use the images: upload them, train with them, ask somebody to choose; this returns their captions."""
        facts = inlet_events[CATALOGUE][-1].extra
        # Another batch may have replaced it in the meantime.
        manifest = ObjectStoragePath(facts["manifest"]).read_bytes()
        if hashlib.sha256(manifest).hexdigest() != facts["manifest_sha256"]:
            raise RuntimeError(f"{facts['manifest']} has changed since the batch stored it.")
        logging.getLogger("airflow.task").info(
            "%s images for %s rows in %s, %s credits",
            *map(facts.get, ("images", "rows", "folder", "consumed_credits")),
        )
        # As bytes, which have no other ends of lines: a caption may have some.
        lines = ObjectStoragePath(facts["metadata"]).read_bytes().splitlines()
        return {record["file_name"]: record["text"] for record in map(json.loads, lines)}

    released = release()
