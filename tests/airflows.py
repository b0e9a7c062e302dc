"""The Airflow that the tests run on, and the tests that need only the newest one."""

from __future__ import annotations

from pathlib import Path

from airflow import __version__
from airflow.triggers.base import BaseTrigger

AIRFLOW = tuple(int(part) for part in __version__.split(".")[:2])
AIRFLOW_3 = AIRFLOW >= (3, 0)
# Airflow 3.3 added task states together with `on_kill` of triggers.
HAS_TASK_STATES = hasattr(BaseTrigger, "on_kill")

_TESTS = Path(__file__).parent

# Folders and files of tests whose result does not depend on the version of Airflow, or that need the newest one, as the
# Compose file of `cluster` does. `make test-airflow` skips them.
NEWEST_ONLY = (
    "chaos",
    "cluster",
    "fuzz",
    "gallery/test_addresses.py",
    "gallery/test_records.py",
    "gallery/test_thumbnails.py",
    "packaging/test_distribution.py",
    "packaging/test_index_readme.py",
    "packaging/test_make_targets.py",
    "packaging/test_requirements.py",
    "packaging/test_selection.py",
    "packaging/test_typing.py",
    "packaging/test_up.py",
    "packaging/test_version.py",
    "sandbox",
    "test_arguments.py",
    "test_batch_requests.py",
    "test_batch_totals.py",
    "test_contract.py",
    "test_downloads.py",
    "test_exceptions.py",
    "test_http_answers.py",
    "test_made_by.py",
    "test_masking.py",
    "test_origins.py",
    "test_polling.py",
    "test_rate_limit.py",
    "test_request_rows.py",
    "test_retries.py",
    "test_retry_after.py",
    "test_spool.py",
    "test_submission_facts.py",
    "test_submissions.py",
    "test_tries.py",
    "test_verification.py",
)


# Tests whose result depends only on whether Airflow has task states: they run on the oldest and the newest Airflow.
OLDEST_AND_NEWEST = (
    "integration/test_batch_restarts.py",
    "integration/test_contradicting_answers.py",
    "integration/test_credit_limits.py",
    "integration/test_earlier_records.py",
    "integration/test_equal_requests.py",
    "integration/test_equal_rows.py",
    "integration/test_files_in_the_way.py",
    "integration/test_foreign_files.py",
    "integration/test_image_names.py",
    "integration/test_max_credits.py",
    "integration/test_object_storage.py",
    "integration/test_reuse.py",
    "integration/test_several_submissions.py",
    "integration/test_shared_folder.py",
    "integration/test_submission_records.py",
    "test_drawing.py",
    "test_ledger.py",
    "test_ledger_stores.py",
    "test_records.py",
)


def runs_elsewhere(file: Path) -> bool:
    """Whether a file of tests need not run on this Airflow, because its result on others is enough."""
    names = NEWEST_ONLY if HAS_TASK_STATES or not AIRFLOW_3 else NEWEST_ONLY + OLDEST_AND_NEWEST
    return any(file.is_relative_to(_TESTS / name) for name in names)
