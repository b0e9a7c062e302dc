"""Builds the documentation as a site, with a reference of the public modules made from their docstrings: `make docs`.

The pages are those of the repository, with their links changed to the site's. The site is checked when it is built: a
dead link, a missing anchor, a page that no list has, and anything that is loaded from elsewhere are errors.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from scripts.built_site import problems_of

ROOT = Path(__file__).parent.parent

# The public modules and the titles of their pages. One more line adds a page.
REFERENCE = {
    "operators": "Operators",
    "decorators": "Decorators",
    "sensors": "Sensors",
    "triggers": "Triggers",
    "retry_policies": "Retry policies",
    "publish.sweeps": "Sweeps",
    "hooks": "Hooks",
    "contract": "Requests and results",
    "exceptions": "Errors",
    "links": "Links",
    "sandbox": "Sandbox",
    "sandbox.pytest_plugin": "Sandbox in pytest",
    "testing": "Airflow in pytest",
    "testing.temporary_airflow": "DAG runs in pytest",
    "testing.results": "Results of DAG runs",
}

_FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\((?![a-z][a-z0-9+.-]*:|#)([^()\s#]+)(#[^()\s]*)?\)")
# A paragraph that is only a link to a file of the examples: the site shows the file itself.
_SHOWN_FILE = re.compile(r"^\[[^\]]*\]\((\.\./\.\./example_dags/[\w.]+)\)$", re.MULTILINE)
_LANGUAGES = {".py": "python", ".jsonl": "json"}


class BrokenPageError(Exception):
    """A page of the repository cannot become one of the site."""


@dataclass
class Pages:
    """The files of the repository that become pages, and those that pages link to, each with its path in the site."""

    root: Path
    pages: dict[Path, str] = field(default_factory=dict)
    files: dict[Path, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        docs = self.root / "docs"
        self.pages[self.root / "README.md"] = "index.md"
        self.pages |= {file: file.relative_to(docs).as_posix() for file in sorted(docs.rglob("*.md"))}
        self.pages |= {self.root / name: name.lower() for name in ("CHANGELOG.md", "CONTRIBUTING.md")}
        self.pages[self.root / "benchmarks" / "README.md"] = "benchmarks.md"
        self.files[docs / "site.css"] = "site.css"

    def write(self, folder: Path) -> None:
        """Write all pages into a folder, and the files that they link to."""
        for file, page in self.pages.items():
            _write(folder / page, self.text_of(file))
        for module, title in REFERENCE.items():
            _write(folder / _reference_page(module), f"# {title}\n\n::: airflow_provider_qwenimage.{module}\n")
        for file, copy in self.files.items():
            (folder / copy).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, folder / copy)

    def text_of(self, file: Path) -> str:
        """Return the text of a page in the site."""
        text = _SHOWN_FILE.sub(lambda found: self._code(file, found[1]), file.read_text(encoding="utf-8"))
        # Only a console block with prompts would be highlighted.
        code = [re.sub(r"\A```console$", "```bash", block, flags=re.MULTILINE) for block in _FENCE.findall(text)]
        prose = (_LINK.sub(lambda found: self._link(file, found), part) for part in _FENCE.split(text))
        return "".join(part + block for part, block in zip(prose, [*code, ""], strict=True))

    def navigation(self) -> list[object]:
        """Return the list of pages: those of the README's tables in their order, then the reference."""
        readme = (self.root / "README.md").read_text(encoding="utf-8")
        examples = re.findall(r"^\| \[[^\]]+\]\(example_dags/(\w+)\.py\)", readme, re.MULTILINE)
        guide = re.findall(r"^\| \[([^\]]+)\]\(docs/([\w-]+\.md)\)", readme, re.MULTILINE)
        project = {"Benchmarks": "benchmarks.md", "Contributing": "contributing.md", "Changelog": "changelog.md"}
        return [
            {"Overview": "index.md"},
            {"How to": [f"how-to/{name}.md" for name in examples]},
            {"Guide": [{title: page} for title, page in guide]},
            {"Reference": [{title: _reference_page(module)} for module, title in REFERENCE.items()]},
            {"Project": [{title: page} for title, page in project.items()]},
        ]

    def unlisted(self) -> list[str]:
        """Return the pages that the navigation does not have."""
        listed = json.dumps(self.navigation())
        return sorted(page for page in self.pages.values() if f'"{page}"' not in listed)

    def _link(self, file: Path, found: re.Match[str]) -> str:
        place = self._place_of(_target(file, found[1]), file)
        return f"]({os.path.relpath(place, Path(self.pages[file]).parent)}{found[2] or ''})"

    def _place_of(self, target: Path, file: Path) -> str:
        if target in self.pages:
            return self.pages[target]
        examples = self.root / "example_dags"
        how_to = self.root / "docs" / "how-to" / f"{target.stem}.md"
        if target.parent == examples and how_to in self.pages:
            return self.pages[how_to]
        if target == examples:
            return "index.md"
        if not target.is_file():
            raise BrokenPageError(f"{file} links to {target}, which is not a file. Correct the link.")
        if target.is_relative_to(self.root / "docs"):
            self.files[target] = target.relative_to(self.root / "docs").as_posix()
        else:
            # A browser shows a text and downloads what it does not know; hidden files are not published.
            self.files[target] = f"files/{target.relative_to(self.root).as_posix().lstrip('.')}.txt"
        return self.files[target]

    def _code(self, file: Path, link: str) -> str:
        shown = _target(file, link)
        if not shown.is_file():
            raise BrokenPageError(f"{file} shows {shown}, which is not a file. Correct the link.")
        code = shown.read_text(encoding="utf-8").rstrip()
        return f'```{_LANGUAGES[shown.suffix]} title="{shown.relative_to(self.root).as_posix()}"\n{code}\n```'


def _target(file: Path, link: str) -> Path:
    return Path(os.path.normpath(file.parent / link))


def _reference_page(module: str) -> str:
    return f"reference/{module.replace('.', '-').replace('_', '-')}.md"


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


def build(root: Path, folder: Path) -> list[str]:
    """Build the site of a repository into `folder/site`, and return what is wrong with it, one line each."""
    shutil.rmtree(folder, ignore_errors=True)
    pages = Pages(root)
    pages.write(folder / "pages")
    # JSON is YAML.
    settings = (root / "docs" / "mkdocs.yml").read_text(encoding="utf-8") + f"nav: {json.dumps(pages.navigation())}\n"
    (folder / "mkdocs.yml").write_text(settings, encoding="utf-8")
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--config-file", "mkdocs.yml"]
    code = subprocess.run(command, cwd=folder, check=False).returncode
    if code:
        return [f"zensical ended with exit code {code}; the reason is above."]
    # It would link to pages by their path from the root of a server, which is not known.
    (folder / "site" / "404.html").unlink(missing_ok=True)
    unlisted = [f"{page}: the README does not list this page. Add it to its table." for page in pages.unlisted()]
    return unlisted + problems_of(folder / "site")


def main(root: Path = ROOT) -> int:
    """Build the site of a repository into its `build/docs/site`; return 1 if anything is wrong with it."""
    site = root / "build" / "docs" / "site"
    try:
        problems = build(root, site.parent)
    except BrokenPageError as error:
        problems = [str(error)]
    for problem in problems:
        print(problem, file=sys.stderr)
    if not problems:
        print(f"{len(list(site.rglob('*.html')))} pages, every link checked: {site / 'index.html'}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
