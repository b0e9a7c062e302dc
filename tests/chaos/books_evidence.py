"""Gather what the books say, and what they should say."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

import sqlalchemy

from tests.chaos.books_judge import BooksEvidence, BooksRow

CONN_ID = "books"
# A limit that no test reaches has each reservation checked.
OPTIONS = {"books_conn_id": CONN_ID, "credits_per_day": 1_000_000, "credits_per_month": 1_000_000}

_ROWS = sqlalchemy.text(
    "SELECT submission_id, account, status, credits_reserved, credits_consumed, image_task_id, sha256, reserved_at "
    "FROM qwenimage_submissions"
)
_BUDGETS = sqlalchemy.text("SELECT account, period, credits FROM qwenimage_budgets")


def gather_books(url: str, charged: Mapping[str, Mapping[str, float]], images: Path) -> BooksEvidence:
    """Return the evidence on the books.

    Args:
        url: Their database, for SQLAlchemy.
        charged: What the API charged, by account and image task.
        images: The folder in which the tasks store images, some in folders below it.
    """
    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.pool.NullPool)
    with engine.connect() as connection:
        rows = [
            BooksRow(
                submission_id=row.submission_id,
                account=row.account,
                status=row.status,
                credits_reserved=float(row.credits_reserved),
                credits_consumed=None if row.credits_consumed is None else float(row.credits_consumed),
                image_task_id=row.image_task_id,
                sha256=row.sha256,
                periods=_periods(row.reserved_at),
            )
            for row in connection.execute(_ROWS)
        ]
        budgets = {(row.account, row.period): float(row.credits) for row in connection.execute(_BUDGETS)}
    sidecars = [json.loads(file.read_text()) for file in images.rglob("[!.]*.json")]
    stored = {sidecar["task_id"]: sidecar["sha256"] for sidecar in sidecars}
    return BooksEvidence(rows, budgets, charged, stored)


def _periods(reserved_at: datetime) -> tuple[str, str]:
    return f"{reserved_at:%Y-%m-%d}", f"{reserved_at:%Y-%m}"
