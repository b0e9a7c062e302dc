"""What commands print reaches whoever reads it, and nobody has to read it to the end."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from airflow_provider_qwenimage.cli.output import write_line
from tests.packaging.conftest import ROOT


def test_a_pipe_whose_reader_has_gone_takes_every_line_and_can_be_closed() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stream:
        for number in range(3):
            write_line(stream, f"line {number}")


def test_a_file_that_is_full_is_an_error() -> None:
    # Closing it would be the same error again.
    with pytest.raises(OSError, match="No space left"), Path("/dev/full").open("w") as stream:
        write_line(stream, "lost")


def test_characters_that_the_encoding_lacks_are_escaped() -> None:
    written = io.BytesIO()
    stream = io.TextIOWrapper(written, encoding="ascii")
    write_line(stream, "Füchslein 🦊")
    assert written.getvalue() == b"F\\xfcchslein \\U0001f98a\n"


@pytest.mark.parametrize(
    "shell", ['exec "$@" >&-', 'exec "$@" <&- 2>&-', '"$@" | true'], ids=["no output", "nothing else", "a pipe"]
)
@pytest.mark.parametrize("command", ["plan", "doctor"])
def test_a_command_needs_none_of_its_streams(shell: str, command: str, tmp_path: Path) -> None:
    requests = tmp_path / "requests.jsonl"
    requests.write_text('{"prompt": "a fox"}\n')
    arguments = {
        "plan": ["plan", str(requests), "--output-path", str(tmp_path)],
        "doctor": ["doctor", "--draw", "--conn-id", "nobody"],
    }
    ran = subprocess.run(
        ["bash", "-o", "pipefail", "-c", shell, "bash", sys.executable, "-m", "airflow_provider_qwenimage.cli"]
        + arguments[command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert "Traceback" not in ran.stderr
    assert ran.returncode == {"plan": 0, "doctor": 1}[command]
