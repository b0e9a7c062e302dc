"""What differs between the supported versions of Airflow; `docs/versions.md` has the same table.

A test marked `airflow_feature(feature, cell)` runs on the versions that have this cell.
"""

from __future__ import annotations

from collections.abc import Mapping

FEATURES: Mapping[str, Mapping[str, str]] = {
    "gallery": {
        "2.11.2": "no",
        "3.0.6": "no",
        "3.1.8": "yes",
        "3.2.2": "yes",
        "3.3.2": "yes",
        "3.4.0b2": "yes",
    },
    "choosing": {
        "2.11.2": "no",
        "3.0.6": "no",
        "3.1.8": "in the triggerer",
        "3.2.2": "in the triggerer",
        "3.3.2": "yes",
        "3.4.0b2": "yes",
    },
    "connection form": {
        "2.11.2": "yes",
        "3.0.6": "plain",
        "3.1.8": "yes",
        "3.2.2": "yes",
        "3.3.2": "yes",
        "3.4.0b2": "yes",
    },
    "command line": {
        "2.11.2": "`python -m`",
        "3.0.6": "`python -m`",
        "3.1.8": "`python -m`",
        "3.2.2": "`airflow qwenimage`",
        "3.3.2": "`airflow qwenimage`",
        "3.4.0b2": "`airflow qwenimage`",
    },
    "killed worker, no `output_path`": {
        "2.11.2": "the retry pays again",
        "3.0.6": "the retry pays again",
        "3.1.8": "the retry pays again",
        "3.2.2": "the retry pays again",
        "3.3.2": "the retry resumes",
        "3.4.0b2": "the retry resumes",
    },
    "triggerer stops": {
        "2.11.2": "logs what is paid",
        "3.0.6": "logs what is paid",
        "3.1.8": "logs what is paid",
        "3.2.2": "logs what is paid",
        "3.3.2": "silent",
        "3.4.0b2": "silent",
    },
}


def versions() -> list[str]:
    """Return the supported versions of Airflow, oldest first."""
    (listed,) = {tuple(cells) for cells in FEATURES.values()}
    return list(listed)


def features_of(version: str) -> dict[str, str]:
    """Return the cell of each feature for the minor version of an Airflow; unknown versions count as the newest."""
    known = {each.rpartition(".")[0]: each for each in versions()}
    column = known.get(version.rpartition(".")[0], versions()[-1])
    return {feature: cells[column] for feature, cells in FEATURES.items()}
