"""The workload of the cluster: images to draw, and waits for images that another program submitted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import requests

DRAW, DRAW_TOO, SENSE = "cluster_draw", "cluster_draw_too", "cluster_sense"
DRAWING = (DRAW, DRAW_TOO)
# The connection that every task uses: the operators' default.
CONN_ID = "qwenimage_default"
TIMEOUT_SECONDS = 150.0

_DRAW_FILE = '''\
"""Draws images, one mapped task instance each."""

from airflow.sdk import DAG

from airflow_provider_qwenimage import QwenImageGenerateOperator

with DAG({dag_id!r}, schedule=None, max_active_tasks=64):
    QwenImageGenerateOperator.partial(
        task_id="draw",
        seed=7,
        size="1024*768",
        output_path={folder!r},
        deferrable=True,
        timeout=1200,
        retries=30,
        retry_delay=3,
    ).expand(prompt=[f"Lantern {{number}} of a street festival" for number in range({number})])
'''
_SENSE_FILE = '''\
"""Waits for image tasks: some that end, some that take longer than the wait."""

from airflow.sdk import DAG, task

from airflow_provider_qwenimage import QwenImageStatusSensor

with DAG({dag_id!r}, schedule=None, max_active_tasks=64):

    @task(retries=30, retry_delay=3)
    def ids(name, params=None):
        return params[name]

    wait = dict(deferrable=True, retries=30, retry_delay=3)
    QwenImageStatusSensor.partial(task_id="wait", timeout=1200, **wait).expand(
        image_task_id=ids.override(task_id="all_ids")("waits")
    )
    QwenImageStatusSensor.partial(task_id="wait_too_long", timeout={timeout}, **wait).expand(
        image_task_id=ids.override(task_id="slow_ids")("slow")
    )
'''


@dataclass(frozen=True)
class Workload:
    """The size of the workload.

    Attributes:
        images: Images that mapped tasks draw.
        shared: How many of them a second DAG draws into the same folder, at the same time.
        waits: Sensors whose image task ends in time.
        too_slow: Sensors whose image task takes longer than their timeout.
    """

    images: int
    shared: int
    waits: int
    too_slow: int

    @property
    def tasks(self) -> int:
        """The number of task instances, without those that return the ids."""
        return self.images + self.shared + self.waits + self.too_slow

    def write_dags(self, folder: Path, output_path: str) -> None:
        """Write the DAG files into a folder."""
        texts = {
            DRAW: _DRAW_FILE.format(dag_id=DRAW, number=self.images, folder=output_path),
            DRAW_TOO: _DRAW_FILE.format(dag_id=DRAW_TOO, number=self.shared, folder=output_path),
            SENSE: _SENSE_FILE.format(dag_id=SENSE, timeout=TIMEOUT_SECONDS),
        }
        for dag_id, text in texts.items():
            (folder / f"{dag_id}.py").write_text(text)


def prompt_of(number: int) -> str:
    """Return the prompt of the mapped task with that index."""
    return f"Lantern {number} of a street festival"


def submit(url: str, api_key: str, prompts: Sequence[str]) -> list[str]:
    """Submit image tasks as another program would, and return their ids."""
    with requests.Session() as session:
        session.headers["Authorization"] = f"Bearer {api_key}"
        return [
            str(session.post(f"{url}/api/generate", json={"prompt": prompt}, timeout=30).json()["data"]["task_id"])
            for prompt in prompts
        ]
