"""The tables of the books. BI tools query them: a later version may add columns, and never changes what one means."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import mysql

from airflow_provider_qwenimage.rules.book_rows import (
    CREDIT_DIGITS,
    MOST_HASH_CHARACTERS,
    MOST_NAME_CHARACTERS,
    MOST_PATH_CHARACTERS,
    MOST_TASK_ID_CHARACTERS,
)

# Version 1 is the only one so far.
VERSION = 1

# Equal names are equal bytes in each database: MariaDB would not distinguish "images" from "Images".
_OPTIONS: dict[str, Any] = {"mysql_charset": "utf8mb4", "mysql_collate": "utf8mb4_bin", "mysql_engine": "InnoDB"}
_OPTIONS |= {name.replace("mysql", "mariadb"): value for name, value in _OPTIONS.items()}
_NAME = sa.String(MOST_NAME_CHARACTERS)
# Up to a billion for one image, and a sum of very many.
_CREDITS = sa.Numeric(16, CREDIT_DIGITS, asdecimal=False)
_SUM = sa.Numeric(21, CREDIT_DIGITS, asdecimal=False)
# UTC, without a zone. MariaDB cuts the fractions of a second off unless it is asked to keep them.
_TIME: Any = sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql").with_variant(mysql.DATETIME(fsp=6), "mariadb")

METADATA = sa.MetaData()

SUBMISSIONS = sa.Table(
    "qwenimage_submissions",
    METADATA,
    sa.Column("submission_id", sa.String(32), primary_key=True),
    sa.Column("account", _NAME, nullable=False),
    sa.Column("dag_id", _NAME, nullable=False),
    sa.Column("run_id", _NAME, nullable=False),
    sa.Column("task_id", _NAME, nullable=False),
    sa.Column("map_index", sa.Integer, nullable=False),
    sa.Column("try_number", sa.Integer, nullable=False),
    sa.Column("batch_row", sa.Integer),
    sa.Column("fingerprint", sa.String(64), nullable=False),
    sa.Column("image_task_id", sa.String(MOST_TASK_ID_CHARACTERS)),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("credits_reserved", _CREDITS, nullable=False),
    sa.Column("credits_consumed", _CREDITS),
    sa.Column("reserved_at", _TIME, nullable=False),
    sa.Column("submitted_at", _TIME),
    sa.Column("settled_at", _TIME),
    sa.Column("path", sa.String(MOST_PATH_CHARACTERS)),
    sa.Column("sha256", sa.String(MOST_HASH_CHARACTERS)),
    sa.Index("qwenimage_submissions_account", "account", "reserved_at"),
    sa.Index("qwenimage_submissions_dag", "dag_id", "reserved_at"),
    sa.Index("qwenimage_submissions_status", "status"),
    sa.Index("qwenimage_submissions_image_task", "image_task_id"),
    **_OPTIONS,
)

# What is spent or reserved in a day or a month, so that one statement can check and reserve.
BUDGETS = sa.Table(
    "qwenimage_budgets",
    METADATA,
    sa.Column("account", _NAME, primary_key=True),
    sa.Column("period", sa.String(10), primary_key=True),
    sa.Column("credits", _SUM, nullable=False),
    **_OPTIONS,
)

BOOKS = sa.Table(
    "qwenimage_books",
    METADATA,
    sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
    **_OPTIONS,
)
