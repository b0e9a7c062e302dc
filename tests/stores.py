"""Storages for tests: in memory under any scheme, or on the local disk with faults."""

from __future__ import annotations

import uuid
from importlib import import_module
from typing import Any

from airflow.providers.common.compat.sdk import ObjectStoragePath
from airflow.providers.common.compat.sdk import io as airflow_io  # type: ignore[attr-defined]
from fsspec.implementations.local import LocalFileSystem
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


class DiskThatFillsUp(LocalFileSystem):
    """Writes half of the data, then calls `in_the_middle`."""

    cachable = False

    def _open(self, path: str, mode: str = "rb", block_size: int | None = None, **kwargs: Any) -> Any:
        stream = super()._open(path, mode, block_size, **kwargs)
        if "w" not in mode:
            return stream
        write = stream.f.write

        def write_slowly(content: bytes) -> int:
            write(content[: len(content) // 2])
            stream.f.flush()
            self.in_the_middle()
            return int(write(content[len(content) // 2 :]))

        stream.write = write_slowly
        return stream

    def in_the_middle(self) -> None:
        raise OSError(28, "No space left on device")


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
