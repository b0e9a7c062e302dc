"""Checks the path of a stored file that an XCom or a manifest names: anybody may have written those. No I/O."""

from __future__ import annotations

import re

# More than any path of an image that the gallery shows.
MOST_CHARACTERS = 2048

_URL = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
# These could have a process send requests to any host, or read files that are not stored images.
_NOT_STORAGE = frozenset({"http", "https", "ftp", "data", "github", "git", "jupyter", "cached", "simplecache", "zip"})


def check_recorded_path(path: object) -> str:
    """Return a path if it can be one that this package records: absolute, or the URL of a storage.

    Raises:
        ValueError: If it cannot; the message is the end of a sentence about the path.
    """
    if not isinstance(path, str):
        raise ValueError("is not a text")
    scheme = _URL.match(path)
    if scheme is None and not path.startswith("/"):
        raise ValueError("is neither an absolute path nor a URL")
    if scheme is not None and scheme[1].lower() in _NOT_STORAGE:
        raise ValueError(f"is a {scheme[1]}:// URL, from which no images are read")
    # A task never records `..`, which could lead out of the folder.
    is_long = len(path) > MOST_CHARACTERS
    if is_long or any(part == ".." for part in re.split(r"[/\\]", path)) or "::" in path or "\0" in path:
        raise ValueError("is not one that this package records")
    return path
