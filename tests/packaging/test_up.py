"""`make up` reports each example that failed or did not end, with where to read why."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts import up
from scripts.progress import Progress


class Airflow:
    """Answers for Airflow's API with runs that end as their DAG's name says."""

    def dag_ids(self) -> list[str]:
        return ["success", "failed", "running", "run before"]

    def run_once(self, dag_id: str) -> str | None:
        return None if dag_id == "run before" else "manual__2026-01-01T00:00:00+00:00"

    def run_state(self, dag_id: str, run_id: str) -> str:
        return dag_id

    def totals(self) -> tuple[int, float]:
        return 1, 5.0


def test_what_failed_or_still_runs_is_reported_with_its_log(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(up, "_EXAMPLES_SECONDS", 1.2)
    unsuccessful = up._run_examples(Airflow(), Progress())
    up._report(unsuccessful, 8080, Path("/logs"))
    shown = capsys.readouterr().out
    assert "1 of 3 runs succeeded, 1 images, 5 credits" in shown
    assert "The example failed failed.\n  Run     http://127.0.0.1:8080/dags/failed/runs/manual__2026-01-01T00" in shown
    assert "  Logs    /logs/dag_id=failed/run_id=manual__2026-01-01T00:00:00+00:00\n" in shown
    assert "The example running has not ended after 1 s; it may be retrying." in shown
    assert "dag_id=success" not in shown
