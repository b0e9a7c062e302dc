"""Lets a command find what is stored in Airflow's metadata database."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

_CONTEXT = "_AIRFLOW_PROCESS_CONTEXT"


@contextmanager
def with_database() -> Iterator[None]:
    """Have Airflow 3 look connections up in the metadata database too, as its own commands do."""
    before = os.environ.get(_CONTEXT)
    os.environ[_CONTEXT] = "server"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_CONTEXT]
        else:
            os.environ[_CONTEXT] = before
