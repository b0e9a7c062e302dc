"""Says in terms of this machine what a Compose file says in terms of its containers: names, ports, paths. No I/O."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.compose_file import Service

LOCALHOST = "127.0.0.1"
_OWN_NAMES = re.compile(r"\b(?:localhost|0\.0\.0\.0)\b")


@dataclass(frozen=True)
class Translation:
    """How a container's text reads on this machine.

    Args:
        service: The service of the container.
        addresses: The port of this machine for each port of a service.
        folders: The folder of this machine for each path in the container; the longest path that fits counts.
    """

    service: Service
    addresses: Mapping[tuple[str, int], int]
    folders: Mapping[str, Path]

    def of(self, text: str) -> str:
        """Return a command's word, or a variable's value, for this machine."""
        for (name, port), local in self.addresses.items():
            text = re.sub(rf"(?<![\w.-]){re.escape(name)}:{port}\b", f"{LOCALHOST}:{local}", text)
        for (name, port), local in self.addresses.items():
            if name == self.service.name:
                text = re.sub(rf"(?<![\w.]){port}(?![\w.])", str(local), text)
        for path in sorted(self.folders, key=len, reverse=True):
            text = re.sub(rf"(?<![\w.-]){re.escape(path)}(?=/|$|[^\w.-])", str(self.folders[path]), text)
        return _OWN_NAMES.sub(LOCALHOST, text)

    def command(self) -> list[str]:
        """Return what the container runs."""
        return [self.of(word) for word in self.service.command]

    def health(self) -> list[str]:
        """Return the command of the health check."""
        return [self.of(word) for word in self.service.health]

    def environment(self) -> dict[str, str]:
        """Return the container's variables."""
        return {name: self.of(value) for name, value in self.service.environment.items()}
