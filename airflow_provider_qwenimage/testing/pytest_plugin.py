"""The pytest fixture that gives each test an Airflow of its own.

It is registered when the package is installed, so a test only has to name the fixture.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from airflow_provider_qwenimage.testing import DagRunResult, TemporaryAirflow


@pytest.fixture
def qwenimage_airflow(request: pytest.FixtureRequest) -> Iterator[TemporaryAirflow]:
    """A throw-away Airflow with an empty database; ``qwenimage_airflow.run(dag)`` runs a DAG in it."""
    # Imported here, because pytest imports this module in every run, even if no test uses Airflow.
    from airflow_provider_qwenimage.testing import TemporaryAirflow

    def show(run: DagRunResult) -> None:
        if run.failures:
            request.node.add_report_section("call", f"errors of the DAG run {run.dag_id}", run.report())

    with TemporaryAirflow(on_end=show) as airflow:
        yield airflow


def pytest_assertrepr_compare(op: str, left: object, right: object) -> list[str] | None:
    """Let a failed ``assert run.state == "success"`` show why the run failed."""
    explanation = getattr(left, "explanation", "") if op == "==" and isinstance(left, str) else ""
    return [f"{left!r} == {right!r}", *explanation.splitlines()] if explanation else None
