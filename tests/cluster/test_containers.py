"""A container of the distributed test is started again where an engine would do it, and only there."""

from __future__ import annotations

import os
from pathlib import Path

from tests.cluster.containers import Container
from tests.events import wait_until

# Its first process ends at once, as long as there is no file of that name, and leaves another one behind.
_COMMAND = ["sh", "-c", "test -e broker || { sleep 3600 & exit 1; }; exec sleep 3600"]


def container(folder: Path) -> Container:
    return Container("worker-1", _COMMAND, {"PATH": os.environ["PATH"]}, folder)


def test_what_ended_by_itself_is_started_again_without_what_it_left(tmp_path: Path) -> None:
    worker = container(tmp_path)
    worker.start()
    try:
        wait_until(lambda: worker.exit_code() == 1, "the end of the process")
        (left,) = worker.processes()
        (tmp_path / "broker").touch()
        worker.start_if_it_ended()
        assert left not in worker.processes()
        assert len(worker.ends) == 1
        assert len(worker.sessions) == 2
        worker.start_if_it_ended()
        assert worker.exit_code() is None
        assert len(worker.ends) == 1
    finally:
        worker.kill()


def test_what_was_killed_or_stopped_stays_so(tmp_path: Path) -> None:
    (tmp_path / "broker").touch()
    worker = container(tmp_path)
    for end in (worker.kill, worker.stop):
        worker.start()
        end()
        worker.start_if_it_ended()
        assert worker.exit_code() is not None
    assert worker.ends == []
