"""Gather the evidence on tasks: the API's books, Airflow's states and logs, and the stored files."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

from PIL import Image

from airflow_provider_qwenimage.sandbox import Sandbox
from tests.chaos.cluster import ASKS, Cluster, InstanceKey
from tests.chaos.drawings import Drawing
from tests.chaos.judge import Evidence


def accepted_ids(apis: Iterable[Sandbox]) -> dict[str, list[str]]:
    """Return the ids of the accepted image tasks of each prompt."""
    found: dict[str, list[str]] = defaultdict(list)
    for api in apis:
        for submission in api.submissions:
            found[submission.request["prompt"]].append(submission.task_id)
    return found


def is_whole(image: Path) -> bool:
    """Whether a file is an image that can be decoded completely."""
    try:
        with Image.open(image) as opened:
            opened.load()
    except (OSError, SyntaxError):
        return False
    return True


def gather(
    drawings: Iterable[Drawing],
    cluster: Cluster,
    apis: Iterable[Sandbox],
    images: Path,
    *,
    kills: Mapping[InstanceKey, int],
    clears: Mapping[InstanceKey, int],
) -> list[Evidence]:
    """Return the evidence on tasks.

    Args:
        apis: The sandboxes that the tasks used.
        images: The folder in which the tasks store images.
        kills: How often each task was killed.
        clears: How often each task was cleared.
    """
    ids = accepted_ids(apis)
    stored = whole_images(images)
    rows = cluster.task_rows()
    found = []
    for drawing in drawings:
        row = rows.get(drawing.instance_key)
        state = row.state if row else None
        if drawing.stores:
            image_task_id = stored.get(drawing.prompt)
        else:
            image_task_id = str(cluster.result(drawing).get("task_id")) if state == "success" else None
        tries = cluster.tries(drawing)
        found.append(
            Evidence(
                name=drawing.key,
                state=state,
                accepted=len(ids[drawing.prompt]),
                result_is_whole=image_task_id in ids[drawing.prompt],
                last_try_unknown=bool(tries) and any(words in tries[-1] for words in ASKS),
                kills=kills.get(drawing.instance_key, 0),
                clears=clears.get(drawing.instance_key, 0),
            )
        )
    return found


def whole_images(folder: Path) -> dict[str, str]:
    """Return, by prompt, the ids of the image tasks whose images are stored completely, with a sidecar."""
    found = {}
    for file in folder.glob("[!.]*.json"):
        sidecar = json.loads(file.read_text())
        if is_whole(folder / sidecar["image"]):
            found[sidecar["request"]["prompt"]] = sidecar["task_id"]
    return found
