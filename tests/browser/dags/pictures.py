"""DAGs whose images the browser looks at: many, few, none, slow ones, ones that fail, prompts of all kinds."""

import json
import os
from pathlib import Path
from typing import Any

import pendulum
from airflow.sdk import DAG, Param, task

from airflow_provider_qwenimage import QwenImageBatchOperator, QwenImageChooseOperator, QwenImageGenerateOperator

FOLDER = os.environ["QWENIMAGE_OUTPUT_PATH"]
START = pendulum.datetime(2024, 1, 1)
POLL_INTERVAL = 0.5

with DAG("one_image", schedule=None, start_date=START, params={"prompt": "A fox", "seed": 1}):
    QwenImageGenerateOperator(
        task_id="draw",
        prompt="{{ params.prompt }}",
        seed="{{ params.seed }}",
        output_path=f"{FOLDER}/one",
        deferrable=True,
        poll_interval=POLL_INTERVAL,
    )

with DAG("prompts", schedule=None, start_date=START, params={"prompts": Param([], type="array")}):

    @task
    def choose(params: dict[str, Any]) -> list[str]:
        return params["prompts"]

    QwenImageGenerateOperator.partial(
        task_id="draw", output_path=f"{FOLDER}/prompts", deferrable=True, seed=1, poll_interval=POLL_INTERVAL
    ).expand(prompt=choose())

with DAG("many_images", schedule=None, start_date=START, params={"number": 500, "folder": "many"}):

    @task
    def list_requests(params: dict[str, Any]) -> str:
        path = Path(FOLDER.removeprefix("file://")) / f"{params['folder']}.jsonl"
        rows = (
            {"prompt": f"Robot {number} on a shelf of toys", "seed": number, "size": "1024*768"}
            for number in range(params["number"])
        )
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        return str(path)

    QwenImageBatchOperator(
        task_id="draw",
        requests=list_requests(),
        output_path=f"{FOLDER}/{{{{ params.folder }}}}",
        max_in_flight=32,
        max_failures=100_000,
        poll_interval=POLL_INTERVAL,
    )

with DAG("contact_sheet", schedule=None, start_date=START):
    QwenImageBatchOperator(
        task_id="draw",
        requests=[{"prompt": "A fox in the snow", "label": "Fox"}, "A hare", "狐狸", "An owl [fail]"],
        output_path=f"{FOLDER}/contact_sheet",
        max_failures=1,
        contact_sheet=True,
        poll_interval=POLL_INTERVAL,
    )

with DAG("choice", schedule=None, start_date=START, params={"number": 6, "folder": "choice"}):

    @task
    def list_scenes(params: dict[str, Any]) -> list[dict[str, Any]]:
        names = ["A fox in the snow", "A lighthouse in a storm", "An owl on a branch at night", "A boat made of paper"]
        return [
            {"prompt": names[number % len(names)], "seed": number + 1, "size": "1024*768"}
            for number in range(params["number"])
        ]

    drawn = QwenImageBatchOperator(
        task_id="draw",
        requests=list_scenes(),
        output_path=f"{FOLDER}/{{{{ params.folder }}}}",
        max_in_flight=32,
        poll_interval=POLL_INTERVAL,
    )
    picked = QwenImageChooseOperator(
        task_id="pick",
        images=drawn.output,
        subject="Which images do we print?",
        at_least=1,
        at_most=3,
    )

    @task
    def use(images: list[dict[str, Any]]) -> list[int]:
        return [image["seed"] for image in images]

    use(picked.output)

with DAG("sets", schedule=None, start_date=START):
    sets = QwenImageBatchOperator.partial(
        task_id="draw", output_path=f"{FOLDER}/sets", poll_interval=POLL_INTERVAL
    ).expand(requests=[[{"prompt": name, "seed": seed} for seed in (1, 2)] for name in ("A fox", "A hare")])
    picked_of_each = QwenImageChooseOperator.partial(task_id="pick", subject="Which one?").expand(images=sets.output)

    @task
    def list_seeds(chosen: list[list[dict[str, Any]]]) -> list[int]:
        return [image["seed"] for images in chosen for image in images]

    list_seeds(picked_of_each.output)

with DAG("not_stored", schedule=None, start_date=START):
    QwenImageGenerateOperator(
        task_id="draw",
        prompt="A lighthouse in a storm",
        seed=3,
        wait_for_completion=True,
        deferrable=True,
        poll_interval=POLL_INTERVAL,
    )

with DAG("no_images", schedule=None, start_date=START):

    @task
    def nothing() -> None:
        pass

    nothing()
