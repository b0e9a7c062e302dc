"""Stores of facts with faults, and ledgers of Airflow tasks at given points of a try."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from airflow_provider_qwenimage.contract import GenerateRequest
from airflow_provider_qwenimage.rules.image_identity import ImageIdentity
from airflow_provider_qwenimage.rules.made_by import description_of
from airflow_provider_qwenimage.rules.submissions import Asking, Step, Submit
from airflow_provider_qwenimage.rules.tries import Try
from airflow_provider_qwenimage.storage.paths import open_output_path
from airflow_provider_qwenimage.tasks.ledger import Ledger
from airflow_provider_qwenimage.tasks.opening import open_ledger, open_row_ledger, try_of
from airflow_provider_qwenimage.tasks.records import Records
from tests.airflows import HAS_TASK_STATES

REQUEST = GenerateRequest(prompt="A red fox", callback_url="https://example.com/?token=secret")
OTHER = GenerateRequest(prompt="A grey fox")

# Where a task may keep its records.
FOLDER_PLACES = ["own and shared files", "shared files"]
STATE_PLACES = ["task states", "task states and shared files"] if HAS_TASK_STATES else []
PLACES = [*STATE_PLACES, *FOLDER_PLACES]


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


class Facts:
    """A store in memory that keeps JSON; `before_writing` may raise what a storage raises."""

    def __init__(self) -> None:
        self.written: dict[str, str] = {}
        self.before_writing: Callable[[str], None] = lambda _: None

    def read(self, name: str) -> object:
        return json.loads(self.written[name]) if name in self.written else None

    def create(self, name: str, fact: dict[str, Any]) -> bool:
        self.before_writing(name)
        return self.written.setdefault(name, json.dumps(fact)) == json.dumps(fact)

    def write(self, name: str, fact: dict[str, Any], *, is_last: bool = False) -> None:
        self.before_writing(name)
        self.written[name] = json.dumps(fact)

    def remove(self, name: str) -> None:
        self.before_writing(name)
        self.written.pop(name, None)

    def fail(self, times: int, error: BaseException | None = None) -> None:
        """Have the next writes raise an error."""
        left = [error or OSError("The disk is full.")] * times

        def before_writing(_: str) -> None:
            if left:
                raise left.pop()

        self.before_writing = before_writing


def ti_of(**fields: Any) -> SimpleNamespace:
    identity = {"dag_id": "foxes", "run_id": "manual__1", "task_id": "draw", "map_index": -1}
    return SimpleNamespace(**{**identity, "try_number": 1, "max_tries": 2} | fields)


def context_of(states: TaskStates | None = None, **fields: Any) -> Any:
    return {"ti": ti_of(**fields)} | ({} if states is None else {"task_state_store": states})


def asking_of(request: GenerateRequest = REQUEST, try_number: int = 1, max_tries: int = 2, **fields: Any) -> Asking:
    """Return who asks for an image, long after each submission, unless `now` is given."""
    identity = ImageIdentity(request, fields.pop("variant", 0), fields.pop("name", None))
    made_in = Try(number=try_number, max_tries=max_tries)
    later = {"answer_seconds": 70.0, "now": time.time() + 3600}
    return Asking(identity=identity, made_in=made_in, **later | fields)


def step_of(ledger: Ledger, asking: Asking) -> Step:
    """Return what a task does about its records and about those in the folder."""
    step = ledger.look_at_own(asking)
    return ledger.look_at_shared(asking, step) if isinstance(step, Submit) else step


@dataclass
class Place:
    """Where the tasks of a test keep their records."""

    kind: str
    path: Path
    states: dict[str, TaskStates] = field(default_factory=dict)

    def opened(self, try_number: int = 1, max_tries: int = 2, *, task: str = "draw") -> Ledger:
        """Open the ledger as a new process does, which knows of earlier tries only what is stored."""
        states = self.states.setdefault(task, TaskStates()) if self.kind.startswith("task states") else None
        folder = open_output_path(f"file://{self.path}") if "files" in self.kind else None
        context = context_of(states, task_id=task, try_number=try_number, max_tries=max_tries)
        instance = description_of(context["ti"])
        if self.kind == "shared files":
            assert folder is not None
            return open_row_ledger(try_of(context), folder, instance, ImageIdentity(REQUEST))
        return open_ledger(context, folder, instance, durable=True, number=1)

    def step(
        self,
        try_number: int = 1,
        max_tries: int = 2,
        request: GenerateRequest = REQUEST,
        *,
        task: str = "draw",
        **fields: Any,
    ) -> Step:
        """Return what a new process does."""
        ledger = self.opened(try_number, max_tries, task=task)
        return step_of(ledger, asking_of(request, try_number, max_tries, **fields))

    def intended(self, try_number: int = 1, max_tries: int = 2, **fields: Any) -> Ledger:
        """Return the ledger of a try that is about to submit."""
        task = fields.pop("task", "draw")
        ledger = self.opened(try_number, max_tries, task=task)
        asking = asking_of(fields.pop("request", REQUEST), try_number, max_tries, **fields)
        step = step_of(ledger, asking)
        assert isinstance(step, Submit), step
        assert ledger.intend(asking)
        return ledger

    def submitted(self, try_number: int = 1, max_tries: int = 2, *, task_id: str = "n43", **fields: Any) -> Ledger:
        """Return the ledger of a try whose submission was accepted."""
        ledger = self.intended(try_number, max_tries, **fields)
        ledger.accept(task_id)
        return ledger

    def resumed(self, try_number: int = 1, max_tries: int = 2, **fields: Any) -> Ledger:
        """Return the ledger of a try that looked at its records."""
        ledger = self.opened(try_number, max_tries, task=fields.pop("task", "draw"))
        step_of(ledger, asking_of(REQUEST, try_number, max_tries, **fields))
        return ledger

    def files(self) -> list[str]:
        """Return the names of all files in the folder."""
        return sorted(file.name for file in self.path.rglob("*") if file.is_file())

    def facts(self, task: str = "draw") -> dict[str, Any]:
        """Return everything that is recorded anywhere."""
        states = self.states.get(task, TaskStates()).written
        files = {name: (self.path / name).read_text() for name in self.files()}
        return {name: json.loads(text) for name, text in {**states, **files}.items()}


def ledger_of(
    own: Facts | None,
    shared: Facts | None,
    try_number: int = 1,
    max_tries: int = 2,
    *,
    instance: Mapping[str, Any] | None = None,
) -> Ledger:
    """Return a ledger whose stores can fail."""
    instance = instance or description_of(ti_of())

    def opener(store: Facts, prefix: str) -> Callable[[str], Records]:
        return lambda key: Records(store, f"{prefix}{key}", instance)

    return Ledger(
        instance,
        Try(number=try_number, max_tries=max_tries),
        own=None if own is None else Records(own, "submission-1", instance),
        shared=None if shared is None else opener(shared, ""),
    )
