"""What is fuzzed: for each target, where its examples come from and what must be true of each of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from tests.fuzz import answers, clients, connections, files, gallery


@dataclass(frozen=True)
class Target:
    """One of the places where strangers' input comes in.

    Args:
        what: What it reads, in a few words.
        examples: Makes the strategy of its examples.
        prepare: Yields the check of one example, while whatever it needs is running.
    """

    what: str
    examples: Callable[[], st.SearchStrategy[Any]]
    prepare: Callable[[], AbstractContextManager[Callable[[Any], None]]]


TARGETS: Mapping[str, Target] = {
    "answers": Target("answers of the API", answers.answers, answers.prepare),
    "clients": Target("answers over a socket, to both clients", clients.wire_answers, clients.prepare),
    "files": Target("files of requests", files.files, files.prepare),
    "connections": Target("connections", connections.connections, connections.prepare),
    "gallery": Target("XComs, manifests and sidecars in the gallery", gallery.forged, gallery.prepare),
}
