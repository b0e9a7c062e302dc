"""The changelog has the form that it says it has, so that people and programs find what they look for."""

from __future__ import annotations

import pytest

from airflow_provider_qwenimage._version import __version__
from tests.packaging.changelog import problems, releases
from tests.packaging.conftest import ROOT

CHANGELOG = (ROOT / "CHANGELOG.md").read_text()
GOOD = """\
# Changelog

What it is.

## [Unreleased]

## [0.2.0] - 2026-02-01 [YANKED]

### Fixed

- A thing.

## [0.1.0] - 2026-01-31

### Added

- A thing,
  over two lines.

### Security

- Another.
"""


def test_it_keeps_to_keep_a_changelog() -> None:
    assert problems(CHANGELOG) == []


def test_its_newest_release_is_the_version_of_the_package() -> None:
    # Before the first release there is none to compare with.
    assert releases(CHANGELOG)[:1] in ([], [__version__])


def test_one_with_releases_is_read() -> None:
    assert problems(GOOD) == []
    assert releases(GOOD) == ["0.2.0", "0.1.0"]


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("# Changelog", "# History"),
        ("## [Unreleased]\n", ""),
        ("## [Unreleased]", "## Unreleased"),
        ("- Another.\n", "- Another.\n\n## [Unreleased]\n"),
        ("### Added", "### Aded"),
        ("### Security", "### Added"),
        ("- Another.\n", ""),
        ("- Another.\n", "- Another.\n\n#### Details\n"),
        ("### Fixed\n\n- A thing.\n", ""),
        ("### Fixed\n\n- A", "A"),
        ("2026-01-31", "31.01.2026"),
        ("2026-01-31", "2026-01-32"),
        ("2026-01-31", "2026-03-01"),
        (" - 2026-01-31", ""),
        ("[0.1.0]", "[0.10.0]"),
        ("[0.1.0]", "0.1.0"),
    ],
)
def test_what_is_not_as_it_should_be_is_found(right: str, wrong: str) -> None:
    assert right in GOOD
    assert problems(GOOD.replace(right, wrong, 1)) != []
