"""Decides in which form the pages are told of images: plain JSON, of a bounded size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from airflow_provider_qwenimage.plugin.addresses import shown_address
from airflow_provider_qwenimage.plugin.image_records import BatchRecord, ImageRecord, Records, Totals, totals_of
from airflow_provider_qwenimage.rules.gallery_urls import image_path, run_page, task_page

_MOST_BATCHES = 200
_NOT_LINKED = (
    "This image is not stored, and its address is not linked here: it is on Airflow's own host, or no https URL. The "
    "task's XComs have it."
)


@dataclass(frozen=True)
class Window:
    """Which part of the images is asked for."""

    offset: int
    limit: int
    status: str
    words: list[str]


@dataclass(frozen=True)
class Place:
    """Where Airflow is reached.

    Attributes:
        root: What comes before the paths of its pages.
        hosts: Its own hosts; see `addresses.hosts_in`.
        is_secure: Whether the page came through TLS.
    """

    root: str
    hosts: frozenset[str]
    is_secure: bool


def listing(
    place: Place, window: Window, records: Records, *, is_active: bool, note: str | None = None
) -> dict[str, Any]:
    """Return what a page is told.

    Args:
        place: Where Airflow is reached.
        window: Which part of the images is asked for.
        records: What there is.
        is_active: Whether more may come.
        note: A sentence about all of it.
    """
    found: Sequence[ImageRecord] = records.images
    if window.status or window.words:
        found = [record for record in found if record.matches(window.status, window.words)]
    return {
        "totals": _totals(totals_of(records)),
        "found": len(found),
        "items": [_item(place, record) for record in found[window.offset : window.offset + window.limit]],
        "batches": [_batch(place.root, batch) for batch in records.batches[:_MOST_BATCHES]],
        "is_active": is_active,
        "note": note,
    }


def _totals(totals: Totals) -> dict[str, Any]:
    return {
        "images": totals.images,
        "counts": dict(totals.counts),
        "credits": totals.consumed_credits,
        "at_risk": totals.at_risk,
    }


def _item(place: Place, record: ImageRecord) -> dict[str, Any]:
    task, root = record.task, place.root
    item: dict[str, Any] = {
        "dag_id": task.dag_id,
        "run_id": task.run_id,
        "task_id": task.task_id,
        "map_index": task.map_index,
        "status": str(record.status),
        "state": record.state,
        "prompt": record.request.get("prompt"),
        "size": record.request.get("size"),
        "seed": record.request.get("seed"),
        "output_format": record.request.get("output_format"),
        "image_task_id": record.image_task_id,
        "credits": record.consumed_credits,
        "at_risk": record.at_risk,
        "error": record.error,
        "message": record.message,
        "time": record.changed_at,
        "waited_for_by": record.waited_for_by.task_id if record.waited_for_by else None,
        "task_url": f"{root}{task_page(task.dag_id, task.run_id, task.task_id, task.map_index)}",
        "run_url": f"{root}{run_page(task.dag_id, task.run_id)}",
        "address": None,
        "image": None,
        "thumbnail": None,
        "details": None,
    }
    if record.path is not None:
        # With the id of the image task: one that is drawn anew has another URL, and no old picture in a cache.
        drawn = record.image_task_id or ""
        for name, kind in {"image": "", "thumbnail": "thumbnail", "details": "details"}.items():
            its = task.dag_id, task.run_id, task.task_id, task.map_index, record.number
            item[name] = f"{root}{image_path(*its, kind=kind)}&{urlencode({'drawn': drawn})}"
    elif record.image_url is not None:
        item["address"] = shown_address(record.image_url, place.hosts, is_page_secure=place.is_secure)
        if item["address"] is None:
            item["message"] = record.message or _NOT_LINKED
    return item


def _batch(root: str, batch: BatchRecord) -> dict[str, Any]:
    task = batch.task
    return {
        "task_id": task.task_id,
        "run_id": task.run_id,
        "map_index": task.map_index,
        "state": task.state,
        "has_ended": task.has_ended,
        "progress": dict(batch.progress),
        "problem": batch.problem,
        "task_url": f"{root}{task_page(task.dag_id, task.run_id, task.task_id, task.map_index)}",
    }
