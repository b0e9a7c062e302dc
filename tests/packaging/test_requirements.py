"""The tests run with the lowest and the newest versions that pyproject.toml allows."""

from __future__ import annotations

import re
import sys
import tomllib
from importlib.metadata import version
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tests.packaging.conftest import ROOT

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
# What the package imports: always, and with an extra.
REQUIREMENTS = sorted({*PROJECT["dependencies"], *chain.from_iterable(PROJECT["optional-dependencies"].values())})
PINNED = sorted((ROOT / "constraints").glob("airflow-*.txt"))


def test_the_newest_versions_are_within_the_declared_ranges() -> None:
    assert ROOT / "constraints" / "airflow-3.3.txt" in PINNED
    for file in PINNED:
        pins = dict(re.findall(r"^([\w.-]+)==([\w.]+)", file.read_text(), re.MULTILINE))
        for requirement in map(Requirement, REQUIREMENTS):
            assert requirement.specifier.contains(pins[requirement.name]), f"{file.name}: {requirement}"


def test_the_sandbox_extra_has_the_same_lower_bounds_as_the_package() -> None:
    assert set(PROJECT["optional-dependencies"]["sandbox"]) <= set(PROJECT["dependencies"])


def test_make_test_lowest_installs_every_lower_bound() -> None:
    pins = re.findall(r"^([\w-]+)==([\d.]+)$", (ROOT / "constraints" / "lowest.txt").read_text(), re.MULTILINE)
    assert sorted(f"{name}>={bound}" for name, bound in pins) == REQUIREMENTS


@pytest.mark.skipif(Path(sys.prefix).name != "lowest", reason="is about the environment of make test-lowest")
def test_exactly_the_lower_bounds_are_installed() -> None:
    installed = {requirement: version(Requirement(requirement).name) for requirement in REQUIREMENTS}
    for requirement, number in installed.items():
        (bound,) = Requirement(requirement).specifier
        assert Version(number) == Version(bound.version), (
            f"{requirement}: run make again, or raise the bound and say why"
        )


def test_tox_and_make_have_the_same_airflows_and_pythons() -> None:
    makefile = (ROOT / "Makefile").read_text()
    older, newest, following = re.findall(r"^(?:OLDER|NEWEST|NEXT)_AIRFLOWS? := (.+)$", makefile, re.MULTILINE)
    minors = [number.rpartition(".")[0] for number in (*older.split(), following, newest)]
    environments = PYPROJECT["tool"]["tox"]["env"]
    assert set(environments) == set(PYPROJECT["tool"]["tox"]["env_list"])
    constraints = {name: environment["constraints"] for name, environment in environments.items()}
    names = {f"airflow{minor}": [f"constraints/airflow-{minor}.txt"] for minor in minors}
    (pythons,) = re.findall(r"^OTHER_PYTHONS := (.+)$", makefile, re.MULTILINE)
    others = [f"python{python}" for python in pythons.split()]
    in_newest = dict.fromkeys(("dev", "demo", "mariadb", *others), names.pop(f"airflow{minors[-1]}"))
    own = {name: [f"constraints/{name}.txt"] for name in ("lowest", "datasets")}
    assert constraints == own | in_newest | names
    assert all(environments[name]["base_python"] == [name] for name in others)
    assert environments["lowest"]["set_env"]["UV_EXCLUDE_NEWER"] in makefile


def test_tox_tests_the_package_with_every_extra() -> None:
    assert set(PYPROJECT["tool"]["tox"]["env_run_base"]["extras"]) == set(PROJECT["optional-dependencies"])


def test_all_settings_name_the_same_python() -> None:
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
