"""The local folders of batches: each live process has its own, and dead ones leave none behind."""

from __future__ import annotations

import fcntl
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from airflow_provider_qwenimage.batch.scratch import scratch_folder

HOLD = """
import sys, tempfile, time
from airflow_provider_qwenimage.batch.scratch import scratch_folder
tempfile.tempdir = sys.argv[1]
with scratch_folder("us") as folder:
    (folder / "spool").write_text("rows")
    print(folder, flush=True)
    time.sleep(600)
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Use an empty folder for temporary files."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def test_a_folder_is_removed_with_its_process_even_after_an_error(temporary: Path) -> None:
    def crash() -> None:
        with scratch_folder("us") as folder:
            (folder / "spool").write_text("rows")
            assert folder.name.startswith("qwenimage-batch-us-")
            assert names(temporary) == [folder.name]
            raise RuntimeError("a crash")

    with pytest.raises(RuntimeError, match="a crash"):
        crash()
    assert names(temporary) == []


def test_two_live_processes_of_one_task_have_a_folder_each_and_a_dead_one_leaves_none(temporary: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, str(temporary)], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            other = Path(process.stdout.readline().strip())
            with scratch_folder("us") as own, scratch_folder("us") as third:
                assert len({own, third, other}) == 3
                assert (other / "spool").read_text() == "rows"
                assert own.exists()
            assert names(temporary) == [other.name]
        finally:
            process.send_signal(signal.SIGKILL)
    assert names(temporary) == [other.name], "a killed process cannot remove it"
    with scratch_folder("someone else"):
        assert other.exists()
    with scratch_folder("us") as own:
        assert names(temporary) == [own.name]


def test_a_folder_of_another_host_is_left_alone(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = temporary / "qwenimage-batch-us-left"
    left.mkdir()
    (left / ".lock").write_text("another-host")
    with scratch_folder("us"):
        assert left.exists()
    monkeypatch.setattr(socket, "gethostname", lambda: "another-host")
    with scratch_folder("us"):
        assert not left.exists()


def test_a_folder_without_a_lock_may_be_of_a_live_process(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: int) -> None:
        raise OSError("No locks available")

    flock = fcntl.flock
    monkeypatch.setattr(fcntl, "flock", refuse)
    with scratch_folder("us") as folder:
        monkeypatch.setattr(fcntl, "flock", flock)
        with scratch_folder("us"):
            assert folder.exists()
    assert names(temporary) == []
