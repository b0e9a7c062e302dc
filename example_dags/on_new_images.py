"""A DAG that runs by itself whenever new images are stored: it is scheduled on an asset that another DAG updates.

The batch of batch.py has an asset alias among its outlets. When it succeeds, it adds the folder of its images to that
alias, with the facts about them, and Airflow starts this DAG.
"""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Any

import pendulum

# With Airflow 3 alone, write: from airflow.sdk import DAG, AssetAlias, task
from airflow.providers.common.compat.sdk import DAG, AssetAlias, task

# The alias of batch.py: whichever folder a run has chosen.
NEW_IMAGES = AssetAlias("qwenimage_new_images")

with DAG(
    dag_id="qwenimage_on_new_images",
    schedule=[NEW_IMAGES],
    start_date=pendulum.datetime(2024, 1, 1),
    default_args={"retries": 2, "retry_delay": timedelta(seconds=10)},
    tags=["qwenimage"],
    doc_md="""
    ### Run when new images are stored

    Airflow starts this DAG after each successful run of `qwenimage_batch`. `use` reads the latest event of the asset
    alias `qwenimage_new_images`: the manifest, and how many images there are and what they cost.

    It draws nothing itself (**0 credits**); the connection `qwenimage_default` is needed by the batch only.
    """,
):

    @task(inlets=[NEW_IMAGES])
    def use(inlet_events: Any = None) -> str:
        """Use the images: publish them, fill a search index, ask someone to review them."""
        facts = inlet_events[NEW_IMAGES][-1].extra
        logging.getLogger("airflow.task").info(
            "%s images in %s, %s failed, %s credits",
            *map(facts.get, ("images", "folder", "failed", "consumed_credits")),
        )
        return str(facts["manifest"])

    use()
