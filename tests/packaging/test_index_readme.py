"""The README that a package index shows has no links and images that work only in the repository."""

from __future__ import annotations

import re
import tomllib

import pytest

from tests.packaging.conftest import ROOT

README = (ROOT / "README.md").read_text()
NOTE = "\nFiles that this text names are in the source distribution.\n"
HOOKS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["metadata"]["hooks"]


def for_an_index(text: str) -> str:
    """Return what an index would show if the README had this text."""
    hook = HOOKS["fancy-pypi-readme"]
    for each in hook["substitutions"]:
        text = re.sub(each["pattern"], each["replacement"], text)
    return f"{text}{hook['fragments'][1]['text']}"


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("See [the guide](docs/guide.md).\n", "See the guide (`docs/guide.md`).\n"),
        ("See [the guide](docs/guide.md#errors).\n", "See the guide (`docs/guide.md`).\n"),
        ("| [batch.py](example_dags/batch.py) | x |\n", "| `example_dags/batch.py` | x |\n"),
        ("Before.\n\n![A picture](docs/a.jpg)\n\nAfter.\n", "Before.\n\nAfter.\n"),
        ("[Airflow](https://airflow.apache.org), [a](mailto:a@b.c), [errors](#errors)\n", None),
        ("![A picture](https://example.com/a.jpg)\n\nAfter.\n", None),
        ("```python\nnames = [name](path)\n```\n", None),
    ],
)
def test_a_link_into_the_repository_becomes_the_name_of_the_file(written: str, shown: str | None) -> None:
    assert for_an_index(written) == (shown or written) + NOTE


def test_nothing_else_of_it_is_lost() -> None:
    shown = for_an_index(README)
    for target in set(re.findall(r"(?<!!)\[[^\]]*\]\((?!http|#)([^)#]+)", README)):
        assert f"`{target}`" in shown
    for kept in (r"^#+ .*", r"^```(?s:.*?)^```", r"https://[^)\s]+"):
        assert re.findall(kept, shown, re.MULTILINE) == re.findall(kept, README, re.MULTILINE)
