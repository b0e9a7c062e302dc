"""Prompts from Python: functions return what to draw, with ``@task.qwenimage`` and ``@task.qwenimage_batch``.

What a function returns is used as it is, never as a template, so it may come from a table, a file or another API.
The decorators take all other arguments of the operators. To have an editor and a type checker know these arguments,
import the same decorators by name::

    from airflow_provider_qwenimage.decorators import qwenimage_batch_task, qwenimage_task
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

# With Airflow 3 alone, write: from airflow.sdk import DAG, task
from airflow.providers.common.compat.sdk import DAG, task

# A folder that every worker can write to. In production, for example s3://aws_default@my-bucket/images.
OUTPUT_PATH = os.environ.get("QWENIMAGE_OUTPUT_PATH", "file:///tmp/qwenimage")
MENU = {
    "soup": "Tomato soup with basil in a blue bowl",
    "pasta": "Tagliatelle with mushrooms, seen from above",
    "cake": "A slice of lemon cake on a wooden board",
}

with DAG(
    dag_id="qwenimage_decorated",
    schedule=None,
    # Retries are safe: a retry calls the function again, and resumes an image that is already paid for.
    default_args={"retries": 2, "retry_delay": timedelta(seconds=10)},
    tags=["qwenimage"],
    doc_md="""
    ### Functions that return what to draw

    `draw_season` returns one request and is mapped over two cities (**5 credits for each**), `draw_menu` yields one
    request for each dish, and draws all of them in one task (**5 credits for each of the 3 images**). `list_images`
    uses the results.

    A second run finds the images of the first run and pays nothing.

    Needs the connection `qwenimage_default`.
    """,
):

    @task.qwenimage(size="1536*1024", output_path=OUTPUT_PATH, deferrable=True)
    def draw_season(city: str, season: str) -> dict[str, Any]:
        """Return a request: a prompt, or a dict with the fields of a request and image_name."""
        return {"prompt": f"A street in {city} in {season}, watercolour", "image_name": f"{city}, {season}"}

    @task.qwenimage_batch(output_path=f"{OUTPUT_PATH}/menu", max_credits=50)
    def draw_menu() -> Iterator[dict[str, Any]]:
        """Yield the requests: prompts, or dicts with the fields of a request and name."""
        for name, dish in MENU.items():
            yield {"prompt": f"{dish}, soft daylight", "size": "1024*768", "name": name}

    @task
    def list_images(seasons: Any, menu: Any) -> list[str]:
        """Use the images; the results are the dicts that the operators return."""
        paths = [path for season in seasons for path in season["paths"]]
        for path in paths:
            logging.getLogger("airflow.task").info("Image: %s", path)
        logging.getLogger("airflow.task").info("%d dishes, listed in %s", menu["images"], menu["manifest"])
        return paths

    list_images(draw_season.partial(season="winter").expand(city=["Lisbon", "Oslo"]), draw_menu())
