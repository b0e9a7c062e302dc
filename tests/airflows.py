"""The Airflow that the tests run on, and the tests that need only the newest one."""

from __future__ import annotations

from pathlib import Path

from airflow import __version__
from airflow.triggers.base import BaseTrigger

AIRFLOW = tuple(int(part) for part in __version__.split(".")[:2])
AIRFLOW_3 = AIRFLOW >= (3, 0)
# The newest release: all tests run on it.
IS_NEWEST = AIRFLOW == (3, 3)
# Airflow 3.3 added task states together with `on_kill` of triggers.
HAS_TASK_STATES = hasattr(BaseTrigger, "on_kill")

_TESTS = Path(__file__).parent
# The lowest versions of all dependencies, with a patch of Airflow 2.11 that no other environment has.
_LOWEST = (_TESTS.parent / "constraints" / "lowest.txt").read_text().splitlines()
IS_LOWEST = f"apache-airflow=={__version__}" in _LOWEST

# Folders and files of tests whose result does not depend on the version of Airflow, or that need the newest one, as the
# Compose file of `cluster` does. `make test-airflow` skips them.
NEWEST_ONLY = (
    "books/test_documented_queries.py",
    "chaos",
    "cluster",
    "doctor/test_drawing.py",
    "doctor/test_findings.py",
    "fuzz",
    "gallery/test_addresses.py",
    "gallery/test_records.py",
    "gallery/test_thumbnails.py",
    "packaging/test_distribution.py",
    "packaging/test_docs_site.py",
    "packaging/test_index_readme.py",
    "packaging/test_make_targets.py",
    "packaging/test_requirements.py",
    "packaging/test_selection.py",
    "packaging/test_typing.py",
    "packaging/test_up.py",
    "packaging/test_version.py",
    "publish/test_loading.py",
    "publish/test_prompt_patterns.py",
    "recordings",
    "sandbox",
    "test_arguments.py",
    "test_batch_requests.py",
    "test_batch_totals.py",
    "test_choices.py",
    "test_books_rules.py",
    "test_contract.py",
    "test_contract_facts.py",
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
    "test_signed_urls.py",
    "test_spool.py",
    "test_submission_facts.py",
    "test_submissions.py",
    "test_tries.py",
    "test_verification.py",
)


# Tests whose result depends only on whether Airflow has task states: they run on the oldest Airflow, and on those that
# have them.
DEPEND_ON_TASK_STATES = (
    "integration/test_batch_restarts.py",
    "integration/test_books.py",
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
    "test_lettering.py",
    "test_records.py",
)

# Tests that run on the oldest and the newest Airflow only, because the others differ in nothing that they use. The
# oldest is that of `make test-lowest`, except for integration tests, which CI leaves out there.
OLDEST_AND_NEWEST = (
    # The clients: of Airflow they use connections, whose form changed with Airflow 3.
    "contract",
    "test_shared_clients.py",
    # Storage: Airflow 2.11, 3.0 and 3.1 come with universal-pathlib 0.2, later ones with 0.3.
    "object_storage",
    "test_candidates.py",
    "test_changed_files.py",
    "test_created_files.py",
    "test_files_in_the_way.py",
    "test_images.py",
    "test_refused_images.py",
    "test_scratch.py",
    "test_storage.py",
    "test_storage_libraries.py",
    "test_stored_images.py",
    # How tasks end: the exceptions that Airflow acts on have been the same ones since Airflow 2.
    "integration/test_failing.py",
    "integration/test_own_authorities.py",
    "integration/test_pauses.py",
    "integration/test_request_files.py",
    "test_counting.py",
    "test_failures.py",
    # A batch is one task for Airflow; integration/test_example_batch.py runs everywhere.
    "integration/test_batch.py",
    "integration/test_datasets.py",
    "publish/test_contact_sheets.py",
    "publish/test_imagefolder.py",
    "publish/test_provenance.py",
    "integration/test_contact_sheets.py",
    "books/test_budgets_of_processes.py",
    # The books: of Airflow they use hooks of databases. books/test_budgets_at_once.py and test_reports.py run on each,
    # since Airflows have different versions of SQLAlchemy.
    "books/test_command.py",
    "books/test_first_use.py",
    "books/test_outages.py",
    "books/test_settling.py",
    "books/test_strange_values.py",
    # What is rendered and refused: Jinja and the package's own arguments.
    "integration/test_arguments.py",
    "packaging/test_imports.py",
    "test_batch_plan.py",
    "test_documentation.py",
    # The output of commands. The checks of Airflow in `doctor` are tested on each one.
    "doctor/test_command.py",
    "test_command_output.py",
    # The gallery's own limits. Its pages, their access rules and its queries are tested on each Airflow that has it.
    "gallery/test_bounded_cache.py",
    "gallery/test_manifests.py",
    "gallery/test_s3.py",
    "gallery/test_storage_that_hangs.py",
)


def runs_elsewhere(file: Path) -> bool:
    """Whether a file of tests need not run on this Airflow, because its result on others is enough."""
    names: tuple[str, ...] = NEWEST_ONLY
    if AIRFLOW_3 and not HAS_TASK_STATES:
        names += DEPEND_ON_TASK_STATES
    if AIRFLOW_3 and not IS_NEWEST:
        names += OLDEST_AND_NEWEST
    if not AIRFLOW_3 and not IS_LOWEST:
        both = DEPEND_ON_TASK_STATES + OLDEST_AND_NEWEST
        names += tuple(name for name in both if not name.startswith("integration/"))
    return any(file.is_relative_to(_TESTS / name) for name in names)
