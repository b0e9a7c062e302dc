"""The targets of the fuzzing: the examples of each target, and the check of an example."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from tests.fuzz import answers, clients, connections, files, gallery


@dataclass(frozen=True)
class Target:
    """A part of the package that reads untrusted input.

    Args:
        what: A short name of the input.
        examples: Returns the strategy of the examples.
        prepare: Yields the check of one example, which raises an exception if the example fails.
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
