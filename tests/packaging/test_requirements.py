"""What pyproject.toml promises of versions is what the tests run with, at both ends."""

from __future__ import annotations

import re
import tomllib

import pytest
from packaging.requirements import Requirement

from scripts.lowest_versions import differences, read_bounds
from tests.packaging.conftest import ROOT

TEXT = (ROOT / "pyproject.toml").read_text()
PYPROJECT = tomllib.loads(TEXT)
PROJECT = PYPROJECT["project"]
PINNED = sorted((ROOT / "constraints").glob("airflow-*.txt"))


def test_the_newest_versions_are_within_the_declared_ranges() -> None:
    assert ROOT / "constraints" / "airflow-3.3.txt" in PINNED
    for file in PINNED:
        pins = dict(re.findall(r"^([\w.-]+)==([\w.]+)", file.read_text(), re.MULTILINE))
        for requirement in map(Requirement, PROJECT["dependencies"]):
            assert requirement.specifier.contains(pins[requirement.name]), f"{file.name}: {requirement}"


def test_the_sandbox_wants_no_other_versions_than_the_package() -> None:
    assert set(PROJECT["optional-dependencies"]["sandbox"]) <= set(PROJECT["dependencies"])


def test_every_requirement_has_a_lower_bound_that_is_read() -> None:
    bounds = read_bounds(TEXT)
    assert {f"{name}>={bound}" for name, bound in bounds.items()} == set(PROJECT["dependencies"])


@pytest.mark.parametrize("requirement", ["pillow", "pillow==10.3", "pillow>10.3", "pillow>=10.3,<13", "pillow>=10rc1"])
def test_a_requirement_without_a_plain_lower_bound_is_refused(requirement: str) -> None:
    with pytest.raises(ValueError, match="write it as name>=version"):
        read_bounds(f"[project]\ndependencies = ['{requirement}']\n")


def test_two_bounds_of_one_package_are_refused() -> None:
    extra = "[project.optional-dependencies]\nsandbox = ['pillow>=11']\n"
    with pytest.raises(ValueError, match="10.3 and 11"):
        read_bounds(f"[project]\ndependencies = ['pillow>=10.3']\n{extra}")


def test_a_bound_is_true_where_exactly_it_is_installed() -> None:
    assert differences({"pillow": "10.3", "requests": "2.32.2"}, {"pillow": "10.3.0", "requests": "2.32.2"}) == []


@pytest.mark.parametrize("installed", [{"pillow": "10.3.1"}, {"pillow": "10.30"}, {"pillow": "10.2.9"}, {}])
def test_a_bound_that_is_not_what_is_installed_is_told_with_what_to_do(installed: dict[str, str]) -> None:
    (told,) = differences({"pillow": "10.3"}, installed)
    assert f"pillow is tested with {installed.get('pillow', 'no version')}" in told
    assert "raise the bound" in told


def test_all_that_names_a_python_names_the_same() -> None:
    named = [
        tuple(map(int, classifier.rpartition(" ")[2].split(".")))
        for classifier in PROJECT["classifiers"]
        if re.search(r":: 3\.\d+$", classifier)
    ]
    lowest = named[0]
    assert PROJECT["requires-python"] == f">={'.'.join(map(str, lowest))}"
    assert named == [(3, minor) for minor in range(lowest[1], lowest[1] + len(named))]
    assert PYPROJECT["tool"]["ruff"]["target-version"] == f"py{lowest[0]}{lowest[1]}"
    assert PYPROJECT["tool"]["mypy"]["python_version"] == "{}.{}".format(*lowest)
