"""Points Airflow at a home and a database of its own for a while, also if it has read its configuration already."""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_qwenimage.testing.database_template import copy_template


@contextlib.contextmanager
def own_airflow() -> Iterator[None]:
    """Give Airflow a new home with an empty database; at the end, everything is as it was before.

    The user's ``airflow.cfg`` has no effect. Settings in the environment do, except those that name a place where
    Airflow keeps or sends something, and so do connections and variables (``AIRFLOW_CONN_…``, ``AIRFLOW_VAR_…``).
    """
    _import_airflow()
    # Before anything is replaced: the parser of the task SDK reads the file at its first use.
    configurations = _configurations()
    with (
        tempfile.TemporaryDirectory(prefix="qwenimage-airflow-", ignore_cleanup_errors=True) as folder,
        pytest.MonkeyPatch.context() as patch,
        _own_task_variables(),
    ):
        home = Path(folder)
        (home / "dags").mkdir()
        for name in [name for name in os.environ if name.startswith("AIRFLOW__DATABASE__")]:
            patch.delenv(name)
        for name, value in _environment(home).items():
            patch.setenv(name, value)
        for configuration in configurations:
            contents = vars(configuration)["_sections"]
            # Defaults are elsewhere, except in Airflow's unit test mode, which ignores the user's file.
            if contents.get("core", {}).get("unit_test_mode") != "True":
                patch.setattr(configuration, "_sections", {})
        _load_all()
        copy_template(home / _DATABASE, _own_folder(), _create_database)
        with _database(home / _DATABASE), _own_secrets():
            yield


_DATABASE = "airflow.db"


def _environment(home: Path) -> dict[str, str]:
    bundle = '{"name": "dags-folder", "classpath": "airflow.dag_processing.bundles.local.LocalDagBundle", "kwargs": {}}'
    return {
        "AIRFLOW_CONFIG": str(home / "airflow.cfg"),
        "AIRFLOW_HOME": str(home),
        # Its backend of XComs reads it once in a process.
        "AIRFLOW__COMMON_IO__XCOM_OBJECTSTORAGE_PATH": f"file://{_own_folder() / 'xcoms'}",
        "AIRFLOW__CORE__DAGS_FOLDER": str(home / "dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        # A changed DAG is stored at once, not after 30 seconds.
        "AIRFLOW__CORE__MIN_SERIALIZED_DAG_UPDATE_INTERVAL": "0",
        "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST": f"[{bundle}]",
        "AIRFLOW__DATABASE__LOAD_DEFAULT_CONNECTIONS": "False",
        "AIRFLOW__LOGGING__BASE_LOG_FOLDER": str(home / "logs"),
        "AIRFLOW__LOGGING__REMOTE_LOGGING": "False",
        "AIRFLOW__METRICS__OTEL_ON": "False",
        "AIRFLOW__METRICS__STATSD_ON": "False",
        "AIRFLOW__OPENLINEAGE__DISABLED": "True",
        "AIRFLOW__SECRETS__BACKEND": "",
        "AIRFLOW__SENTRY__SENTRY_ON": "False",
        "AIRFLOW__TRACES__OTEL_ON": "False",
        "AIRFLOW__WORKERS__SECRETS_BACKEND": "",
    }


def _import_airflow() -> None:
    """Import Airflow with a home and a configuration of its own, since its import reads and writes there."""
    if "airflow.settings" in sys.modules:
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRFLOW_HOME", str(_own_folder()))
        patch.setenv("AIRFLOW_CONFIG", str(_own_folder() / "airflow.cfg"))
        patch.setenv("AIRFLOW__LOGGING__BASE_LOG_FOLDER", str(_own_folder() / "logs"))
        patch.setenv("AIRFLOW__LOGGING__REMOTE_LOGGING", "False")
        import airflow.settings  # noqa: F401 - its import configures Airflow

        # Others are created at their first use.
        _configurations()


def _configurations() -> list[Any]:
    """Return all parsers of the configuration file."""
    from airflow.configuration import conf

    sdk = _sdk_configuration()
    return [conf] if sdk is None else [conf, sdk.conf]


def _sdk_configuration() -> Any:
    """Return the module with which the task SDK reads the file itself, from Airflow 3.2 on."""
    # In Airflow 2 there is no SDK.
    if not find_spec("airflow.sdk") or not find_spec("airflow.sdk.configuration"):
        return None
    return import_module("airflow.sdk.configuration")


@cache
def _own_folder() -> Path:
    """Return a folder that exists until the process ends."""
    folder = tempfile.mkdtemp(prefix="qwenimage-airflow-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


@cache
def _load_all() -> None:
    """Run a task once, since the first one loads most of Airflow.

    It is not part of the time of a test's DAG run: an interruption would leave Airflow half-loaded.
    """
    from airflow_provider_qwenimage.testing import dag_test

    with tempfile.TemporaryDirectory(dir=_own_folder()) as folder:
        database = Path(folder, _DATABASE)
        copy_template(database, _own_folder(), _create_database)
        with _database(database):
            dag_test.run_once(dag_test.smallest_dag(), None, None)


def _create_database(file: Path) -> None:
    from airflow.models.base import metadata

    if metadata.schema:
        # The creation looks for this schema in SQLite, so an Airflow without one does it.
        command = [sys.executable, "-c", "from airflow.utils.db import initdb; initdb()"]
        paths = os.pathsep.join(path for path in sys.path if path)
        subprocess.run(command, check=True, env=os.environ | _location(file) | {"PYTHONPATH": paths})  # noqa: S603
        return
    from airflow.utils.db import initdb

    with _database(file):
        initdb()


def _location(file: Path) -> dict[str, str]:
    return {
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{file}",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN_ASYNC": f"sqlite+aiosqlite:///{file}",
    }


@contextlib.contextmanager
def _database(file: Path) -> Iterator[None]:
    """Make a file Airflow's database for a while."""
    from airflow import settings

    with pytest.MonkeyPatch.context() as patch:
        for name, value in _location(file).items():
            patch.setenv(name, value)
        before = dict(vars(settings))
        try:
            settings.configure_vars()
            settings.configure_orm()
            _ignore_schema(settings)
            # Up to Airflow 3.1 it is read at the import.
            patch.setattr(settings, "MIN_SERIALIZED_DAG_UPDATE_INTERVAL", 0, raising=False)
            yield
        finally:
            _close(settings)
            for name, value in before.items():
                if getattr(settings, name, None) is not value:
                    setattr(settings, name, value)


def _ignore_schema(settings: Any) -> None:
    """Find the tables in SQLite, which has no schemas, also if Airflow was imported with one for PostgreSQL."""
    from airflow.models.base import metadata

    if metadata.schema:
        for engine in _engines(settings):
            engine.update_execution_options(schema_translate_map={metadata.schema: None})


def _engines(settings: Any) -> list[Any]:
    asynchronous = getattr(settings, "async_engine", None)
    engines = (settings.engine, asynchronous and asynchronous.sync_engine)
    return [engine for engine in engines if engine is not None]


def _close(settings: Any) -> None:
    """Close all connections to the database, of the current sessions as well."""
    if settings.Session is not None:
        settings.Session.remove()
    for engine in _engines(settings):
        engine.dispose()


@contextlib.contextmanager
def _own_secrets() -> Iterator[None]:
    """Look up connections and variables in the environment and the database only."""
    from airflow import configuration

    # Other modules have imported the list.
    backends = configuration.secrets_backend_list
    before = list(backends)
    backends[:] = configuration.initialize_secrets_backends()
    try:
        with pytest.MonkeyPatch.context() as patch:
            if (sdk := _sdk_configuration()) is not None:
                # It keeps the backends that it has used.
                patch.setattr(sdk, "_secrets_backend_cache", {}, raising=False)
            yield
    finally:
        backends[:] = before


@contextlib.contextmanager
def _own_task_variables() -> Iterator[None]:
    """Remove the environment variables that running tasks set."""

    def names() -> list[str]:
        return [name for name in os.environ if name.startswith("AIRFLOW_CTX_")]

    before = {name: os.environ[name] for name in names()}
    try:
        yield
    finally:
        for name in names():
            del os.environ[name]
        os.environ |= before
