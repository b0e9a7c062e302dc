"""A container of the distributed test is restarted if, and only if, a container engine would restart it."""

from __future__ import annotations

import os
from pathlib import Path

from tests.cluster.containers import Container
from tests.events import wait_until

# Without a file named broker, the first process ends at once and leaves another process behind.
_COMMAND = ["sh", "-c", "test -e broker || { sleep 3600 & exit 1; }; exec sleep 3600"]


def container(folder: Path) -> Container:
    return Container("worker-1", _COMMAND, {"PATH": os.environ["PATH"]}, folder)


def test_a_container_that_ended_by_itself_is_restarted_without_its_old_processes(tmp_path: Path) -> None:
    worker = container(tmp_path)
    worker.start()
    try:
        wait_until(lambda: worker.exit_code() == 1, "the end of the process")
        (left,) = worker.processes()
        (tmp_path / "broker").touch()
        worker.restart_if_ended()
        assert left not in worker.processes()
        assert len(worker.ends) == 1
        assert len(worker.sessions) == 2
        worker.restart_if_ended()
        assert worker.exit_code() is None
        assert len(worker.ends) == 1
    finally:
        worker.kill()


def test_a_container_that_was_killed_or_stopped_is_not_restarted(tmp_path: Path) -> None:
    (tmp_path / "broker").touch()
    worker = container(tmp_path)
    for end in (worker.kill, worker.stop):
        worker.start()
        end()
        worker.restart_if_ended()
        assert worker.exit_code() is not None
    assert worker.ends == []
