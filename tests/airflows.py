"""Which Airflow the tests run on, what it has, and what the README's table of versions says that it has."""

from __future__ import annotations

import re
from pathlib import Path

from airflow import __version__
from airflow.triggers.base import BaseTrigger

AIRFLOW = tuple(int(part) for part in __version__.split(".")[:2])
AIRFLOW_3 = AIRFLOW >= (3, 0)
# Task states came to Airflow together with kills of triggers, in 3.3.
HAS_TASK_STATES = hasattr(BaseTrigger, "on_kill")

_README = Path(__file__).parent.parent / "README.md"


def features_here() -> dict[str, str]:
    """Return the cell of each feature for the Airflow that runs; a newer one counts as the newest."""
    table = documented_features()
    minors = {version.rpartition(".")[0]: row for version, row in table.items()}
    return minors.get(__version__.rpartition(".")[0], list(table.values())[-1])


def documented_features() -> dict[str, dict[str, str]]:
    """Return the README's table of versions: for each Airflow, the cell of each feature."""
    table = re.search(r"^\| Airflow \|.*\n(?:\|.*\n)+", _README.read_text(), re.MULTILINE)
    assert table, "the README has no table of versions"
    (_, *features), _, *rows = [
        [cell.strip() for cell in line.strip("|").split(" | ")] for line in table[0].splitlines()
    ]
    return {row[0]: dict(zip(features, row[1:], strict=True)) for row in rows}
