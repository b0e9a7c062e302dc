"""Gather the evidence: the sandbox's books, combined across its restarts, and the logs of tasks."""

from __future__ import annotations

import re
import threading
from collections import defaultdict
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests

from airflow_provider_qwenimage.sandbox.access import CONTROL_HEADERS
from tests.chaos.cluster import InstanceKey
from tests.integration.standalone import wait_for

_ATTEMPT = re.compile(r"attempt=(\d+)\.log$")
_RECORDED_REQUESTS = 1_000_000
_SETTINGS = {
    "request_log_size": _RECORDED_REQUESTS,
    "unauthorized_share": 0.02,
    "forbidden_share": 0.02,
    "not_found_share": 0.02,
    "unknown_seconds": 1.0,
    # A submission that is refused ends its task, rightly.
    "fault_paths": ["status"],
}
_START_SECONDS = 300


class Books:
    """The sandbox's books, read over HTTP and combined across its restarts."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._lock = threading.Lock()
        self._requests: dict[tuple[float, int | None], dict[str, Any]] = {}
        self.submissions: list[dict[str, Any]] = []

    @property
    def port(self) -> int:
        port = urlsplit(self.url).port
        assert port is not None
        return port

    def configure_sandbox(self) -> None:
        """Make the sandbox keep every request and refuse some status reads; to be called after each of its starts."""
        wait_for("the sandbox", self._configure, _START_SECONDS)

    def _configure(self) -> bool:
        try:
            answer = requests.patch(f"{self.url}/sandbox/settings", json=_SETTINGS, headers=CONTROL_HEADERS, timeout=30)
        except requests.ConnectionError:
            return False
        answer.raise_for_status()
        return True

    def answer_every_read(self) -> None:
        """Make the sandbox refuse no status read any more."""
        settings = {"fault_paths": ["image"], "unknown_seconds": 0.0}
        url = f"{self.url}/sandbox/settings"
        requests.patch(url, json=settings, headers=CONTROL_HEADERS, timeout=30).raise_for_status()

    def collect(self) -> None:
        """Read the current books."""
        answer = requests.get(f"{self.url}/sandbox/books?last={_RECORDED_REQUESTS}", timeout=60)
        answer.raise_for_status()
        books = answer.json()
        with self._lock:
            self.submissions = books["submissions"]
            for record in books["requests"]:
                self._requests[record["time"], record["client_port"]] = record

    def status_reads(self) -> list[dict[str, Any]]:
        """Return the collected status requests, oldest first."""
        with self._lock:
            reads = [record for record in self._requests.values() if record["route"] == "status"]
        return sorted(reads, key=lambda record: float(record["time"]))

    def charged(self, prompts: Collection[str]) -> dict[str, float]:
        """Return what was charged for each image task of some prompts."""
        return {one["task_id"]: one["charged"] for one in self.submissions if one["request"]["prompt"] in prompts}

    def accepted_ids(self) -> dict[str, list[str]]:
        """Return the ids of the accepted image tasks of each prompt."""
        found: dict[str, list[str]] = defaultdict(list)
        for submission in self.submissions:
            found[submission["request"]["prompt"]].append(submission["task_id"])
        return found


def last_try(logs: Path, run_id: str, key: InstanceKey) -> str:
    """Return the log of a task's last try, or an empty text."""
    dag_id, task_id, map_index = key
    folder = logs / f"dag_id={dag_id}" / f"run_id={run_id}" / f"task_id={task_id}" / f"map_index={map_index}"
    numbered = {int(match[1]): file for file in _files(folder) if (match := _ATTEMPT.search(file.name))}
    return numbered[max(numbered)].read_text(errors="replace") if numbered else ""


def _files(folder: Path) -> Iterable[Path]:
    return folder.iterdir() if folder.is_dir() else ()
