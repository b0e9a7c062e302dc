"""The asset events that Airflow stores when tasks have succeeded."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from airflow.providers.common.compat.sdk import Asset, AssetAlias
from sqlalchemy import select

from airflow_provider_qwenimage import QwenImageBatchOperator, QwenImageGenerateOperator
from airflow_provider_qwenimage.sandbox import Sandbox
from tests.airflows import AIRFLOW, AIRFLOW_3
from tests.integration.dag_runs import TestDag


def stored_events(dag: TestDag) -> dict[str, list[tuple[str, Any]]]:
    """Return the asset's URI and the extra of each event of a DAG, by task."""
    from airflow.utils.session import create_session

    if AIRFLOW_3:
        from airflow.models.asset import AssetEvent as Event
    else:
        from airflow.models.dataset import (  # type: ignore[import-not-found,no-redef]
            DatasetEvent as Event,
        )

    events = defaultdict(list)
    with create_session() as session:
        for event in session.scalars(select(Event).where(Event.source_dag_id == dag.dag.dag_id).order_by(Event.id)):
            asset = event.asset if AIRFLOW_3 else event.dataset
            events[str(event.source_task_id)].append((str(asset.uri), event.extra))
    return events


def in_alias(extra: dict[str, Any]) -> dict[str, Any]:
    """Return the extra as events of an alias have it: Airflow 3.0 cannot store lists there."""
    if AIRFLOW != (3, 0):
        return extra
    return {name: json.dumps(value) if isinstance(value, list) else value for name, value in extra.items()}


def test_events_of_tasks_that_wait_reuse_submit_and_draw_a_batch(
    connected_api: Sandbox, airflow_database: None, tmp_path: Path
) -> None:
    dag = TestDag()
    folder = tmp_path / "new images"
    uri = f"file://{tmp_path}/new%20images"
    common: dict[str, Any] = {"poll_interval": 0.01, "output_path": str(folder)}
    fox: dict[str, Any] = {"prompt": "a fox", "seed": 7, **common}
    with dag:
        draw = QwenImageGenerateOperator(
            task_id="draw", deferrable=True, outlets=[Asset("drawn_images"), AssetAlias("folders")], **fox
        )
        again = QwenImageGenerateOperator(
            task_id="again", outlets=[AssetAlias("folders")], prompt_in_asset_events=True, **fox
        )
        submit = QwenImageGenerateOperator(
            task_id="submit",
            prompt="a hare",
            outlets=[AssetAlias("folders"), Asset.ref(name="drawn_images") if AIRFLOW_3 else Asset("drawn_images")],
        )
        batch = QwenImageBatchOperator(
            task_id="batch",
            requests=["a fox", "an owl"],
            dataset="imagefolder",
            contact_sheet=True,
            outlets=[AssetAlias("folders")],
            **common,
        )
        draw >> again >> submit >> batch
    run = dag.run()
    assert run.state == "success"
    events = stored_events(dag)

    returned = run["draw"].returned
    extra = {name: value for name, value in returned.items() if name != "status"}
    extra["image_urls"] = [url.partition("?")[0] for url in returned["image_urls"]]
    assert events["draw"] == [("drawn_images", extra), (uri, in_alias(extra))]
    assert extra["consumed_credits"] == 5
    reused = extra | {"prompt": "a fox", "consumed_credits": 0, "reused": True}
    assert events["again"] == [(uri, in_alias(reused))]
    assert events["submit"] == [
        (
            "drawn_images",
            {"task_id": run["submit"].returned, "size": "1024*1024", "seed": -1, "output_format": "jpeg"},
        )
    ]
    files = {
        "folder": str(folder),
        "rows": 2,
        "manifest_sha256": hashlib.sha256((folder / "manifest.jsonl").read_bytes()).hexdigest(),
        "dataset": "imagefolder",
        "metadata": str(folder / "metadata.jsonl"),
        "contact_sheet": str(folder / "contact-sheet.jpg"),
    }
    assert events["batch"] == [(uri, run["batch"].returned | files)]
    assert connected_api.api_key not in str(events)
