"""Stop a task process at a checkpoint in the generate operator, so that it can be killed exactly there.

The generated DAG files call `install` in Airflow's task processes. Each planned kill is an empty file. A process that
reaches the checkpoint claims one by renaming it, which adds its pid, and sleeps until it is killed.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER_VARIABLE = "QWENIMAGE_CHAOS_CHECKPOINTS"

INTENT = "intent"
REQUEST = "request"
ID = "id"
LATE = "late"
WAIT = "wait"
DEFER = "defer"
RESUME = "resume"
STORED = "stored"
FINISHED = "finished"

_LONGEST_STOP_SECONDS = 180.0

# The task that this process runs; a task process runs only one.
_running: dict[str, str] = {}


@dataclass(frozen=True)
class StoppedProcess:
    """A process that has stopped at a checkpoint."""

    checkpoint: str
    key: str
    pid: int
    claim: Path


def key_of(dag_id: str, task_id: str, map_index: int) -> str:
    return f"{dag_id}.{task_id}.{map_index}"


def plan(folder: Path, checkpoint: str, key: str, kills: int) -> None:
    """Make the next processes of a task stop at a checkpoint, each once."""
    for number in range(kills):
        file = folder / checkpoint / "planned" / f"{key}@{number}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()


def reached(folder: Path) -> Iterator[StoppedProcess]:
    """Return the processes that have reached a checkpoint and were not passed to `remove`."""
    for claim in sorted(folder.glob("*/reached/*")):
        name, _, pid = claim.name.rpartition("@")
        yield StoppedProcess(
            checkpoint=claim.parent.parent.name, key=name.rpartition("@")[0], pid=int(pid), claim=claim
        )


def remove(stop: StoppedProcess) -> None:
    """Remove a process from those that `reached` returns."""
    stop.claim.unlink()


def install() -> None:
    """Wrap the functions that the operator calls with checkpoints."""
    from airflow_provider_qwenimage import operators
    from airflow_provider_qwenimage.hooks import QwenImageHook
    from airflow_provider_qwenimage.tasks import deferral
    from airflow_provider_qwenimage.tasks.ledger import Ledger
    from airflow_provider_qwenimage.tasks.stores import FolderStore, TaskStateStore

    operator = operators.QwenImageGenerateOperator
    if "execute" in _wrapped:
        return
    _around(operator, "execute", before=_remember)
    _around(operator, "resume_execution", before=_remember_and_stop)
    _around(Ledger, "intend", before=_stop(INTENT))
    _around(QwenImageHook, "submit_once", before=_stop(REQUEST))
    for store in (TaskStateStore, FolderStore):
        _keep_writes(store, "create")
        _keep_writes(store, "write")
    _around(Ledger, "accept", before=_stop(ID), after=_repeat_writes_and_stop)
    _around(QwenImageHook, "wait_for_completion", before=_stop_after_first_check)
    _around(deferral, "wait_deferred", after=_stop(DEFER))
    _around(Ledger, "finish", before=_stop(STORED), after=_stop(FINISHED))


_Action = Callable[..., None]
_wrapped: set[str] = set()
_writes: list[Callable[[], object]] = []


def _around(owner: Any, name: str, *, before: _Action | None = None, after: _Action | None = None) -> None:
    original = getattr(owner, name)

    @functools.wraps(original)
    def with_checkpoints(*args: Any, **kwargs: Any) -> Any:
        if before is not None:
            before(*args, **kwargs)
        try:
            return original(*args, **kwargs)
        finally:
            # Also after an exception, because a task defers by raising one.
            if after is not None:
                after(*args, **kwargs)

    setattr(owner, name, with_checkpoints)
    _wrapped.add(name)


def _keep_writes(store: Any, name: str) -> None:
    """Keep each write, so that it can be made again."""
    original = getattr(store, name)

    @functools.wraps(original)
    def kept(*args: Any, **kwargs: Any) -> Any:
        _writes.append(functools.partial(original, *args, **kwargs))
        return original(*args, **kwargs)

    setattr(store, name, kept)


def _repeat_writes_and_stop(*_args: Any, **_kwargs: Any) -> None:
    """Make the writes of this process again, the intent last, as if a repeated request arrived late; then stop."""
    if _planned(LATE):
        for write in reversed(_writes):
            write()
        _stop_at(LATE)


def _remember(_operator: Any, *args: Any, **kwargs: Any) -> None:
    context = kwargs["context"] if "context" in kwargs else args[-1]
    instance = context["ti"]
    index = -1 if instance.map_index is None else instance.map_index
    _running["key"] = key_of(instance.dag_id, instance.task_id, index)


def _remember_and_stop(*args: Any, **kwargs: Any) -> None:
    _remember(*args, **kwargs)
    _stop_at(RESUME)


def _stop_after_first_check(hook: Any, *_args: Any, **_kwargs: Any) -> None:
    """Stop after the first check of the wait, in the middle of the wait."""
    check = hook.check

    def check_and_stop(*args: Any, **kwargs: Any) -> Any:
        outcome = check(*args, **kwargs)
        _stop_at(WAIT)
        return outcome

    hook.check = check_and_stop


def _stop(checkpoint: str) -> _Action:
    def stop(*_args: Any, **_kwargs: Any) -> None:
        _stop_at(checkpoint)

    return stop


def _stop_at(checkpoint: str) -> None:
    for file in _planned(checkpoint):
        claim = file.parent.parent / "reached" / f"{file.name}@{os.getpid()}"
        claim.parent.mkdir(exist_ok=True)
        file.rename(claim)
        time.sleep(_LONGEST_STOP_SECONDS)
        raise RuntimeError(f"Nobody killed process {os.getpid()} at the checkpoint {checkpoint!r}.")


def _planned(checkpoint: str) -> list[Path]:
    folder = os.environ.get(FOLDER_VARIABLE)
    if folder is None or "key" not in _running:
        return []
    return sorted(Path(folder, checkpoint, "planned").glob(f"{_running['key']}@*"))
