"""Read docker-compose.yaml with the parser of podman-compose into plain values."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

FILE = Path(__file__).resolve().parents[2] / "docker-compose.yaml"

# The parser asks for Podman's version before it reads the file; it never uses Podman.
_PODMAN = "#!/bin/sh\necho 'podman version 5.0.0'\n"


@dataclass(frozen=True)
class Mount:
    """A volume or a folder of the checkout, and its path in a service's containers."""

    source: str
    target: str
    read_only: bool

    @property
    def is_volume(self) -> bool:
        return not self.source.startswith((".", "/"))


@dataclass(frozen=True)
class Service:
    """A service as Compose reads it, with every variable filled in.

    Attributes:
        name: Also its host name in Compose's network.
        image: Name and tag.
        command: The entrypoint of the file and the command.
        ports: The ports on which it listens, published or not.
        conditions: For each other service, the condition that it must meet before this one starts.
        health: The command of its health check, as an argument list; empty if there is none.
        replicas: The number of its containers.
        memory: The memory limit of a container, in bytes.
        raw: The service as parsed.
    """

    name: str
    image: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    ports: tuple[int, ...]
    mounts: tuple[Mount, ...]
    conditions: Mapping[str, str]
    health: tuple[str, ...]
    replicas: int
    memory: int
    raw: Mapping[str, Any]


def parse(file: Path = FILE, variables: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return a Compose file after Compose's substitutions and merges.

    Args:
        variables: The contents of an .env file. The .env of the checkout and this process's variables are not read.

    Raises:
        ValueError: If the parser refuses the file; the message is the parser's.
    """
    with tempfile.TemporaryDirectory() as folder:
        podman, settings = Path(folder, "podman"), Path(folder, "env")
        podman.write_text(_PODMAN)
        podman.chmod(0o755)
        settings.write_text("".join(f"{name}={value}\n" for name, value in (variables or {}).items()))
        ended = subprocess.run(
            [Path(sys.executable).parent / "podman-compose", "--env-file", settings, "--file", file, "config"],
            env={"PATH": f"{folder}{os.pathsep}{os.defpath}", "HOME": folder},
            capture_output=True,
            text=True,
            check=False,
        )
    if ended.returncode:
        raise ValueError(ended.stderr)
    parsed: dict[str, Any] = yaml.safe_load(ended.stdout)
    return parsed


def read_services(file: Path = FILE, variables: Mapping[str, str] | None = None) -> dict[str, Service]:
    """Return the services of a Compose file by name; see `parse`."""
    return {name: _service(name, raw) for name, raw in parse(file, variables)["services"].items()}


def _service(name: str, raw: Mapping[str, Any]) -> Service:
    test = raw.get("healthcheck", {}).get("test", [])
    published = [str(port).rpartition(":")[2] for port in raw.get("ports", [])]
    return Service(
        name=name,
        image=raw["image"],
        command=(*raw.get("entrypoint", ()), *raw.get("command", ())),
        environment={key: "" if value is None else str(value) for key, value in raw.get("environment", {}).items()},
        ports=tuple(int(port) for port in (*published, *raw.get("expose", []))),
        mounts=tuple(_mount(text) for text in raw.get("volumes", [])),
        conditions={other: need["condition"] for other, need in raw.get("depends_on", {}).items()},
        health=("sh", "-c", *test[1:]) if test[:1] == ["CMD-SHELL"] else tuple(test[1:]),
        replicas=raw.get("deploy", {}).get("replicas", 1),
        memory=_bytes(raw.get("mem_limit", "0")),
        raw=raw,
    )


def _mount(text: str) -> Mount:
    source, target, *options = text.split(":")
    return Mount(source, target, read_only="ro" in options)


def _bytes(text: str) -> int:
    return int(text.rstrip("kmg")) * {"k": 2**10, "m": 2**20, "g": 2**30}.get(text[-1], 1)
