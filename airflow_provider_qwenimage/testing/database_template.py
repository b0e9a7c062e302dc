"""Keeps an empty metadata database in the user's cache, since creating one takes seconds; each test copies it."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path

from airflow_provider_qwenimage._version import __version__

_FOLDER = "airflow-provider-qwenimage"


def copy_template(target: Path, own_folder: Path, create: Callable[[Path], None]) -> None:
    """Copy the database of the installed Airflow; if there is none, or a broken one, create it first.

    Processes that need it at the same time wait for the one that creates it.

    Args:
        target: The new database.
        own_folder: A folder of this process, used if the user's cache is not writable.
        create: Creates a database in a file that does not exist.
    """
    try:
        template = _template(_cache_folder(), create)
    except OSError:
        template = _template(own_folder, create)
    shutil.copyfile(template, target)


def _cache_folder() -> Path:
    """Return the folder for templates.

    Raises:
        OSError: If the user has no home folder.
    """
    root = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not root.is_absolute():
        try:
            root = Path("~/.cache").expanduser()
        except RuntimeError as error:
            raise OSError(str(error)) from error
    return root / _FOLDER


def _template(folder: Path, create: Callable[[Path], None]) -> Path:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    template = folder / _name()
    with _locked(template.with_suffix(".lock")):
        if not _is_whole(template):
            begun = template.with_suffix(".new")
            begun.unlink(missing_ok=True)
            create(begun)
            begun.replace(template)
    return template


@cache
def _name() -> str:
    """Return a name that is the same for two environments only if their databases are."""
    from airflow import __version__ as airflow_version
    from airflow.providers.common.compat.sdk import conf

    # Some providers have tables of their own.
    providers = {
        f"{point.dist.name} {point.dist.version}"
        for point in entry_points(group="apache_airflow_provider")
        if point.dist is not None
    }
    managers = (
        conf.get("core", "auth_manager", fallback=""),
        conf.get("database", "external_db_managers", fallback=""),
    )
    key = "\n".join([__version__, *map(str, managers), *sorted(providers)])
    return f"airflow-{airflow_version}-{hashlib.sha256(key.encode()).hexdigest()[:12]}.db"


@contextlib.contextmanager
def _locked(file: Path) -> Iterator[None]:
    # The end of a process, however it ends, opens its lock.
    with file.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _is_whole(database: Path) -> bool:
    if not database.is_file():
        return False
    with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(database)) as connection:
        (answer,) = connection.execute("PRAGMA quick_check").fetchone()
        versions = connection.execute("SELECT version_num FROM alembic_version").fetchall()
        return answer == "ok" and bool(versions)
    return False
