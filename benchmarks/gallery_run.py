"""Fill Airflow's database with two runs of thousands of images: a mapped task and a batch. Runs in its environment.

A few images are drawn; the others are copies of their rows, and hard links to their files under other names.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from airflow_provider_qwenimage import QwenImageBatchOperator, QwenImageGenerateOperator
from airflow_provider_qwenimage.sandbox import Sandbox

_DRAWN = 24


def main() -> int:
    """Fill the database, and print the ids of the two runs as JSON.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    from tests.integration.dag_runs import TestDag

    with Sandbox(seconds_per_image=0.05) as sandbox:
        os.environ["AIRFLOW_CONN_QWENIMAGE_DEFAULT"] = sandbox.connection_json
        mapped = TestDag()
        with mapped:
            QwenImageGenerateOperator.partial(
                task_id="draw", output_path=str(options.folder / "mapped"), poll_interval=0.05, seed=1
            ).expand(prompt=["A robot on a shelf of toys"])
        mapped.run()
        batch = TestDag()
        with batch:
            QwenImageBatchOperator(
                task_id="draw",
                requests=[{"prompt": f"A robot with {number} arms", "seed": number} for number in range(_DRAWN)],
                output_path=str(options.folder / "batch"),
                poll_interval=0.05,
            )
        end = batch.run()["draw"]
    rows = [json.loads(line) for line in Path(end.xcoms["manifest"]).read_text().splitlines()]
    pictures = [Path(row["paths"][0]) for row in rows]
    _multiply_rows(rows, pictures, Path(end.xcoms["manifest"]), options.images)
    _multiply_instances(mapped.dag.dag_id, mapped.run_id, pictures, options.images)
    runs = {"mapped": [mapped.dag.dag_id, mapped.run_id], "batch": [batch.dag.dag_id, batch.run_id]}
    print(json.dumps(runs), file=sys.__stdout__)
    return 0


def _copy_image(picture: Path, folder: Path, name: str, made_by: dict[str, Any] | None) -> tuple[str, str]:
    """Link a picture under another name, with its own sidecar; return its path and the id of its image task."""
    target = folder / f"{name}.jpg"
    target.hardlink_to(picture)
    sidecar = json.loads(picture.with_suffix(".json").read_text())
    sidecar |= {"image": target.name, "task_id": f"n43{name}qwenimg"}
    if made_by is not None:
        sidecar["made_by"] |= made_by
    target.with_suffix(".json").write_text(json.dumps(sidecar))
    return str(target), sidecar["task_id"]


def _multiply_rows(rows: list[dict[str, Any]], pictures: list[Path], manifest: Path, images: int) -> None:
    lines = []
    for number in range(images):
        path, image_task_id = _copy_image(pictures[number % _DRAWN], manifest.parent, f"copy-{number}", None)
        row = rows[number % _DRAWN] | {"row": number + 1, "prompt": f"Robot {number} on a shelf of toys"}
        lines.append(json.dumps(row | {"paths": [path], "task_id": image_task_id}))
    manifest.write_text("\n".join(lines) + "\n")


def _multiply_instances(dag_id: str, run_id: str, pictures: list[Path], images: int) -> None:
    from airflow.models.taskinstance import TaskInstance
    from airflow.models.xcom import XComModel
    from airflow.utils.session import create_session
    from sqlalchemy import insert, select, update
    from uuid6 import uuid7

    table, pushed = TaskInstance.__table__, XComModel.__table__
    with create_session() as session:
        is_ours = (table.c.dag_id == dag_id, table.c.run_id == run_id)
        (instance,) = session.execute(select(table).where(*is_ours)).mappings().all()
        xcoms = session.execute(select(pushed).where(pushed.c.dag_id == dag_id)).mappings().all()
        result = next(xcom["value"] for xcom in xcoms if xcom["key"] == "return_value")
        folder = Path(result["paths"][0]).parent
        made_by = {"dag_id": dag_id, "run_id": run_id, "task_id": "draw"}
        results = {}
        for number in range(images):
            path, image_task_id = _copy_image(
                pictures[number % _DRAWN], folder, f"copy-{number}", made_by | {"map_index": number}
            )
            results[number] = result | {"paths": [path], "task_id": image_task_id}
        session.execute(
            insert(table), [dict(instance) | {"id": uuid7(), "map_index": number} for number in range(1, images)]
        )
        copies = [dict(xcom) | {"map_index": number} for number in range(1, images) for xcom in xcoms]
        for copy in copies:
            if copy["key"] == "return_value":
                copy["value"] = results[copy["map_index"]]
            if copy["key"] == "request":
                copy["value"] = copy["value"] | {"prompt": f"Robot {copy['map_index']} on a shelf of toys"}
        session.execute(insert(pushed), copies)
        session.execute(
            update(pushed).where(pushed.c.key == "return_value", pushed.c.map_index == 0).values(value=results[0])
        )


if __name__ == "__main__":
    sys.exit(main())
