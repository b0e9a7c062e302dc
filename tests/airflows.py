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

_TESTS = Path(__file__).parent
_README = _TESTS.parent / "README.md"

# Folders and files of tests that show nothing an older Airflow could change: they have nothing to do with Airflow, or
# with the newest alone, as the Compose file of `cluster`. `make test-airflow` leaves them out.
NEWEST_ONLY = (
    "chaos",
    "cluster",
    "fuzz",
    "gallery/test_addresses.py",
    "gallery/test_records.py",
    "gallery/test_thumbnails.py",
    "packaging/test_changelog.py",
    "packaging/test_distribution.py",
    "packaging/test_index_readme.py",
    "packaging/test_make_targets.py",
    "packaging/test_requirements.py",
    "packaging/test_selection.py",
    "packaging/test_typing.py",
    "packaging/test_version.py",
    "sandbox",
    "test_arguments.py",
    "test_batch_requests.py",
    "test_batch_totals.py",
    "test_contract.py",
    "test_downloads.py",
    "test_exceptions.py",
    "test_http_answers.py",
    "test_masking.py",
    "test_origins.py",
    "test_polling.py",
    "test_rate_limit.py",
    "test_request_rows.py",
    "test_retries.py",
    "test_retry_after.py",
    "test_spool.py",
    "test_submissions.py",
    "test_verification.py",
)


def is_newest_only(file: Path) -> bool:
    """Whether a file of tests is among the `NEWEST_ONLY`."""
    return any(file.is_relative_to(_TESTS / name) for name in NEWEST_ONLY)


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
