"""Gather the evidence on a batch: the API's books, the manifest and the files in the folder."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from airflow_provider_qwenimage.sandbox import Sandbox
from tests.chaos.batch_dag import BatchDag
from tests.chaos.batch_judge import BatchEvidence, Key, Row
from tests.chaos.evidence import is_whole

_MANIFEST = "manifest.jsonl"


def accepted_ids(api: Sandbox) -> dict[Key, list[str]]:
    """Return the ids of the accepted image tasks by prompt and seed."""
    found: dict[Key, list[str]] = defaultdict(list)
    for submission in api.submissions:
        found[submission.request["prompt"], submission.request["seed"]].append(submission.task_id)
    return found


def gather_batch(dag: BatchDag, api: Sandbox, images: Path, consented: Mapping[Key, int]) -> BatchEvidence:
    """Return the evidence on a batch.

    Args:
        images: The folder for all images of the crash test.
        consented: How many images were cleared after a report that they may be paid.
    """
    folder = dag.folder(images)
    known = {_MANIFEST}
    for line in _manifest_lines(folder):
        for image in _paths(line):
            known |= {image.name, image.with_suffix(".json").name}
    return BatchEvidence(
        wanted=dag.wanted,
        accepted=accepted_ids(api),
        consented=consented,
        rows=read_manifest(folder),
        leftovers=sorted(file.name for file in folder.iterdir() if file.name not in known),
    )


def read_manifest(folder: Path) -> list[Row]:
    """Return the rows of a batch's manifest, or no rows if it has no manifest."""
    return [
        Row(
            number=line["row"],
            key=(line["prompt"], line["seed"]),
            status=line["status"],
            image_task_id=line.get("task_id"),
            shares="same_as" in line,
            is_whole=bool(_paths(line)) and all(_is_verified(image) for image in _paths(line)),
        )
        for line in _manifest_lines(folder)
    ]


def manifest_version(folder: Path) -> tuple[int, int] | None:
    """Return a value that changes whenever a try writes its manifest, which it does at its end; None without one."""
    try:
        status = (folder / _MANIFEST).stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns


def stored_ids(folder: Path) -> set[str]:
    """Return the ids of the image tasks whose images are stored with their sidecars."""
    sidecars = folder.glob("[!.]*.json")
    return {
        json.loads(file.read_text())["task_id"]
        for file in sidecars
        if any(_is_verified(image) for image in folder.glob(f"{file.stem}.*") if image != file)
    }


def recorded_ids(folder: Path) -> set[str]:
    """Return the ids of the image tasks that are recorded for a resume."""
    records = (json.loads(file.read_text()) for file in folder.glob(".submission-*.json"))
    return {record["image_task_id"] for record in records if record.get("image_task_id") is not None}


def _manifest_lines(folder: Path) -> list[dict[str, Any]]:
    try:
        text = (folder / _MANIFEST).read_text()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text.splitlines()]


def _paths(line: Mapping[str, Any]) -> list[Path]:
    return [Path(path.removeprefix("file://")) for path in line.get("paths", ())]


def _is_verified(image: Path) -> bool:
    """Whether an image decodes and is the one that its sidecar describes."""
    try:
        sidecar = json.loads(image.with_suffix(".json").read_text())
        return is_whole(image) and hashlib.sha256(image.read_bytes()).hexdigest() == sidecar["sha256"]
    except FileNotFoundError:
        return False
