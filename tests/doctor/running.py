"""Runs ``doctor`` in this process, for tests."""

from __future__ import annotations

import json
from argparse import Namespace
from dataclasses import dataclass
from typing import Any

import pytest

from airflow_provider_qwenimage.cli.doctor.command import run

CONN = "AIRFLOW_CONN_QWENIMAGE_DEFAULT"


@dataclass
class Ran:
    """What the command printed, and how it ended."""

    code: int
    report: dict[str, Any]
    errors: str

    def state(self, name: str) -> str:
        return next(str(check["state"]) for check in self.report["checks"] if check["name"] == name)

    def message(self, name: str) -> str:
        return next(str(check["message"]) for check in self.report["checks"] if check["name"] == name)


def doctor(capsys: pytest.CaptureFixture[str], **arguments: Any) -> Ran:
    options = {
        "conn_id": "qwenimage_default",
        "output_path": None,
        "draw": 0,
        "yes": False,
        "record": None,
        "verbose": False,
    }
    code = 0
    capsys.readouterr()
    try:
        run(Namespace(**{**options, "output": "json", **arguments}))
    except SystemExit as error:
        code = int(str(error.code))
    printed = capsys.readouterr()
    report = json.loads(printed.out.splitlines()[-1]) if printed.out else {}
    return Ran(code, report, printed.err)
