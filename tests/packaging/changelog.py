"""Reads a changelog as Keep a Changelog wants it, strictly, and says what is not as it should be."""

from __future__ import annotations

import re
from datetime import date
from itertools import pairwise

SECTIONS = ("Added", "Changed", "Deprecated", "Removed", "Fixed", "Security")
_RELEASE = re.compile(r"\[(\d+\.\d+\.\d+)\] - (\d{4}-\d{2}-\d{2})(?: \[YANKED\])?")


def releases(text: str) -> list[str]:
    """Return the released versions, in the order in which they stand there."""
    return [found[1] for heading in _headings(text, "## ") if (found := _RELEASE.fullmatch(heading))]


def problems(text: str) -> list[str]:
    """Return a sentence for each thing that is not as Keep a Changelog wants it; none is what it should be."""
    return [
        *_order(text),
        *(problem for part in re.split(r"^(?=## )", text, flags=re.MULTILINE)[1:] for problem in _part(part)),
    ]


def _headings(text: str, level: str) -> list[str]:
    return [line.removeprefix(level) for line in text.splitlines() if line.startswith(level)]


def _order(text: str) -> list[str]:
    found = []
    if not text.startswith("# Changelog\n") or len(_headings(text, "# ")) != 1:
        found.append("The first line, and no other, is the title: # Changelog.")
    headings = _headings(text, "## ")
    if headings[:1] != ["[Unreleased]"] or headings.count("[Unreleased]") != 1:
        found.append("The first heading, and no other, is ## [Unreleased].")
    versions = [tuple(map(int, version.split("."))) for version in releases(text)]
    found += [f"{newer} is above {older}." for newer, older in pairwise(versions) if newer <= older]
    dates = [match[2] for heading in headings if (match := _RELEASE.fullmatch(heading))]
    found += [f"{newer} is above {older}." for newer, older in pairwise(dates) if newer < older]
    return found


def _part(part: str) -> list[str]:
    heading = part.splitlines()[0].removeprefix("## ")
    sections = re.split(r"^### ", part, flags=re.MULTILINE)
    names = [section.splitlines()[0] for section in sections[1:]]
    found = [f"{heading}: {name!r} is none of {', '.join(SECTIONS)}." for name in names if name not in SECTIONS]
    found += [f"{heading}: {name} is there twice." for name in sorted(set(names)) if names.count(name) > 1]
    found += [f"{heading}: {section.splitlines()[0]} is empty." for section in sections[1:] if "\n- " not in section]
    if sections[0].partition("\n")[2].strip():
        found.append(f"{heading}: what is said stands below a section.")
    if re.search(r"^#{4,}", part, re.MULTILINE):
        found.append(f"{heading}: a section has no headings of its own.")
    if heading != "[Unreleased]":
        found += _release(heading, names)
    return found


def _release(heading: str, names: list[str]) -> list[str]:
    match = _RELEASE.fullmatch(heading)
    if not match:
        return [f"{heading!r} is not [version] - year-month-day."]
    try:
        date.fromisoformat(match[2])
    except ValueError:
        return [f"{heading}: {match[2]} is no day."]
    return [] if names else [f"{heading}: nothing is said about it."]
