"""Translate names, ports and paths of the containers in a Compose file to those of this machine. No I/O."""

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
    """Translates the texts of a container of a service.

    Args:
        addresses: The port on this machine for each service and its port.
        folders: The folder on this machine for each path in the container; the longest matching path is used.
    """

    service: Service
    addresses: Mapping[tuple[str, int], int]
    folders: Mapping[str, Path]

    def translate(self, text: str) -> str:
        """Translate a word of a command, or the value of a variable."""
        for (name, port), local in self.addresses.items():
            text = re.sub(rf"(?<![\w.-]){re.escape(name)}:{port}\b", f"{LOCALHOST}:{local}", text)
        for (name, port), local in self.addresses.items():
            if name == self.service.name:
                text = re.sub(rf"(?<![\w.]){port}(?![\w.])", str(local), text)
        for path in sorted(self.folders, key=len, reverse=True):
            text = re.sub(rf"(?<![\w.-]){re.escape(path)}(?=/|$|[^\w.-])", str(self.folders[path]), text)
        return _OWN_NAMES.sub(LOCALHOST, text)

    def command(self) -> list[str]:
        """Return the translated command of the container."""
        return [self.translate(word) for word in self.service.command]

    def health(self) -> list[str]:
        """Return the translated command of the health check."""
        return [self.translate(word) for word in self.service.health]

    def environment(self) -> dict[str, str]:
        """Return the translated environment variables of the container."""
        return {name: self.translate(value) for name, value in self.service.environment.items()}
