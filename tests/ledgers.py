"""A fake of Airflow's store, and ledgers at given points of a try."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

from airflow_provider_qwenimage.contract import GenerateRequest
from airflow_provider_qwenimage.tasks.ledger import Ledger
from airflow_provider_qwenimage.tasks.stores import Store

REQUEST = GenerateRequest(prompt="A red fox", callback_url="https://example.com/?token=secret")
OTHER = GenerateRequest(prompt="A grey fox")


class TaskStates:
    """A fake of Airflow's accessor: it has the same signatures and refuses None as well."""

    def __init__(self) -> None:
        self.written: dict[str, str] = {}
        self.retention: dict[str, timedelta | None] = {}

    def get(self, key: str, default: Any = None) -> Any:
        return json.loads(self.written[key]) if key in self.written else default

    def set(self, key: str, value: Any, *, retention: timedelta | None = None) -> None:
        if value is None:
            raise ValueError("Cannot set value as None")
        self.written[key] = json.dumps(value, allow_nan=False)
        self.retention[key] = retention

    def delete(self, key: str) -> None:
        self.written.pop(key, None)


def opened(store: Store, try_number: int = 1, max_tries: int = 2, variant: int = 0) -> Ledger:
    """Open the ledger as a new process does, which knows of earlier tries only what is in the store."""
    return Ledger(store, try_number=try_number, max_tries=max_tries, variant=variant)


def submitted(store: Store, **kwargs: int) -> Ledger:
    """Return the ledger of a try whose submission was accepted."""
    ledger = opened(store, **kwargs)
    ledger.intend(REQUEST)
    ledger.accept("n43")
    return ledger
