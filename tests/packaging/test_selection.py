"""Tests run on every Airflow if it can change their result, otherwise only on the newest."""

import re

import pytest

from tests.airflows import AIRFLOW, DEPEND_ON_TASK_STATES, IS_NEWEST, NEWEST_ONLY, OLDEST_AND_NEWEST
from tests.packaging.conftest import ROOT

TESTS = ROOT / "tests"


# The Compose file uses the newest Airflow, and its tests read the settings of that Airflow.
ABOUT_THE_NEWEST = {"cluster"}


@pytest.mark.parametrize("name", sorted({*NEWEST_ONLY} - ABOUT_THE_NEWEST))
def test_tests_that_run_only_on_the_newest_airflow_do_not_import_airflow(name: str) -> None:
    place = TESTS / name
    files = [place] if place.is_file() else list(place.rglob("test_*.py"))
    assert files, f"tests/airflows.py names {name}, which has no tests"
    for file in files:
        assert not re.search(r"^\s*(?:from|import) airflow\b", file.read_text(), re.MULTILINE), file


@pytest.mark.parametrize("name", [*DEPEND_ON_TASK_STATES, *OLDEST_AND_NEWEST])
def test_tests_that_some_airflows_leave_out_exist(name: str) -> None:
    assert (TESTS / name).is_file() or list((TESTS / name).glob("test_*.py"))


def test_the_newest_release_leaves_out_no_tests() -> None:
    (newest,) = re.findall(r"^NEWEST_AIRFLOW := (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert (tuple(map(int, newest.split(".")[:2])) == AIRFLOW) == IS_NEWEST


@pytest.mark.parametrize("folder", ["contract", "integration"])
def test_no_contract_or_integration_test_runs_on_the_newest_airflow_only(folder: str) -> None:
    assert not [name for name in NEWEST_ONLY if name.startswith(folder)]


def test_a_release_check_runs_every_command_that_ci_shortens() -> None:
    ci = (ROOT / ".ci" / "run").read_text()
    shortened = set(re.findall(r'(?:make|"\$\{make_in_venv\[@\]\}") ([\w-]+) ARGS=', ci))
    (recipe,) = re.findall(r"^release-check:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert shortened
    assert set(re.findall(r"^\t\$\(MAKE\) ([\w-]+)$", recipe, re.MULTILINE)) == shortened
