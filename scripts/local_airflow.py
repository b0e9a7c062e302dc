"""An Airflow of this checkout, with its own home, database and settings; it ignores the user's Airflow."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / ".demo"

_STOP_SECONDS = 8.0
_INTERRUPTED = 130


class AirflowCommandError(Exception):
    """An Airflow command ended with an error."""


class CannotGoOnError(Exception):
    """A program cannot continue; the message says why and what to do."""


class LocalAirflow:
    """Runs Airflow's commands in their own home, on SQLite.

    Args:
        name: The home's name below ``.airflow``.
        settings: More environment variables for every command, such as ``AIRFLOW__API__PORT``.
    """

    def __init__(self, name: str, settings: Mapping[str, str]) -> None:
        self.home = ROOT / ".airflow" / name
        self.log = self.home / f"{name}.log"
        self.version = version("apache-airflow")
        # Airflow writes the paths of its home into its configuration: a moved checkout needs another one.
        self._stamp = f"{self.version} in {self.home}"
        self.environment = _without_the_users_airflow(os.environ) | {
            "AIRFLOW_HOME": str(self.home),
            "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "example_dags"),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            # The demo sends no usage data.
            "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
            "PYTHONUNBUFFERED": "1",
            "QWENIMAGE_OUTPUT_PATH": f"file://{IMAGES}",
            **settings,
        }
        self.home.mkdir(parents=True, exist_ok=True)
        self.log.write_text("")

    @property
    def is_prepared(self) -> bool:
        """Whether the database exists and belongs to this version of Airflow and this folder."""
        stamp = self.home / "migrated"
        return stamp.is_file() and stamp.read_text() == self._stamp

    def prepare(self) -> None:
        """Create the database, unless `is_prepared`.

        Raises:
            AirflowCommandError: If Airflow failed to create it.
        """
        if self.is_prepared:
            return
        # An incomplete database, or one of another version: it contains nothing that is worth a migration.
        log = self.log.read_text()
        shutil.rmtree(self.home)
        self.home.mkdir(parents=True)
        self.log.write_text(log)
        self.run("db", "migrate")
        (self.home / "migrated").write_text(self._stamp)

    def run(self, *arguments: str) -> None:
        """Run an Airflow command and wait for its end.

        Raises:
            AirflowCommandError: If it fails.
        """
        process = self.start(*arguments)
        try:
            code = process.wait()
        finally:
            stop(process, patience=2.0)
        if code:
            raise AirflowCommandError(f"airflow {' '.join(arguments[:2])} ended with exit code {code}.")

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start an Airflow command; its output goes to the log."""
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "airflow", *arguments],
                cwd=self.home,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # A separate process group: Ctrl-C reaches only this program, which stops the command in order.
                start_new_session=True,
            )

    def last_log_lines(self, number: int) -> list[str]:
        """Return the last lines of the log."""
        with self.log.open(errors="replace") as log:
            return [line.rstrip() for line in deque(log, maxlen=number)]


def stop(process: subprocess.Popen[bytes], patience: float = _STOP_SECONDS) -> None:
    """Stop a process of `LocalAirflow.start` and everything it started, including processes in other process groups.

    Args:
        patience: Seconds until it is killed; some of Airflow's commands never end by themselves.
    """
    if process.poll() is not None:
        _signal_group(process.pid, signal.SIGKILL)
        return
    family = _family(process.pid)
    _signal_group(process.pid, signal.SIGTERM)
    _kill_late(family, patience)
    _signal_group(process.pid, signal.SIGKILL)
    process.wait()


def _stop_children() -> None:
    """Stop all running processes that this one started."""
    children = psutil.Process().children(recursive=True)
    for child in children:
        with suppress(psutil.NoSuchProcess):
            child.terminate()
    _kill_late(children, _STOP_SECONDS)


def _kill_late(processes: list[psutil.Process], patience: float) -> None:
    _, alive = psutil.wait_procs(processes, timeout=patience)
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def _family(pid: int) -> list[psutil.Process]:
    try:
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _signal_group(group: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _without_the_users_airflow(environment: Mapping[str, str]) -> dict[str, str]:
    # AIRFLOW_CONN_…, AIRFLOW__… and PYTHONPATH would change this Airflow; the key is passed only where it is needed.
    ours = ("AIRFLOW", "PYTHON", "QWENIMAGE_")
    kept = {name: value for name, value in environment.items() if not name.startswith(ours)}
    # The sandbox runs on this machine, so requests to it must not go through a proxy.
    for name in ("NO_PROXY", "no_proxy"):
        kept[name] = _joined([kept.get(name, ""), "127.0.0.1", "localhost"])
    return kept


def _joined(names: Iterable[str]) -> str:
    return ",".join(name for name in names if name)


def run_to_the_end(run: Callable[[], None]) -> int:
    """Run a program until it ends, fails or is interrupted, and stop what it started.

    Returns:
        The exit code.
    """
    _interrupt_once()
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")
    try:
        run()
    except KeyboardInterrupt:
        _stop_children()
        print("\nStopped. Nothing is left running.")
        return _INTERRUPTED
    except CannotGoOnError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    return 0


def _interrupt_once() -> None:
    """Treat signals that end a program as Ctrl-C, so that started processes are stopped in order.

    Further signals are ignored: make and the terminal both send one, and stopping takes a few seconds.
    """
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def interrupt(_number: int, _frame: object) -> None:
        for each in signals:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    for each in signals:
        signal.signal(each, interrupt)
