"""Holds the lower bounds in pyproject.toml to their word: `make test-lowest` installs exactly them, and nothing higher.

`python -m scripts.lowest_versions --ceilings` prints them as upper bounds, for the resolver: together with the
declared ones only one version of each is left. Without it, what is installed is compared with what is declared.
"""

from __future__ import annotations

import argparse
import re
import sys
import tomllib
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PYPROJECT = Path(__file__).parent.parent / "pyproject.toml"


def read_bounds(pyproject: str) -> dict[str, str]:
    """Read the lower bound of each package that the project and its extras need.

    Args:
        pyproject: The text of a pyproject.toml.

    Returns:
        The names of the packages, with the version from which on each is allowed.

    Raises:
        ValueError: If a requirement is not a name and a lower bound, or two of one package differ.
    """
    project = tomllib.loads(pyproject)["project"]
    bounds: dict[str, str] = {}
    for extra in [project["dependencies"], *project.get("optional-dependencies", {}).values()]:
        for requirement in extra:
            found = re.fullmatch(r"([a-z0-9-]+)>=(\d+(?:\.\d+)*)", requirement)
            if not found:
                raise ValueError(f"The requirement {requirement!r} has no lower bound; write it as name>=version.")
            name, bound = found.groups()
            if bounds.setdefault(name, bound) != bound:
                raise ValueError(
                    f"{name} has the lower bounds {bounds[name]} and {bound}; write the same in both places."
                )
    return bounds


def differences(bounds: Mapping[str, str], installed: Mapping[str, str]) -> list[str]:
    """Return a sentence for each package that is not installed in the version of its lower bound."""
    return [
        f"{name} is tested with {installed.get(name, 'no version')}, but pyproject.toml promises {bound}: "
        f"run make again, and if that is not enough, raise the bound to what can be installed and say why."
        for name, bound in bounds.items()
        if _numbers(installed.get(name, "")) != _numbers(bound)
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the bounds as upper bounds, or what is installed; return 1 where that is not the lowest."""
    parser = argparse.ArgumentParser(prog="python -m scripts.lowest_versions", description=__doc__)
    parser.add_argument("--ceilings", action="store_true", help="print the lower bounds as upper bounds")
    ceilings = parser.parse_args(arguments).ceilings
    bounds = read_bounds(PYPROJECT.read_text())
    if ceilings:
        print("\n".join(f"{name}<={bound}" for name, bound in bounds.items()))
        return 0
    installed = _installed(bounds)
    print(f"Python {sys.version.split()[0]}")
    print("\n".join(f"{name} {number}" for name, number in installed.items()))
    for difference in (found := differences(bounds, installed)):
        print(f"error: {difference}", file=sys.stderr)
    return 1 if found else 0


def _installed(names: Mapping[str, str]) -> dict[str, str]:
    installed = {}
    for name in names:
        try:
            installed[name] = version(name)
        except PackageNotFoundError:
            continue
    return installed


def _numbers(text: str) -> list[str]:
    """Return what a version says, in which 3.0 and 3.0.0 are the same."""
    return re.sub(r"(\.0+)*$", "", text).split(".")


if __name__ == "__main__":
    sys.exit(main())
