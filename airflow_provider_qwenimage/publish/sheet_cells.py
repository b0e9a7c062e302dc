"""Decides what a contact sheet says of each row of a batch, and of all of them. No I/O."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from airflow_provider_qwenimage.contract import RANDOM_SEED
from airflow_provider_qwenimage.rules.batch_rows import RowStatus
from airflow_provider_qwenimage.rules.contact_sheets import ROWS_OF_A_PAGE
from airflow_provider_qwenimage.rules.image_texts import seed_name
from airflow_provider_qwenimage.rules.made_by import is_mapped, iteration_in

_SIZE = re.compile(r"([1-9]\d{0,4})\*([1-9]\d{0,4})", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What is shown of a row.

    Attributes:
        label: Any text.
        details: A short line: the number of the row, the seed, and more.
        image: The file name of the image; None if there is none.
        reused: Whether another task drew it.
        problem: Why there is no image.
        ratio: The height of the requested image, divided by its width.
    """

    label: str
    details: str
    image: str | None
    reused: bool
    problem: str
    ratio: float


@dataclass
class Totals:
    """The sums of a batch.

    Attributes:
        rows: The number of its rows.
        images: Of them, those with an image.
        consumed_credits: What the rows have cost.
    """

    rows: int = 0
    images: int = 0
    consumed_credits: float = 0.0

    @property
    def pages(self) -> int:
        """The number of pages."""
        return number_of_pages(self.rows)

    def text(self) -> str:
        """Return them for the head of a page."""
        failed = self.rows - self.images
        parts = [
            counted(self.images, "image"),
            f"{failed:,} failed" if failed else "",
            counted(round(self.consumed_credits, 2), "credit"),
        ]
        return " · ".join(filter(None, parts))


def totals_of(rows: Iterable[Mapping[str, Any]]) -> Totals:
    """Add up the rows of a manifest."""
    totals = Totals()
    for row in rows:
        totals.rows += 1
        totals.images += _image_of(row) is not None
        totals.consumed_credits += row.get("consumed_credits") or 0
    return totals


def number_of_pages(rows: int) -> int:
    """Return how many pages show so many rows; at least one."""
    return max(1, -(-rows // ROWS_OF_A_PAGE))


def cell_of(row: Mapping[str, Any]) -> Cell:
    """Return what is shown of a row of a manifest."""
    image = _image_of(row)
    label = row.get("label") or row.get("prompt") or ""
    number = row.get("seed")
    seed = seed_name(RANDOM_SEED if number is None else number)
    same_as = row.get("same_as")
    more = len(row.get("paths") or ()) - 1
    details = [
        f"{row['row']}",
        # The label of a sweep often ends with it.
        "" if label.endswith(seed) else seed,
        "" if same_as is None else f"same as {same_as}",
        f"+ {counted(more, 'image')}" if image is not None and more > 0 else "",
    ]
    return Cell(
        label=label,
        details=" · ".join(filter(None, details)),
        image=image,
        reused=bool(row.get("reused")),
        problem=str(row["status"]).replace("_", " "),
        ratio=_ratio_of(row.get("size")),
    )


def heading_of(made_by: Mapping[str, Any]) -> tuple[str, str]:
    """Return the DAG of a batch, and a line that names its task and run.

    Args:
        made_by: The description of the Airflow task; see `made_by.description_of`.
    """
    map_index, iteration = made_by["map_index"], iteration_in(made_by)
    mapped = f" [{map_index}]" if is_mapped(map_index) else ""
    in_loop = "" if iteration is None else f", iteration {iteration}"
    return str(made_by["dag_id"]), f"{made_by['task_id']}{mapped}{in_loop} · {made_by['run_id']}"


def counted(number: float, name: str) -> str:
    """Return a number with the name of what it counts."""
    return f"{number:,.10g} {name}{'' if number == 1 else 's'}"


def _image_of(row: Mapping[str, Any]) -> str | None:
    paths = row.get("paths")
    if row.get("status") != RowStatus.SUCCESS or not paths:
        return None
    return str(paths[0]).rpartition("/")[2]


def _ratio_of(size: object) -> float:
    found = _SIZE.fullmatch(str(size))
    return int(found[2]) / int(found[1]) if found else 1.0
