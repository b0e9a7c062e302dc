"""The batches of the crash test: their requests and their DAG files."""

from __future__ import annotations

import pprint
import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from airflow_provider_qwenimage.contract import RANDOM_SEED
from tests.chaos.batch_judge import Key
from tests.chaos.tasks import Task

_DAG_FILE = '''"""Written by the crash test."""

from datetime import timedelta

import pendulum
from airflow.providers.common.compat.sdk import DAG

from airflow_provider_qwenimage import QwenImageBatchOperator

with DAG({dag_id!r}, schedule=None, start_date=pendulum.datetime(2024, 1, 1)):
    QwenImageBatchOperator(
        task_id={task_id!r},
        requests={requests},
        output_path={output_path!r},
        qwenimage_conn_id={dag_id!r},
        max_in_flight={max_in_flight!r},
        poll_interval=0.5,
        timeout=600,
        retries={retries!r},
        retry_delay=timedelta(0),
    )
'''
_EQUAL_PROMPTS = 4
_EQUAL_IMAGES = 4
_SEEDS = 10
_SIZE = "768*1024"


@dataclass(frozen=True)
class BatchDag:
    """A DAG with one task that draws a batch.

    Attributes:
        dag_id: Also the name of its connection, its sandbox and its folder.
        images: How many different images it asks for; two rows ask for the same one.
    """

    dag_id: str
    images: int
    max_in_flight: int = 16
    retries: int = 80

    @property
    def task(self) -> Task:
        return Task(self.dag_id, "draw", -1)

    @cached_property
    def requests(self) -> list[dict[str, Any]]:
        """The rows: different prompts, equal prompts with random seeds, and one prompt with several seeds."""
        equal = [{"prompt": f"A pier {number}"} for number in range(_EQUAL_PROMPTS) for _ in range(_EQUAL_IMAGES)]
        seeded: list[dict[str, Any]] = [{"prompt": "A windmill", "seed": seed} for seed in range(_SEEDS)]
        alone = [{"prompt": f"A lighthouse {number}"} for number in range(self.images - len(equal) - len(seeded))]
        rows = [*equal, *seeded, dict(seeded[0]), *alone]
        # Shuffled, so that equal rows are drawn in different tries.
        random.Random(self.dag_id).shuffle(rows)
        return [row | {"size": _SIZE} for row in rows]

    @cached_property
    def wanted(self) -> Mapping[Key, int]:
        """How many images the rows ask for, by prompt and seed."""
        keys = Counter((row["prompt"], row.get("seed", RANDOM_SEED)) for row in self.requests)
        return {(prompt, seed): 1 if seed != RANDOM_SEED else rows for (prompt, seed), rows in keys.items()}

    def folder(self, images: Path) -> Path:
        """Return its folder inside the folder for all images of the crash test."""
        return images / self.dag_id

    def file(self, output_path: str) -> str:
        """Return the text of its DAG file."""
        return _DAG_FILE.format(
            dag_id=self.dag_id,
            task_id=self.task.task_id,
            requests=pprint.pformat(self.requests, indent=4),
            output_path=f"{output_path}/{self.dag_id}",
            max_in_flight=self.max_in_flight,
            retries=self.retries,
        )
