"""Storages for tests: in memory under any scheme; and faults of the local disk."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import ObjectStoragePath
from airflow.providers.common.compat.sdk import io as airflow_io  # type: ignore[attr-defined]
from fsspec.implementations.memory import MemoryFileSystem


class MemoryStore(MemoryFileSystem):
    """A separate store under a scheme; schemes differ in how a file gets its final name."""

    cachable = False
    store: dict[str, Any]

    def __init__(self, protocol: str, *, can_move: bool = True) -> None:
        super().__init__()
        self.protocol = protocol
        self.can_move = can_move
        self.store, self.pseudo_dirs = {}, [""]

    def mv(self, path1: str, path2: str, **kwargs: Any) -> None:
        if not self.can_move:
            raise PermissionError(path2)
        super().mv(path1, path2, **kwargs)


class WatchedStore(MemoryStore):
    """Does something before each read."""

    def before_a_read(self) -> None:
        raise NotImplementedError

    def info(self, path: str, **kwargs: Any) -> Any:
        self.before_a_read()
        return super().info(path, **kwargs)

    def cat_file(self, *args: Any, **kwargs: Any) -> Any:
        self.before_a_read()
        return super().cat_file(*args, **kwargs)


def interrupt_writes(monkeypatch: pytest.MonkeyPatch, in_the_middle: Callable[[], object]) -> None:
    """Have the local disk take half of each file that is written next to its final name, and then call a function."""
    write, interrupted = os.write, set[str]()

    def write_half(descriptor: int, content: Any) -> int:
        name = str(Path(f"/proc/self/fd/{descriptor}").readlink())
        if not name.endswith(".part") or name in interrupted:
            return write(descriptor, content)
        interrupted.add(name)
        written = write(descriptor, content[: len(content) // 2])
        in_the_middle()
        return written

    monkeypatch.setattr(os, "write", write_half)


def fill_up() -> None:
    """Fail as a full disk does."""
    raise OSError(errno.ENOSPC, "No space left on device")


def attach(filesystem: Any, protocol: str) -> str:
    """Have Airflow open a file system; return the start of a URL in it."""
    # Airflow never detaches a store, so each gets a connection id of its own.
    conn_id = f"store_{uuid.uuid4().hex}"
    import_module(f"{airflow_io.__name__}.store").attach(protocol=protocol, conn_id=conn_id, fs=filesystem)
    return f"{protocol}://{conn_id}@"


def store_at(protocol: str, *, can_move: bool = True) -> tuple[MemoryStore, ObjectStoragePath]:
    """Return an empty store and a folder in it."""
    store = MemoryStore(protocol, can_move=can_move)
    return store, ObjectStoragePath(f"{attach(store, protocol)}bucket/images")
