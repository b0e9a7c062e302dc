"""Settle the books with the command of the package, as a user does."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

_SECONDS = 300
# The API that answers with faults may be unlucky.
_TRIES = 3
# All accounts in one process: the start of Airflow's command line takes seconds.
_SCRIPT = """
import json, sys
from airflow.cli.cli_parser import get_parser

parser = get_parser()
for words in json.load(sys.stdin):
    arguments = parser.parse_args(words)
    arguments.func(arguments)
"""


def settle_books(environment: Mapping[str, str], conn_ids: Iterable[str], folders: Iterable[Path]) -> None:
    """Run `airflow qwenimage books settle` for each account.

    Args:
        environment: The environment of an Airflow that has the connections.
        conn_ids: The accounts.
        folders: The folders of images, whose records are read.

    Raises:
        AssertionError: If it ends with an error again and again.
    """
    options = [word for folder in folders for word in ("--output-path", f"file://{folder}")]
    commands = [["qwenimage", "books", "settle", "--conn-id", conn_id, *options] for conn_id in conn_ids]
    for _ in range(_TRIES):
        ended = subprocess.run(
            [sys.executable, "-c", _SCRIPT],
            env=dict(environment),
            input=json.dumps(commands),
            capture_output=True,
            text=True,
            check=False,
            timeout=_SECONDS,
        )
        if ended.returncode == 0:
            return
    raise AssertionError(f"the books could not be settled:\n{ended.stdout[-2000:]}\n{ended.stderr[-2000:]}")
