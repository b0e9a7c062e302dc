"""Makes of the README what a package index shows: there, a link into the repository leads nowhere."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

_FENCED = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
# Whatever has no scheme, such as https:, and is no place within the text, such as #errors.
_RELATIVE = r"\((?![a-z][a-z0-9+.-]*:|#)([^()\s]+)\)"
_IMAGE = re.compile(rf"^!\[[^\]]*\]{_RELATIVE}\n\n", re.MULTILINE)
_LINK = re.compile(rf"(?<!!)\[([^\]]*)\]{_RELATIVE}")
_NOTE = "\nFiles that this text names are in the source distribution.\n"


class IndexReadme(MetadataHookInterface):
    """Gives the built metadata the README without what works in a repository only."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Add the text to the project's metadata; hatchling calls this for each build."""
        readme = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": for_an_index(readme)}


def for_an_index(readme: str) -> str:
    """Leave relative images out, and name the file where a relative link leads to one.

    Args:
        readme: Markdown, with links relative to the root of the repository.

    Returns:
        The same text, in which every link is absolute; code blocks are as they were.
    """
    parts = _FENCED.split(readme)
    # Every second part is a code block.
    parts[::2] = [_LINK.sub(_named, _IMAGE.sub("", part)) for part in parts[::2]]
    return "".join(parts) + _NOTE


def _named(link: re.Match[str]) -> str:
    text, target = link.groups()
    path = target.partition("#")[0]
    return f"`{path}`" if text in PurePosixPath(path).name else f"{text} (`{path}`)"
