"""Runs ``books`` in this process, for tests."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import pytest

from airflow_provider_qwenimage.cli.__main__ import main


@dataclass
class Ran:
    """What the command printed, and how it ended."""

    code: int
    out: str
    errors: str


Run: TypeAlias = Callable[..., Ran]


def run_books(capsys: pytest.CaptureFixture[str], *arguments: str) -> Ran:
    """Run the command with some arguments."""
    capsys.readouterr()
    code = 0
    try:
        main(["books", *arguments])
    except SystemExit as end:
        code = int(str(end.code))
    printed = capsys.readouterr()
    return Ran(code, printed.out, printed.err)


def connect(monkeypatch: pytest.MonkeyPatch, name: str = "QWENIMAGE_DEFAULT", **extra: Any) -> None:
    """Define a connection of type qwenimage with this extra."""
    connection = {"conn_type": "qwenimage", "password": "sk-key", "extra": extra}
    monkeypatch.setenv(f"AIRFLOW_CONN_{name}", json.dumps(connection))
