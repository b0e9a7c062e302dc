"""Builds the JSON that the pages load: the records of images, at a limited size. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import urlencode

from airflow_provider_qwenimage.plugin.addresses import linkable_address
from airflow_provider_qwenimage.plugin.image_records import (
    BatchRecord,
    ChoiceRecord,
    ImageRecord,
    Mark,
    Records,
    TaskInstance,
    Totals,
    totals_of,
)
from airflow_provider_qwenimage.rules.gallery_urls import answer_path, image_path, run_page, task_page, task_tab

_MOST_BATCHES = 200
_MOST_CHOICES = 200
# Of a batch; a page has a hundred images.
_MOST_SHEETS = 12
_NOT_LINKED = (
    "This image is not stored. Its address is not linked here, because it is on Airflow's own host or is not an https "
    "URL; the task's XComs contain it."
)


@dataclass(frozen=True)
class Window:
    """The part of the images that a page requests, and its filter."""

    offset: int
    limit: int
    status: str
    words: list[str]
    only_chosen: bool = False


@dataclass(frozen=True)
class PageContext:
    """How the browser reaches Airflow.

    Attributes:
        root: The path of Airflow's base URL, before the paths of its pages.
        own_hosts: Airflow's own hosts; see `addresses.hosts_in`.
        is_secure: Whether the page was loaded through TLS.
    """

    root: str
    own_hosts: frozenset[str]
    is_secure: bool


def listing(
    context: PageContext, window: Window, records: Records, *, is_active: bool, note: str | None = None
) -> dict[str, Any]:
    """Return the JSON of a page: totals of all images, and the requested part of those that match the filter.

    Args:
        is_active: Whether more images may follow.
        note: A sentence to show above the images.
    """
    found: Sequence[ImageRecord] = records.images
    if window.status or window.words:
        found = [record for record in found if record.matches(window.status, window.words)]
    if window.only_chosen:
        found = [record for record in found if record.is_chosen]
    # First those that wait for an answer, so that each has a link.
    choices = sorted(records.choices, key=lambda choice: not choice.is_waiting)
    return {
        "totals": _totals(totals_of(records)),
        "found": len(found),
        "items": [_item(context, record) for record in found[window.offset : window.offset + window.limit]],
        "batches": [_batch(context.root, batch) for batch in records.batches[:_MOST_BATCHES]],
        "choices": [_choice(context.root, choice) for choice in choices[:_MOST_CHOICES]],
        "is_active": is_active,
        "note": note,
    }


def _totals(totals: Totals) -> dict[str, Any]:
    return {
        "images": totals.images,
        "counts": dict(totals.counts),
        "credits": totals.consumed_credits,
        "at_risk": totals.at_risk,
        "chosen": totals.chosen,
    }


def _item(context: PageContext, record: ImageRecord) -> dict[str, Any]:
    task, root = record.task, context.root
    item: dict[str, Any] = {
        "dag_id": task.dag_id,
        "run_id": task.run_id,
        "task_id": task.task_id,
        "map_index": task.map_index,
        "iteration": task.iteration,
        "status": str(record.status),
        "state": record.state,
        "prompt": record.request.get("prompt"),
        "label": record.label,
        "size": record.request.get("size"),
        "seed": record.request.get("seed"),
        "output_format": record.request.get("output_format"),
        "image_task_id": record.image_task_id,
        "credits": record.consumed_credits,
        "at_risk": record.at_risk,
        "error": record.error,
        "message": record.message,
        "time": record.changed_at,
        "number": record.number,
        "is_candidate": record.is_candidate,
        "mark": None if record.mark is None else _mark(record.mark),
        "waited_for_by": record.waited_for_by.task_id if record.waited_for_by else None,
        "task_url": f"{root}{task_page(task.dag_id, task.run_id, task.task_id, task.map_index, region=task.region)}",
        "run_url": f"{root}{run_page(task.dag_id, task.run_id)}",
        "address": None,
        "image": None,
        "thumbnail": None,
        "details": None,
    }
    if record.path is not None:
        # With the id of the image task: an image that is drawn again has another URL, so no cache has its old version.
        drawn = record.image_task_id or ""
        for name, kind in {"image": "", "thumbnail": "thumbnail", "details": "details"}.items():
            key = task.dag_id, task.run_id, task.task_id, task.map_index, record.number
            item[name] = f"{root}{image_path(*key, region=task.region, kind=kind)}&{urlencode({'drawn': drawn})}"
    elif record.image_url is not None:
        item["address"] = linkable_address(record.image_url, context.own_hosts, is_page_secure=context.is_secure)
        if item["address"] is None:
            item["message"] = record.message or _NOT_LINKED
    return item


def _mark(mark: Mark) -> dict[str, Any]:
    task = mark.task
    return {"outcome": str(mark.outcome), "number": mark.number, "task_id": task.task_id, "map_index": task.map_index}


def _choice(root: str, choice: ChoiceRecord) -> dict[str, Any]:
    task, verdict = choice.task, choice.verdict
    key = task.dag_id, task.run_id, task.task_id, task.map_index
    return {
        **_instance(root, task),
        "try_number": task.try_number,
        "is_waiting": choice.is_waiting,
        "candidates": len(choice.candidates),
        "at_least": choice.at_least,
        "at_most": choice.at_most,
        "note": choice.note,
        "deadline": choice.deadline,
        "problem": choice.problem,
        "version": choice.version,
        "verdict": None if verdict is None else asdict(verdict),
        "tab_url": f"{root}{task_tab(*key, region=task.region)}",
        "answer_url": f"{root}{answer_path(*key, region=task.region)}",
    }


def _batch(root: str, batch: BatchRecord) -> dict[str, Any]:
    task = batch.task
    return {
        **_instance(root, task),
        "has_ended": task.has_ended,
        "progress": dict(batch.progress),
        "problem": batch.problem,
        "sheets": [_sheet(root, batch, page) for page in range(1, min(batch.sheet_pages, _MOST_SHEETS) + 1)],
        "sheet_pages": batch.sheet_pages,
    }


def _instance(root: str, task: TaskInstance) -> dict[str, Any]:
    return {
        "task_id": task.task_id,
        "run_id": task.run_id,
        "map_index": task.map_index,
        "iteration": task.iteration,
        "state": task.state,
        "task_url": f"{root}{task_page(task.dag_id, task.run_id, task.task_id, task.map_index, region=task.region)}",
    }


def _sheet(root: str, batch: BatchRecord, page: int) -> dict[str, str]:
    task = batch.task
    # With the time of the task's end: a sheet that is made again has another URL, so no cache has its old version.
    made = urlencode({"made": task.changed_at or ""})
    key = task.dag_id, task.run_id, task.task_id, task.map_index, page
    kinds = {"image": "", "thumbnail": "thumbnail"}
    paths = {name: image_path(*key, region=task.region, kind=kind, files="sheets") for name, kind in kinds.items()}
    return {name: f"{root}{path}&{made}" for name, path in paths.items()}
