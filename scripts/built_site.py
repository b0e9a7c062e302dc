"""Checks a built site: links lead to pages and anchors that exist, and no page loads anything from elsewhere."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# What a browser loads without a click.
_LOADED = {
    **dict.fromkeys(("audio", "embed", "iframe", "img", "script", "source", "video"), "src"),
    "link": "href",
    "object": "data",
}
_LOADED_BY_STYLE = re.compile(r"url\(\s*['\"]?((?:https?:)?//[^'\")\s]+)|@import\s+['\"]((?:https?:)?//[^'\"]+)")


@dataclass
class Page(HTMLParser):
    """The anchors and links of a page, and what it loads."""

    anchors: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    loaded: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect what a tag contributes."""
        values = {name: value or "" for name, value in attrs}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        elif tag in _LOADED and values.get("rel") not in ("canonical", "next", "prev") and values.get(_LOADED[tag]):
            self.loaded.append(values[_LOADED[tag]])


def problems_of(site: Path) -> list[str]:
    """Return one line for each dead link, missing anchor and foreign resource of the HTML and CSS files in a folder."""
    pages: dict[Path, Page] = {}
    for file in sorted(site.rglob("*.html")):
        pages[file] = Page()
        pages[file].feed(file.read_text(encoding="utf-8"))
    problems = []
    for file, page in pages.items():
        problems += [f"{file.relative_to(site)}: {problem}" for problem in _problems(file, page, pages)]
    for file in sorted(site.rglob("*.css")):
        foreign = _LOADED_BY_STYLE.findall(file.read_text(encoding="utf-8"))
        problems += [f"{file.relative_to(site)}: loads {one or other} from elsewhere" for one, other in foreign]
    return problems


def _problems(file: Path, page: Page, pages: dict[Path, Page]) -> Iterator[str]:
    for address in page.loaded:
        if _is_foreign(address):
            yield f"loads {address} from elsewhere"
    for address in page.links + page.loaded:
        parts = urlsplit(address)
        if _is_foreign(address) or parts.scheme:
            continue
        target = Path(os.path.normpath(file.parent / unquote(parts.path))) if parts.path else file
        target = target / "index.html" if target.is_dir() else target
        if not target.is_file():
            yield f"{address} leads to no file"
        elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors:
            yield f"{address} leads to no anchor"


def _is_foreign(address: str) -> bool:
    parts = urlsplit(address)
    return bool(parts.netloc) or parts.scheme in ("http", "https")
