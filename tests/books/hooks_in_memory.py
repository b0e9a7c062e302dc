"""Imported by the process that others are forked from: each of them would look up Airflow's hooks, for a second."""

from __future__ import annotations

from contextlib import suppress

from airflow.providers.common.compat.sdk import Connection

import tests.books.keepers  # noqa: F401

for conn_type in ("sqlite", "postgres", "mysql"):
    # The provider may not be installed.
    with suppress(Exception):
        Connection(conn_id="books", conn_type=conn_type, host="localhost").get_hook()
