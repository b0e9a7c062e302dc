"""Each test runs where it can show something: on every Airflow, or on the newest alone."""

import re

import pytest

from tests.airflows import NEWEST_ONLY
from tests.packaging.conftest import ROOT

TESTS = ROOT / "tests"


# The Compose file is of the newest Airflow, and held to its settings.
ABOUT_THE_NEWEST = {"cluster"}


@pytest.mark.parametrize("name", sorted({*NEWEST_ONLY} - ABOUT_THE_NEWEST))
def test_what_runs_on_the_newest_airflow_alone_imports_none(name: str) -> None:
    place = TESTS / name
    files = [place] if place.is_file() else list(place.rglob("test_*.py"))
    assert files, f"tests/airflows.py names {name}, which has no tests"
    for file in files:
        assert not re.search(r"^\s*(?:from|import) airflow\b", file.read_text(), re.MULTILINE), file


@pytest.mark.parametrize("folder", ["contract", "integration"])
def test_contract_and_integration_run_on_every_airflow(folder: str) -> None:
    assert not [name for name in NEWEST_ONLY if name.startswith(folder)]


def test_a_release_check_runs_in_full_what_ci_shortens() -> None:
    ci = (ROOT / ".ci" / "run").read_text()
    shortened = set(re.findall(r"make ([\w-]+) ARGS=", ci))
    (recipe,) = re.findall(r"^release-check:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert shortened
    assert set(re.findall(r"^\t\$\(MAKE\) ([\w-]+)$", recipe, re.MULTILINE)) == shortened
