"""Imported by the process that others are forked from: each of them would import Airflow's hooks, for seconds."""

from __future__ import annotations

import json
import os
from contextlib import suppress

from airflow_provider_qwenimage.books.opening import open_books
from airflow_provider_qwenimage.rules.budgets import BooksOptions, Budgets

for conn_type in ("sqlite", "postgres", "mysql"):
    os.environ["AIRFLOW_CONN_BOOKS"] = json.dumps({"conn_type": conn_type, "host": "localhost"})
    # The provider may not be installed.
    with suppress(Exception):
        open_books(BooksOptions("books", Budgets()), "qwen")
